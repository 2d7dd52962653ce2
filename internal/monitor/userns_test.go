package monitor

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestIDRange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	for _, c := range []struct {
		text        string
		base, units uint32
	}{
		{"alice:100000:65536\n", 0x70000000, 4095},
		{"alice:100000:65536\ncontainers:2000000:655360\n", 2000000, 10},
		{"keg:1:65535\ncontainers:x:65536\nkeg:0:65536\n", 0x70000000, 4095},
		{"keg:4294910000:65536\nkeg:524288:131072\n", 524288, 2},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if base, units := idRange(file); base != c.base || units != c.units {
			t.Errorf("%q: %d %d", c.text, base, units)
		}
	}
	if base, _ := idRange(filepath.Join(t.TempDir(), "none")); base != 0x70000000 {
		t.Error(base)
	}
}

// TestRangesLeaveNothing: neither a try that failed nor a monitor that was killed leaves files behind.
func TestRangesLeaveNothing(t *testing.T) {
	dir := t.TempDir() + "/ids"
	has := func(want ...string) {
		t.Helper()
		var got []string
		es, _ := os.ReadDir(dir)
		for _, e := range es {
			got = append(got, e.Name())
		}
		if !slices.Equal(got, want) {
			t.Errorf("there are %q, want %q", got, want)
		}
	}
	one, two := &userns{mirrored: true}, &userns{mirrored: true}
	if !one.lockUsers(dir, 4096, 1) || two.lockUsers(dir, 2048, 3) {
		t.Fatal("the unit 4096 is not the first one's alone")
	}
	has("4096")
	if !two.lockUsers(dir, 2048, 2) {
		t.Fatal("free units cannot be had")
	}
	has("2048", "3072", "4096")
	for _, f := range two.ranges { // as when it is killed
		f.Close()
	}
	one.close()
	has()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}
