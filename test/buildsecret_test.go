package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSecretIsFoundNowhere: a secret that a build used is not in the store, the history,
// the cache, what was printed, the list of processes, or a saved image; not even after the
// build was killed while it used the secret.
func TestSecretIsFoundNowhere(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	canary := fmt.Sprintf("%x", rand.Text())
	secret := filepath.Join(dir, "secret")
	os.WriteFile(secret, []byte(canary), 0o600)
	ctx := filepath.Join(dir, "context")
	os.Mkdir(ctx, 0o755)
	file := func(text string) { os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte(text), 0o644) }
	e.keg("pull", "-q", "busybox")
	seen := e.watchProcesses(t, canary)

	// The positive twin: the steps do get it.
	sum := fmt.Sprintf("%x  -", sha256.Sum256([]byte(canary)))
	file("FROM busybox\n" +
		"RUN --mount=type=secret,id=s sha256sum < /run/secrets/s > /sum && sleep 1\n" +
		"RUN --mount=type=secret,id=s,env=TOKEN printf %s \"$TOKEN\" | sha256sum > /sum2\n" +
		"RUN --mount=type=secret,id=s,target=/root/.npmrc,required test -s /root/.npmrc\n" +
		"ONBUILD RUN --mount=type=secret,id=s true\n")
	out, errs, code := e.try("build", "--progress", "plain", "--explain", "--secret", "id=s,src="+secret, "-t", "safe", ctx)
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	for _, p := range []string{"/sum", "/sum2"} {
		if got := e.keg("run", "--rm", "safe", "cat", p); got != sum {
			t.Errorf("%s is %q, not %q", p, got, sum)
		}
	}
	printed := out + errs
	for _, args := range [][]string{
		{"history", "--no-trunc", "safe"}, {"image", "inspect", "safe"}, {"builder", "du"}, {"why", "safe"}, {"system", "df", "-v"},
		{"events", "--since", "0", "--until", fmt.Sprint(time.Now().Unix() + 1)},
	} {
		o, x, _ := e.try(args...)
		printed += o + x
	}
	if strings.Contains(printed, canary) {
		t.Error("a command printed the secret")
	}
	saved := filepath.Join(dir, "saved.tar")
	e.keg("save", "-o", saved, "safe")
	for _, root := range []string{e.state, saved} {
		for _, p := range filesWith(t, root, canary) {
			t.Errorf("%s has the secret", p)
		}
	}

	// Killed while a step uses it, and then built without it.
	file("FROM busybox\nRUN --mount=type=secret,id=s sleep 1000\n")
	cmd := e.command("build", "--secret", "id=s,src="+secret, ctx)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); len(filesWith(t, filepath.Join(e.state, "run"), canary)) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the step has not got its secret after 30 s")
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	file("FROM busybox\nRUN true\n")
	e.keg("build", "-q", ctx)
	for _, p := range filesWith(t, e.state, canary) {
		t.Errorf("%s has the secret of a killed build", p)
	}
	if p := seen(); p != "" {
		t.Errorf("the command line of a process had the secret: %s", p)
	}
	e.keg("system", "prune", "-af")
}

// watchProcesses looks at all command lines until the returned function is called.
func (e *engine) watchProcesses(t *testing.T, canary string) func() string {
	ctx, stop := context.WithCancel(context.Background())
	found := make(chan string, 1)
	go func() {
		first := ""
		for ctx.Err() == nil {
			all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, p := range all {
				if b, _ := os.ReadFile(p); first == "" && bytes.Contains(b, []byte(canary)) {
					first = string(b)
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		found <- first
	}()
	t.Cleanup(stop)
	return func() string { stop(); return <-found }
}

// filesWith lists the files below root that have the text in their name or content.
func filesWith(t *testing.T, root, text string) (found []string) {
	t.Helper()
	filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // gone meanwhile
		}
		b, err := os.ReadFile(p)
		if err == nil && bytes.Contains(b, []byte(text)) || strings.Contains(p, text) {
			found = append(found, p)
		}
		return nil
	})
	return found
}
