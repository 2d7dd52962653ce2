package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestConfinementIsOne: what a process may do does not depend on whether it is the container's program, an
// exec, a step of a build or a health check; and it is what was reviewed, for root and for a user.
func TestConfinementIsOne(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers of root's")
	}
	dir, err := os.MkdirTemp("", "kegconfine-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	context := filepath.Join(dir, "context")
	os.Mkdir(context, 0o755)
	build := exec.Command("go", "build", "-o", filepath.Join(context, "probe"), "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	c := &confinement{t: t, dir: dir, context: context}
	for _, who := range []struct{ name, user string }{{"root", "0"}, {"user", "1000:1000"}} {
		t.Run(who.name, func(t *testing.T) { c.compare(t, who.name, who.user) })
	}
}

type confinement struct {
	t            *testing.T
	dir, context string
}

func (c *confinement) keg(args ...string) string {
	c.t.Helper()
	keg, _ := filepath.Abs(filepath.Join(bin, "keg"))
	cmd := exec.Command(keg, args...)
	cmd.Env = append(os.Environ(), "KEG_ROOT="+filepath.Join(c.dir, "root"), "KEG_RUN_ROOT="+filepath.Join(c.dir, "run"))
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		c.t.Fatalf("keg %q: %v\n%s%s", args, err, words.String(), out.String())
	}
	return out.String()
}

func (c *confinement) compare(t *testing.T, name, user string) {
	out := filepath.Join(c.dir, "out-"+name)
	os.Mkdir(out, 0o777)
	os.Chmod(out, 0o777)
	os.WriteFile(filepath.Join(c.context, "Dockerfile"), []byte("FROM scratch\nCOPY probe /probe\nRUN [\"/probe\", \"-dir\", \"/out\"]\nUSER "+user+
		"\nRUN --network=none [\"/probe\", \"/out/table\"]\nHEALTHCHECK --interval=1s --start-period=1s CMD [\"/probe\", \"/health/table\"]\nCMD [\"/probe\"]\n"), 0o644)
	c.keg("build", "-q", "-t", name, c.context)
	run := c.keg("run", "--rm", "--net", "none", name)
	step := c.keg("run", "--rm", "--net", "none", name, "/probe", "-cat", "/out/table")
	c.keg("run", "-d", "--net", "none", "--name", name, "-v", out+":/health", name, "/probe", "-sleep", "now")
	defer c.keg("rm", "-f", name)
	entered := c.keg("exec", name, "/probe")
	for end := time.Now().Add(time.Minute); read(filepath.Join(out, "table")) == ""; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no health check came")
		}
	}
	// Its volume, and nothing else, is its own.
	health := without(read(filepath.Join(out, "table")), "mount /health")
	file := filepath.Join("testdata", "confinement", name+".txt")
	if *update {
		os.MkdirAll(filepath.Dir(file), 0o755)
		os.WriteFile(file, []byte(run), 0o644)
	}
	want := read(file)
	for _, other := range []struct{ name, table string }{{"run", run}, {"exec", without(entered, "mount /health")}, {"RUN", step}, {"health check", health}} {
		if d := differences(want, other.table); d != "" {
			t.Errorf("%s differs from what was reviewed (%s):\n%s", other.name, file, d)
		}
	}
}

// without leaves out lines.
func without(table, prefix string) string {
	var b strings.Builder
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, prefix) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func differences(want, got string) string {
	var b strings.Builder
	for _, side := range []struct{ sign, a, b string }{{"-", want, got}, {"+", got, want}} {
		have := map[string]bool{}
		for line := range strings.Lines(side.b) {
			have[line] = true
		}
		for line := range strings.Lines(side.a) {
			if !have[line] {
				b.WriteString(side.sign + line)
			}
		}
	}
	return b.String()
}
