package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// securityRow is a line of docs/security-tests.md.
type securityRow struct {
	id                    string
	tests, twins, weakens []testName
}

// testName is "sandbox.TestX" in the table: the package below internal/, or this one.
type testName struct{ pkg, name string }

func (n testName) dir() string {
	switch n.pkg {
	case "test":
		return "../test"
	case "cgroup":
		return "../internal/sandbox/cgroup"
	}
	return "../internal/" + n.pkg
}

func securityRows(t *testing.T) (rows []securityRow) {
	b, err := os.ReadFile("../docs/security-tests.md")
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`([a-z]+)\.(Test\w+)`)
	names := func(cell string) (out []testName) {
		for _, m := range word.FindAllStringSubmatch(cell, -1) {
			out = append(out, testName{m[1], m[2]})
		}
		return out
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), " | ")
		if len(f) == 6 && regexp.MustCompile(`^\| [A-Z]{2}\d+$`).MatchString(f[0]) {
			rows = append(rows, securityRow{strings.TrimPrefix(f[0], "| "), names(f[3]), names(f[4]), names(f[5])})
		}
	}
	return rows
}

// TestSecurityTable: every row that is to be there is there, and what it names exists.
func TestSecurityTable(t *testing.T) {
	have := map[string]bool{}
	sources := map[string]string{}
	for _, r := range securityRows(t) {
		have[r.id] = true
		if len(r.tests) == 0 || len(r.twins) == 0 || len(r.weakens) == 0 {
			t.Errorf("row %s lacks a test, a twin or a weakening", r.id)
		}
		for _, n := range append(append(r.tests, r.twins...), r.weakens...) {
			if sources[n.dir()] == "" {
				files, _ := filepath.Glob(n.dir() + "/*_test.go")
				for _, f := range files {
					sources[n.dir()] += read(f)
				}
			}
			if !strings.Contains(sources[n.dir()], "func "+n.name+"(t *testing.T)") {
				t.Errorf("row %s names %s.%s, which does not exist", r.id, n.pkg, n.name)
			}
		}
	}
	for kind, n := range map[string]int{"BL": 7, "RT": 26, "CP": 4, "IM": 11, "RC": 5, "RS": 7, "AP": 4, "NW": 6} {
		for i := 1; i <= n; i++ {
			if id := fmt.Sprint(kind, i); !have[id] {
				t.Errorf("there is no row %s", id)
			}
		}
	}
}

// TestWeakened: with the checks of a row left out its test fails. So none of them passes by accident.
func TestWeakened(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the tests of the rows do")
	}
	if testing.Short() || os.Getenv("KEG_WEAKEN") != "" {
		t.Skip("builds keg and its test programs anew")
	}
	w := &weakened{dir: t.TempDir(), built: map[string]*sync.Once{}}
	for _, r := range securityRows(t) {
		for _, n := range r.weakens {
			if w.built[n.pkg] == nil {
				w.built[n.pkg] = &sync.Once{}
			}
		}
	}
	for _, r := range securityRows(t) {
		for _, n := range r.weakens {
			t.Run(r.id, func(t *testing.T) {
				t.Parallel()
				w.fails(t, r.id, n)
			})
		}
	}
}

type weakened struct {
	dir   string
	built map[string]*sync.Once
}

// program builds the test program of a package once.
func (w *weakened) program(t *testing.T, n testName) string {
	file := filepath.Join(w.dir, n.pkg+".test")
	w.built[n.pkg].Do(func() {
		args := []string{"test", "-tags", "weaken", "-vet=off", "-c", "-o", file, n.dir()}
		if n.pkg == "test" {
			// The test is this program; keg is what is weak.
			args = []string{"build", "-tags", "weaken", "-o", filepath.Join(w.dir, "keg"), "../cmd/keg"}
		}
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("go %q: %v\n%s", args, err, out)
		}
	})
	if n.pkg == "test" {
		return os.Args[0]
	}
	return file
}

// fails runs one test of the weak build and wants it to fail, by itself and not for another reason.
func (w *weakened) fails(t *testing.T, row string, n testName) {
	program := w.program(t, n)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.run", "^"+n.name+"$", "-test.v", "-test.timeout", "3m")
	cmd.Dir = n.dir()
	cmd.Env = append(os.Environ(), "KEG_WEAKEN="+row, "KEG_TEST_BINARY="+filepath.Join(w.dir, "keg"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if !strings.Contains(out.String(), "--- FAIL: "+n.name+" ") || err == nil || ctx.Err() != nil {
		t.Errorf("without the checks of %s, %s.%s does not fail (%v):\n%.3000s", row, n.pkg, n.name, err, out.String())
	}
}
