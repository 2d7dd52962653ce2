package monitor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"keg/internal/launch"
)

// TestMonitorIsSmall: a waiting monitor has few threads, and little memory that is its own. The bound is
// for this test binary, which is larger than keg.
func TestMonitorIsSmall(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"})
	info, err := h.dial(r.ID).Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	slimmed := func() bool { _, err := os.Stat(h.s.Dir(r.ID) + "/monitor.log"); return err == nil }
	h.settled(slimmed, "the monitor did not become small")
	if n := field(t, info.Monitor, "status", "Threads:"); n > 8 {
		t.Errorf("%d threads", n)
	}
	// So many that no start makes the kernel replace the table, which takes it 10 ms.
	if n := field(t, info.Monitor, "status", "FDSize:"); n <= launch.RoomSlot {
		t.Errorf("room for %d descriptors", n)
	}
	if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", info.Monitor, launch.RoomSlot)); err == nil {
		t.Errorf("descriptor %d is left open", launch.RoomSlot)
	}
	kb := field(t, info.Monitor, "smaps_rollup", "Pss_Anon:")
	t.Logf("%d kB of its own", kb)
	if kb > 4<<10 {
		t.Errorf("%d kB of its own memory", kb)
	}
	args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", info.Monitor))
	if !strings.Contains(string(args), r.ID) {
		t.Errorf("ps shows %q", args)
	}
}

func field(t *testing.T, pid int, file, name string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Fatalf("%s is not in %s", name, file)
	return 0
}

// TestPreparedButUnused: a monitor that is never told its container goes away.
func TestPreparedButUnused(t *testing.T) {
	h := newHouse(t)
	p, err := Prepare(h.roots)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	p, err = Prepare(h.roots)
	if err != nil {
		t.Fatal(err)
	}
	r := h.create([]string{"true"}, autoRemove)
	c, err := p.Spawn(ctx, r.ID, &Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if x, err := c.Wait(ctx); err != nil || x.Code != 0 {
		t.Error(x, err)
	}
	p.Close()
}
