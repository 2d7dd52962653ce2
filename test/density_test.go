package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestDensity: many containers run at once and none is lost; each costs at most 2 MiB and 8 threads, all are listed in a
// blink, and nothing of them is left. KEG_SOAK is how many (1: a thousand), KEG_SOAK_TIME for how long (an hour; at
// least 12 s: a monitor is small again ten after it was asked).
func TestDensity(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers of root's, on a bridge")
	}
	n, pause := 100, time.Minute
	if s := os.Getenv("KEG_SOAK"); s != "" {
		n, pause = 1000, time.Hour
		if k, err := strconv.Atoi(s); err == nil && k > 1 {
			n = k
		}
	}
	if d, err := time.ParseDuration(os.Getenv("KEG_SOAK_TIME")); err == nil {
		pause = d
	}
	d := newDensity(t)
	before := host(d.dir)
	begun := time.Now()
	d.start(n)
	t.Logf("%d containers started in %v", n, time.Since(begun).Round(time.Millisecond))
	d.ask("c1")
	for end := time.Now().Add(pause); ; {
		if got := d.running(); got != n {
			t.Fatalf("%d of %d containers run", got, n)
		}
		if time.Now().After(end) {
			break
		}
		time.Sleep(min(10*time.Second, time.Until(end)+time.Millisecond))
	}
	d.small(n)
	d.quick(n)
	begun = time.Now()
	d.end()
	t.Logf("all stopped and removed in %v", time.Since(begun).Round(time.Millisecond))
	if left := settle(d.dir, before); left != "" {
		t.Errorf("left on the host:\n%s", left)
	}
	for _, of := range []string{"root/containers", "root/active"} {
		if ents, _ := os.ReadDir(filepath.Join(d.dir, of)); len(remains(ents)) > 0 {
			t.Errorf("left in %s: %q", of, remains(ents))
		}
	}
}

// remains are the entries that a container leaves, not the directories that the engine keeps.
func remains(ents []os.DirEntry) (names []string) {
	for _, e := range ents {
		if len(e.Name()) == 64 {
			names = append(names, e.Name())
		}
	}
	return names
}

type density struct {
	t        *testing.T
	dir, keg string
	env      []string
	asked    string // the container whose monitor has answered an exec
}

// ask has a monitor do what touches 6 MB of the binary.
func (d *density) ask(name string) {
	d.t.Helper()
	_, err := d.run("exec", name, "true")
	if err == nil {
		d.asked, err = d.run("inspect", "--format", "{{.Id}}", name)
	}
	if d.asked = strings.TrimSpace(d.asked); err != nil {
		d.t.Fatal(err)
	}
}

func newDensity(t *testing.T) *density {
	dir, err := os.MkdirTemp("", "kd-")
	if err != nil {
		t.Fatal(err)
	}
	keg, _ := filepath.Abs(filepath.Join(bin, "keg"))
	d := &density{t: t, dir: dir, keg: keg, env: append(os.Environ(), "KEG_ROOT="+dir+"/root", "KEG_RUN_ROOT="+dir+"/run")}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(d.end) // also of a test that failed
	return d
}

func (d *density) run(args ...string) (string, error) {
	cmd := exec.Command(d.keg, args...)
	cmd.Env = d.env
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("keg %.100q: %w: %s", args, err, words.String())
	}
	return out.String(), nil
}

// start starts n containers, four at once, half of them on the bridge.
func (d *density) start(n int) {
	d.t.Helper()
	if _, err := d.run("run", "--rm", "keg/shell", "true"); err != nil { // the image
		d.t.Fatal(err)
	}
	next := make(chan int)
	failed := make(chan error, n)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range next {
				args := []string{"run", "-d", "--name", fmt.Sprint("c", i), "--network", "none", "keg/shell", "sleep", "100000"}
				if i%2 == 0 && i/2 < bridgeful {
					args[5] = "bridge"
				}
				if _, err := d.run(args...); err != nil {
					failed <- err
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
	if len(failed) > 0 {
		d.t.Fatalf("%d starts failed, the first: %v", len(failed), <-failed)
	}
}

// bridgeful is fewer containers than a bridge takes.
const bridgeful = 1000

func (d *density) running() int {
	d.t.Helper()
	out, err := d.run("ps", "-q")
	if err != nil {
		d.t.Fatal(err)
	}
	return len(strings.Fields(out))
}

// small looks at every monitor.
func (d *density) small(n int) {
	d.t.Helper()
	var pss, threads []int
	largest := ""
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if c, _ := os.ReadFile(p); !bytes.HasPrefix(c, []byte("keg-monitor")) || !bytes.Contains(c, []byte(d.dir)) {
			continue
		}
		at := filepath.Dir(p)
		size := number(read(at+"/smaps_rollup"), "Pss:")
		if strings.Contains(read(p), d.asked) {
			d.t.Logf("the monitor that was asked: PSS %d kB", size)
			size -= 256 // what it remembers of it; the pages of the binary are given back
		}
		if len(pss) == 0 || size > slices.Max(pss) {
			id := strings.Split(read(p), "\x00")[4]
			name, _ := d.run("inspect", "--format", "{{.Name}} on {{.HostConfig.NetworkMode}}, started at {{.State.StartedAt}}", id)
			largest = name + read(at+"/smaps_rollup") + read(filepath.Join(d.dir, "root/containers", id, "monitor.log"))
		}
		pss = append(pss, size)
		threads = append(threads, number(read(at+"/status"), "Threads:"))
	}
	if len(pss) != n {
		d.t.Errorf("%d monitors of %d containers", len(pss), n)
	}
	sum, most, busiest := 0, 0, 0
	for i := range pss {
		sum, most, busiest = sum+pss[i], max(most, pss[i]), max(busiest, threads[i])
	}
	slices.Sort(pss)
	d.t.Logf("a monitor: PSS %d kB on average, the largest %d; %d threads at most", sum/max(1, len(pss)), pss[max(0, len(pss)-5):], busiest)
	large := len(pss) - sort.SearchInts(pss, 2049)
	if large > 0 {
		d.t.Errorf("%d monitors have more than 2 MiB, the largest %d kB:\n%s", large, most, largest)
	}
	if busiest > 8 {
		d.t.Errorf("a monitor has %d threads, more than 8", busiest)
	}
}

func number(text, name string) int {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return -1
}

// quick times ps -a; the best of some, since other tests may be at work.
func (d *density) quick(n int) {
	d.t.Helper()
	best := time.Hour
	for range 10 {
		begun := time.Now()
		out, err := d.run("ps", "-a")
		if err != nil {
			d.t.Fatal(err)
		}
		best = min(best, time.Since(begun))
		if lines := strings.Count(out, "\n"); lines != n+1 {
			d.t.Errorf("ps -a has %d lines for %d containers", lines, n)
		}
	}
	d.t.Logf("ps -a of %d: %v", n, best.Round(time.Millisecond))
	if best > 100*time.Millisecond {
		d.t.Errorf("ps -a takes %v, more than 100 ms", best)
	}
}

// end stops and removes everything.
func (d *density) end() {
	out, err := d.run("ps", "-aq")
	if ids := strings.Fields(out); err == nil && len(ids) > 0 {
		if _, err := d.run(append([]string{"stop", "-t", "0"}, ids...)...); err != nil {
			d.t.Error(err)
		}
		if _, err = d.run(append([]string{"rm", "-v"}, ids...)...); err != nil {
			d.t.Error(err)
		}
	}
}
