package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// attackLoop stops every other process of its container and opens what that one executes for writing, at
// once and through a descriptor. Builtins of the shell only: the victims live for milliseconds.
const attackLoop = `echo ready; while :; do for d in /proc/[0-9]*; do
	n=${d#/proc/}; p=$d/exe
	case $n in 1|$$) continue;; esac
	kill -STOP $n 2>/dev/null || continue
	if { true <$p; } 2>/dev/null && ! [ $p -ef /bin/busybox ]; then
		{ for w in $p /proc/self/fd/3; do { true >>$w; } 2>/dev/null && echo WROTE $w; done; echo tried $n; } 3<$p
	fi
	kill -CONT $n 2>/dev/null
done; done`

// TestBinaryIsOutOfReach: an image whose program is a script for /proc/self/exe executes, and so gets
// hold of, what cloned it; peers in the container try to write to it meanwhile and afterwards
// (CVE-2019-5736, CVE-2016-9962). All of it against a copy of the binary.
func TestBinaryIsOutOfReach(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers of root's")
	}
	dir, err := os.MkdirTemp("", "kegrt1-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	engine := copyFile(t, filepath.Join(bin, "keg"), filepath.Join(dir, "keg"))
	before := sum(t, engine)
	t.Run("runtime", func(t *testing.T) { attackRuntime(t, dir, engine) })
	t.Run("engine", func(t *testing.T) { attackEngine(t, dir, engine) })
	if sum(t, engine) != before {
		t.Error("the binary was written to")
	}
}

func attackRuntime(t *testing.T, dir, engine string) {
	bundle := filepath.Join(dir, "bundle")
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc"} {
		os.MkdirAll(filepath.Join(bundle, "rootfs", d), 0o755)
	}
	copyFile(t, "/bin/busybox", filepath.Join(bundle, "rootfs/bin/busybox"))
	for _, n := range []string{"sh", "readlink", "echo", "sleep"} {
		os.Symlink("busybox", filepath.Join(bundle, "rootfs/bin", n))
	}
	os.WriteFile(filepath.Join(bundle, "rootfs/attack"), []byte("#!/proc/self/exe\n"), 0o755)
	oci := func(args ...string) (string, error) {
		out, err := exec.Command(engine, append([]string{"oci", "--root", filepath.Join(dir, "state")}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := oci("spec", "-b", bundle); err != nil {
		t.Fatal(out, err)
	}
	config(t, bundle, "sh", "-c", attackLoop)
	log := filepath.Join(dir, "log")
	words, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer words.Close()
	cmd := exec.Command(engine, "oci", "--root", filepath.Join(dir, "state"), "run", "-b", bundle, "box")
	cmd.Stdout, cmd.Stderr = words, words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { oci("delete", "-f", "box"); cmd.Wait() }()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(read(log), "ready"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(read(log))
		}
	}
	if out, err := oci("exec", "box", "echo", "fine"); out != "fine\n" || err != nil {
		t.Errorf("an honest program: %q %v", out, err)
	}
	for range 60 {
		// It is our binary that answers: the attack does reach it.
		if out, err := oci("exec", "box", "/attack"); err == nil || !strings.Contains(out, "unknown command: keg /attack") {
			t.Fatalf("%q %v", out, err)
		}
	}
	verdict(t, read(log))
}

func attackEngine(t *testing.T, dir, engine string) {
	context := filepath.Join(dir, "context")
	os.Mkdir(context, 0o755)
	os.WriteFile(filepath.Join(context, "attack"), []byte("#!/proc/self/exe\n"), 0o755)
	copyFile(t, "/bin/busybox", filepath.Join(context, "busybox"))
	os.WriteFile(filepath.Join(context, "Dockerfile"), []byte("FROM scratch\nCOPY busybox /bin/busybox\nCOPY attack /attack\n"), 0o644)
	keg := func(args ...string) (string, error) {
		cmd := exec.Command(engine, args...)
		cmd.Env = append(os.Environ(), "KEG_ROOT="+filepath.Join(dir, "root"), "KEG_RUN_ROOT="+filepath.Join(dir, "run"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := keg("build", "-t", "attack", context); err != nil {
		t.Fatal(out, err)
	}
	if out, err := keg("run", "-d", "--net", "none", "--name", "box", "attack", "/bin/busybox", "sh", "-c", attackLoop); err != nil {
		t.Fatal(out, err)
	}
	defer keg("rm", "-f", "box")
	if out, err := keg("exec", "box", "/bin/busybox", "echo", "fine"); out != "fine\n" || err != nil {
		t.Errorf("an honest program: %q %v", out, err)
	}
	for i := range 60 {
		args := []string{"exec", "box", "/attack"}
		if i%10 == 0 {
			args = []string{"run", "--rm", "--net", "none", "attack", "/attack"}
		}
		if out, err := keg(args...); err == nil || !strings.Contains(out, "unknown command: keg /attack") {
			t.Fatalf("%q %v", out, err)
		}
	}
	out, _ := keg("logs", "box")
	verdict(t, out)
}

// verdict: the loop did meet our binary, and never could write.
func verdict(t *testing.T, log string) {
	t.Helper()
	if strings.Contains(log, "WROTE") {
		t.Errorf("the binary was opened for writing:\n%.2000s", log)
	}
	if !strings.Contains(log, "tried") {
		t.Errorf("the loop never met the binary, so nothing was shown:\n%.500s", log)
	}
}

func config(t *testing.T, bundle string, args ...string) {
	file := filepath.Join(bundle, "config.json")
	var s map[string]any
	if err := json.Unmarshal([]byte(read(file)), &s); err != nil {
		t.Fatal(err)
	}
	p := s["process"].(map[string]any)
	p["terminal"], p["args"] = false, args
	b, _ := json.Marshal(s)
	os.WriteFile(file, b, 0o644)
}

func read(file string) string {
	b, _ := os.ReadFile(file)
	return string(b)
}

func copyFile(t *testing.T, from, to string) string {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Skip("needs ", from)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}

func sum(t *testing.T, file string) string {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return string(bytes.Clone(h.Sum(nil)))
}
