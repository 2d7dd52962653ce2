package rootless

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestSubordinateIDs(t *testing.T) {
	file := "# ids\nalice:100000:65536\nbob:165536:65536\n1000:300000:10\nalice:x:1\nalice:5:\nalice:0:5\n: : \nalice:4294967290:100\n"
	for _, c := range []struct {
		name string
		uid  int
		want []span
	}{
		{"alice", 1000, []span{{100000, 65536}, {300000, 10}}},
		{"bob", 1001, []span{{165536, 65536}}},
		{"", 1000, []span{{300000, 10}}},
		{"carol", 1002, nil},
		{"", 1002, nil},
	} {
		if got := parseSubordinate(strings.NewReader(file), c.name, c.uid); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s/%d: %v, want %v", c.name, c.uid, got, c.want)
		}
	}
}

func TestMapIsWithoutHoles(t *testing.T) {
	got := strings.Join(mapArgs(1000, []span{{100000, 65536}, {300000, 10}}), " ")
	if want := "0 1000 1 1 100000 65536 65537 300000 10"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzSubordinate(f *testing.F) {
	f.Add("alice:100000:65536\n")
	f.Fuzz(func(t *testing.T, file string) {
		for _, s := range parseSubordinate(strings.NewReader(file), "alice", 1000) {
			if s.first <= 0 || s.count <= 0 || s.first+s.count > 1<<32-1 {
				t.Errorf("%q gives %v", file, s)
			}
		}
	})
}

// The file that joins is a whole ELF executable whose entry is joiner's code.
func TestJoinFileIsAnExecutable(t *testing.T) {
	b := joinFile(5, 6, 7, "/usr/bin/keg", "/home/alice")
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_EXEC || len(f.Progs) != 1 || f.Entry != base+codeAt {
		t.Fatalf("%+v", f.FileHeader)
	}
	p := f.Progs[0]
	if p.Filesz != uint64(len(b)) || p.Flags != elf.PF_R|elf.PF_X || p.Vaddr != base {
		t.Errorf("%+v of %d bytes", p.ProgHeader, len(b))
	}
	for _, w := range []string{"/usr/bin/keg\x00", "/home/alice\x00"} {
		if !bytes.Contains(b[wordsAt:], []byte(w)) {
			t.Errorf("%q is not in the file", w)
		}
	}
	if bytes.Count(b[codeAt:codeAt+64], []byte{0}) == 64 {
		t.Error("no code was copied")
	}
}

func TestRunDirOfOthersIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := privateDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := privateDir(dir); err == nil || !strings.Contains(err.Error(), "only you can write to") {
		t.Errorf("a directory that all can write to: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if err := privateDir(link); err == nil {
		t.Error("a symbolic link was taken")
	}
}

func TestMarkerIsTakenOnce(t *testing.T) {
	env := without([]string{"A=1", marker + "=7", "KEG_ROOT=/x", "B=2"}, marker, "KEG_ROOT")
	if !reflect.DeepEqual(env, []string{"A=1", "B=2"}) {
		t.Error(env)
	}
	if Arrived(env) || Arrived([]string{marker + "=x"}) || Arrived([]string{marker + "=1"}) {
		t.Error("a command without a lock counts as inside")
	}
}

func TestTheWayIsChosen(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	look := func(choice, program, word string) {
		t.Helper()
		got, warning, err := choosePasta(choice)
		if err != nil || got != program || (word == "") != (warning == "") || !strings.Contains(warning, word) {
			t.Errorf("%q: %q, %q, %v", choice, got, warning, err)
		}
	}
	look("", "", "")
	look("builtin", "", "")
	look("pasta", "", "apt install passt")
	pasta := filepath.Join(dir, "pasta")
	if err := os.WriteFile(pasta, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	look("", pasta, "")
	look("pasta", pasta, "")
	look("builtin", "", "")
	if _, _, err := choosePasta("vpn"); err == nil || !strings.Contains(err.Error(), "neither pasta nor builtin") {
		t.Error(err)
	}
}

func TestFirstWordsOfAProgram(t *testing.T) {
	w := &firstWords{}
	for _, s := range []string{"Failed to send 51 bytes to syslog\n", "No such device\n", "\n", strings.Repeat("x", 5000)} {
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := w.String(); !strings.HasPrefix(got, "No such device; xxx") || len(got) > 1024 {
		t.Errorf("%q", got)
	}
}

func TestFeaturesSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		f    Feature
		ok   bool
		word string
	}{
		{pings("0 2147483647", 1000), true, "can ping"},
		{pings("1 0", 1000), false, "net.ipv4.ping_group_range"},
		{pings("", 1000), false, "sudo sysctl"},
		{lowPorts("0"), true, "from 0 up"},
		{lowPorts("1024"), false, "ip_unprivileged_port_start=80"},
	} {
		if c.f.OK != c.ok || !strings.Contains(c.f.Text, c.word) {
			t.Errorf("%+v", c.f)
		}
	}
	m := findIDs("nobody-has-this-name", 1<<30, 1<<30)
	if !strings.Contains(m.lack, "uidmap") && !strings.Contains(m.lack, "usermod --add-subuids") {
		t.Errorf("%q", m.lack)
	}
}
