package monitor

import (
	"os"
	"path/filepath"
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
