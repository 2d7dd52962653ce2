package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// FuzzBundle: whatever config.json holds, reading it ends in a spec that can be worked with or in an error.
func FuzzBundle(f *testing.F) {
	b, err := json.Marshal(Template())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"ociVersion":"1.0.0","root":{"path":"r"},"linux":{"resources":{"devices":[{"allow":true,"type":"c","major":-1}]},"namespaces":[null]},"process":{"args":["x"],"cwd":"/"},"mounts":[{}],"hooks":{"poststop":[{"path":"/x","timeout":0}]}}`))
	f.Add([]byte(`{"ociVersion":"1.0.0","root":null,"linux":{"uidMappings":[{"size":4294967295,"hostID":4294967295}]}}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, body []byte) {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), body, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadSpec(dir)
		if err != nil {
			return
		}
		if s.Linux == nil || s.Root == nil {
			t.Fatal("accepted without linux or root")
		}
		resolve(s, dir)
		for _, systemd := range []bool{false, true} {
			_, _ = (&Runtime{Systemd: systemd}).cgroupPath(s, "c")
		}
		_ = hooksOf(s)
	})
}
