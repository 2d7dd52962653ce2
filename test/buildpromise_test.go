package test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkout is a build context that is a clean git checkout; commit commits what it holds now.
func checkout(t *testing.T, files map[string]string) (dir string, write func(name, text string), commit func(when string)) {
	t.Helper()
	dir = t.TempDir()
	git := func(env string, args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", env)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	write = func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(name, text)
	}
	git("", "init", "-q", "-b", "main")
	return dir, write, func(when string) {
		t.Helper()
		git("", "add", ".")
		git("GIT_COMMITTER_DATE="+when, "commit", "-qm", "x")
	}
}

// One constant time for all files would give a page that changes without changing its length nginx's old ETag, which is
// made of both.
func TestChangedPageHasAnotherETag(t *testing.T) {
	e := newEngine(t)
	dir, write, commit := checkout(t, map[string]string{"Dockerfile": "FROM nginx:1.27-alpine\nCOPY index.html /usr/share/nginx/html/\n", "index.html": "hello\n"})
	tag := func() (etag, page string) {
		t.Helper()
		e.keg("build", "-q", "--reproducible", "-t", "page", dir)
		e.keg("run", "-d", "--name", "web", "-p", "127.0.0.1:18099:80", "page")
		defer e.keg("rm", "-f", "web")
		for range 100 {
			out, err := exec.Command("curl", "-sSi", "--max-time", "5", "http://127.0.0.1:18099/").Output()
			if head, body, ok := strings.Cut(string(out), "\r\n\r\n"); err == nil && ok {
				for line := range strings.SplitSeq(head, "\r\n") {
					if v, ok := strings.CutPrefix(line, "ETag: "); ok {
						return v, body
					}
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatal("nginx does not answer")
		return "", ""
	}
	commit("2024-01-02T03:04:05Z")
	one, page := tag()
	if page != "hello\n" || one == "" {
		t.Fatalf("%q %q", one, page)
	}
	write("index.html", "howdy\n")
	commit("2024-01-02T03:04:06Z")
	if two, page := tag(); page != "howdy\n" || two == one {
		t.Errorf("%q has ETag %s, as the page before", page, two)
	}
	e.keg("system", "prune", "-af")
}

// Python's compiled files remember time and length of their source: if RUN layers were clamped without the variable, or
// sources after they were compiled, they would be stale, or worse, taken for another source's.
func TestPythonsCompiledFilesAreFresh(t *testing.T) {
	e := newEngine(t)
	languageBases(t)
	dir, write, commit := checkout(t, map[string]string{"mod.py": "x = 'one'\n",
		"Dockerfile": "FROM python\nWORKDIR /srv\nCOPY mod.py .\nRUN PYTHONDONTWRITEBYTECODE= python3 -c 'import mod' && find / -name 'mod.*.pyc' | grep .\n"})
	build := func(word string, args ...string) {
		t.Helper()
		e.keg(append(append([]string{"build", "-q", "-t", "py"}, args...), dir)...)
		out := e.keg("run", "--rm", "--network", "none", "py", "sh", "-c", "python3 -v -c 'import mod; print(mod.x)' 2>&1 | grep -E 'mod.*(matches|bytecode is stale)|^(one|two)$'")
		if !strings.Contains(out, " matches /srv/mod.py") || strings.Contains(out, "stale") || !strings.HasSuffix(out, word) {
			t.Errorf("%q: %s", args, out)
		}
	}
	commit("2024-01-02T03:04:05Z")
	build("one")
	build("one", "--reproducible")
	write("mod.py", "x = 'two'\n") // of equal length
	commit("2024-01-02T03:04:06Z")
	build("two")
	build("two", "--reproducible")
	write("mod.py", "x = 'one'\n") // not committed: the file's own time
	build("one")
	e.keg("system", "prune", "-af")
}

// A build reads what it copies in pieces: its largest process does not grow with the files.
func TestBuildNeedsLittleMemory(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	const size = 600 << 20
	f, err := os.Create(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("not all the same "), 1<<16)
	for n := 0; n < size; n += len(block) {
		copy(block, fmt.Append(nil, n))
		f.Write(block)
	}
	f.Close()
	os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox\nCOPY data /data\nRUN wc -c < /data > /size\n"), 0o644)
	e.keg("pull", "-q", "busybox")
	cmd := e.command("build", "-q", "-t", "large", dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error)
	go func() { over <- cmd.Wait() }()
	peak := 0
	for running := true; running; {
		select {
		case err := <-over:
			if running = false; err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
		case <-time.After(5 * time.Millisecond):
			// Not the usage that wait tells: it begins with that of the test, from which keg was forked.
			peak = max(peak, mostMemory(cmd.Process.Pid))
		}
	}
	t.Logf("%d MiB for %d", peak>>10, size>>20)
	if peak == 0 || peak > 200<<10 {
		t.Errorf("the build of %d MiB took %d MiB of memory", size>>20, peak>>10)
	}
	if st, err := os.Stat(filepath.Join(dir, "data")); err != nil || e.keg("run", "--rm", "--network", "none", "large", "cat", "/size") != fmt.Sprint(st.Size()) {
		t.Error("the file is not whole", err)
	}
	// Nothing was compressed: what starts as gzip or zstd came with the base.
	var compressed int64
	filepath.WalkDir(filepath.Join(e.state, "root/blobs"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if st, err := d.Info(); err == nil && st.Size() > compressed {
				compressed = st.Size()
			}
		}
		return nil
	})
	if compressed > 64<<20 {
		t.Errorf("the store has a blob of %d MiB", compressed>>20)
	}
	e.keg("system", "prune", "-af")
}

// mostMemory is the largest resident size that a process or one of its children ever had, in KiB.
func mostMemory(pid int) (most int) {
	pids := []string{fmt.Sprint(pid)}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, l := range lists {
		pids = append(pids, strings.Fields(read(l))...)
	}
	for _, p := range pids {
		exe, _ := os.Readlink("/proc/" + p + "/exe")
		if _, after, ok := strings.Cut(read("/proc/"+p+"/status"), "VmHWM:"); ok && filepath.Base(exe) != "test.test" {
			var n int
			fmt.Sscan(after, &n)
			most = max(most, n)
		}
	}
	return most
}
