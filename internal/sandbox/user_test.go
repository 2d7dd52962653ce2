package sandbox

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

func imageWith(t *testing.T, passwd, group string) (dir string, fd int) {
	t.Helper()
	dir = t.TempDir()
	os.Mkdir(filepath.Join(dir, "etc"), 0o755)
	if passwd != "" {
		os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644)
	}
	if group != "" {
		os.WriteFile(filepath.Join(dir, "etc/group"), []byte(group), 0o644)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return dir, int(d.Fd())
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:,,,:/home/ann:/bin/sh\n1234:x:0:0::/evil:/bin/sh\nbig:x:4294967296:0::/:/bin/sh\nneg:x:-1:0::/:/\nnl:x:7:7::/a\x01b:/\n"
	group  = "root:x:0:\nvideo:x:44:ann,root\nann:x:1001:\nwheel:x:10:bob,ann\nhuge:x:4294967296:\n"
)

func TestLookupUser(t *testing.T) {
	_, fd := imageWith(t, passwd, group)
	for _, c := range []struct {
		spec   string
		add    []string
		uid    uint32
		gid    uint32
		groups []uint32
		home   string
	}{
		{"", nil, 0, 0, []uint32{0, 44}, "/root"},
		{"root", nil, 0, 0, []uint32{0, 44}, "/root"},
		{"ann", nil, 1000, 1001, []uint32{1001, 44, 10}, "/home/ann"},
		{"1000", nil, 1000, 1001, []uint32{1001, 44, 10}, "/home/ann"},
		{"ann:video", nil, 1000, 44, []uint32{44}, "/home/ann"},
		{"ann:7", []string{"wheel", "99"}, 1000, 7, []uint32{7, 10, 99}, "/home/ann"},
		{"4242", nil, 4242, 0, []uint32{0}, "/"},
		{"1234", nil, 1234, 0, []uint32{0}, "/"}, // not the user named 1234, who is root
		{"4242:4343", []string{"video"}, 4242, 4343, []uint32{4343, 44}, "/"},
		{"2147483647", nil, 2147483647, 0, []uint32{0}, "/"},
		{"nl", nil, 7, 7, []uint32{7}, "/"},
		{":video", nil, 0, 44, []uint32{44}, "/root"},
	} {
		u, home, err := LookupUser(fd, c.spec, c.add)
		if err != nil || u.UID != c.uid || u.GID != c.gid || home != c.home || !slices.Equal(u.AdditionalGids, c.groups) {
			t.Errorf("%q: %+v %q %v", c.spec, u, home, err)
		}
	}
	for spec, msg := range map[string]string{
		"x":          "unable to find user x: no matching entries in passwd file",
		"ann:x":      "unable to find group x: no matching entries in group file",
		"0x0":        "unable to find user 0x0: no matching entries in passwd file",
		"2147483648": "uids and gids must be in range 0-2147483647", "4294967296": "must be in range", "-1": "must be in range",
		"99999999999999999999": "must be in range", "ann:-1": "must be in range", "big": "", "neg": "", "ann:huge": "",
	} {
		if u, _, err := LookupUser(fd, spec, nil); err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("%q: %+v %v", spec, u, err)
		}
	}
	if _, _, err := LookupUser(fd, "x", nil); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, _, err := LookupUser(fd, "ann", []string{"nope"}); err == nil || err.Error() != "unable to find group nope: no matching entries in group file" {
		t.Error(err)
	}
}

func TestLookupUserWithoutFiles(t *testing.T) {
	_, fd := imageWith(t, "", "")
	if u, home, err := LookupUser(fd, "5:6", nil); err != nil || u.UID != 5 || u.GID != 6 || home != "/" {
		t.Error(u, home, err)
	}
	if _, _, err := LookupUser(fd, "ann", nil); err == nil || err.Error() != "unable to find user ann: no matching entries in passwd file" {
		t.Error(err)
	}
}

// CVE-2024-9676 and its like: files that never end, never answer, or are somebody else's.
func TestLookupUserInHostileImages(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	os.WriteFile(outside, []byte("mole:x:0:0::/:/\n"), 0o644)
	for name, make := range map[string]func(p string) error{
		"pipe":      func(p string) error { return unix.Mkfifo(p, 0o644) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"sparse":    func(p string) error { os.WriteFile(p, nil, 0o644); return os.Truncate(p, 4<<30) },
		"long line": func(p string) error {
			return os.WriteFile(p, []byte(strings.Repeat("x", 9<<20)+"\nok:x:3:3::/:/\n"), 0o644)
		},
		"outside": func(p string) error { return os.Symlink(outside, p) },
		"magic":   func(p string) error { return os.Symlink("/proc/self/root"+outside, p) },
		"loop":    func(p string) error { return os.Symlink("passwd", p) },
	} {
		dir, fd := imageWith(t, "", "")
		if err := make(filepath.Join(dir, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		at := time.Now()
		u, _, err := LookupUser(fd, "mole", nil)
		runtime.ReadMemStats(&after)
		took := time.Since(at)
		for range 4 { // the fastest of a few: the machine may be busy
			if took < time.Second {
				break
			}
			at = time.Now()
			LookupUser(fd, "mole", nil)
			took = min(took, time.Since(at))
		}
		if err == nil || took > time.Second || after.TotalAlloc-before.TotalAlloc > 64<<20 {
			t.Errorf("%s: %+v %v, %v, %d MiB", name, u, err, took, (after.TotalAlloc-before.TotalAlloc)>>20)
		}
		if name == "long line" {
			if u, _, err := LookupUser(fd, "ok", nil); err != nil || u.UID != 3 {
				t.Error("a long line hides the next one:", u, err)
			}
		}
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add(passwd, group, "ann:video")
	f.Add("a:b:c", "::::", "0")
	f.Fuzz(func(t *testing.T, p, g, spec string) {
		_, fd := imageWith(t, p, g)
		u, home, err := LookupUser(fd, spec, []string{"video"})
		if err == nil && (u.UID > maxID || u.GID > maxID || !strings.HasPrefix(home, "/") || strings.ContainsAny(home, "\n\r")) {
			t.Errorf("%+v %q", u, home)
		}
	})
}
