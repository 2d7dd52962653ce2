package test

import (
	"os"
	"path/filepath"
	"testing"
)

// IM10: images that come from elsewhere with the history of what is built here, under its names, give no step of a build.
func TestPulledHistoryIsNoCache(t *testing.T) {
	here, there := newEngine(t), newEngine(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return filepath.Dir(path)
	}
	base, app := "FROM busybox\nCOPY f /f\n", "FROM base:1\nRUN cat /f > /g\n"
	honest := write("honest/f", "honest")
	write("honest/Dockerfile", base)
	write("honest/app", app)
	evil := write("evil/f", "evil")
	write("evil/Dockerfile", base)
	write("evil/app", app)
	// The same lines elsewhere, with other files: history and names are those of the honest images.
	for _, e := range []struct {
		*engine
		dir string
	}{{there, evil}, {here, honest}} {
		e.keg("build", "-q", "-t", "base:1", e.dir)
		e.keg("build", "-q", "-t", "app:1", "-f", filepath.Join(e.dir, "app"), e.dir)
	}
	forged := filepath.Join(dir, "forged.tar")
	there.keg("save", "-o", forged, "base:1", "app:1")
	result := func(want, when string) {
		t.Helper()
		here.keg("build", "-q", "-t", "result", "-f", filepath.Join(honest, "app"), honest)
		if got := here.keg("run", "--rm", "result", "cat", "/g"); got != want {
			t.Errorf("%s: %q, not %q", when, got, want)
		}
	}
	before := here.keg("image", "inspect", "-f", "{{.Id}}", "app:1")
	here.keg("build", "-q", "-t", "again", "-f", filepath.Join(honest, "app"), honest)
	if after := here.keg("image", "inspect", "-f", "{{.Id}}", "again"); after != before {
		t.Errorf("what was built here is not in the cache: %s, then %s", before, after)
	}
	here.keg("load", "-q", "-i", forged)
	result("evil", "on another base of the same name") // and not the step that is in the cache for the honest one
	here.keg("build", "-q", "-t", "base:1", honest)
	result("honest", "on the honest base again")
	here.keg("builder", "prune", "-a", "-f")
	result("honest", "with nothing in the cache but a forged image here")
}
