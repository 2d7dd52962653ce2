package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCopyExecutesNothing: an image full of trojans for what other engines execute or load while they copy
// (CVE-2019-14271, CVE-2026-41567). cp both ways, of a running and of a stopped container, executes nothing.
func TestCopyExecutesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers of root's")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
	dir, err := os.MkdirTemp("", "kegcp1-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	context := filepath.Join(dir, "context")
	canary := filepath.Join(dir, "canary")
	trojan := "#!/bin/sh\necho caught > " + canary + "\n"
	docker := "FROM scratch\nCOPY busybox /bin/busybox\nCOPY trojan "
	os.Mkdir(context, 0o755)
	copyFile(t, "/bin/busybox", filepath.Join(context, "busybox"))
	os.WriteFile(filepath.Join(context, "trojan"), []byte(trojan), 0o755)
	var copies strings.Builder
	for _, p := range []string{"/bin/tar", "/usr/bin/xz", "/usr/bin/unpigz", "/usr/bin/gzip", "/usr/bin/zstd", "/lib/libnss_files.so.2",
		"/lib/x86_64-linux-gnu/libnss_files.so.2", "/lib64/libnss_files.so.2", "/data/file"} {
		copies.WriteString(docker[strings.Index(docker, "COPY trojan "):] + p + "\n")
	}
	os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(docker[:strings.Index(docker, "COPY trojan ")]+copies.String()), 0o644)
	env := append(os.Environ(), "KEG_ROOT="+filepath.Join(dir, "root"), "KEG_RUN_ROOT="+filepath.Join(dir, "run"))
	call := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	keg, err := filepath.Abs(filepath.Join(bin, "keg"))
	if err != nil {
		t.Fatal(err)
	}
	call(keg, "build", "-q", "-t", "trojans", context)
	call(keg, "run", "-d", "--net", "none", "--name", "box", "trojans", "/bin/busybox", "sleep", "1000")
	defer func() { call(keg, "rm", "-f", "box") }()
	for _, running := range []bool{true, false} {
		for _, way := range [][]string{{"box:/data", filepath.Join(dir, "out")}, {context, "box:/in"}} {
			log := filepath.Join(dir, "strace")
			call("strace", append([]string{"-f", "-o", log, "-e", "trace=execve,execveat", keg, "cp"}, way...)...)
			if n := strings.Count(read(log), "execve"); n != 1 {
				t.Errorf("cp %q (running: %v) executed %d programs:\n%s", way, running, n-1, read(log))
			}
		}
		call(keg, "stop", "-t", "0", "box")
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("a trojan was executed")
	}
	// What was copied is what was there.
	if got := read(filepath.Join(dir, "out/file")); got != trojan {
		t.Errorf("%q", got)
	}
}
