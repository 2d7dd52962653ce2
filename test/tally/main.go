// Command tally runs `go test -json` and closes with "N passed, N failed, N skipped".
// It fails when a test failed, when fewer ran than the minimum and, if told so, when
// one skipped. Several commands with a "+" between them run at once and count as one.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type tally struct {
	mu                      sync.Mutex
	broken                  bool // a command failed
	long                    []event
	passed, failed, skipped int
	output                  map[string][]string
	skips, failures         []string
}

func main() {
	noSkips := flag.Bool("no-skips", false, "a skipped test is a failure")
	atLeast := flag.Int("at-least", 0, "how many tests must pass")
	flag.Parse()
	t := tally{output: map[string][]string{}}
	var all sync.WaitGroup
	for _, words := range commands(flag.Args()) {
		all.Go(func() { t.run(words) })
	}
	all.Wait()
	bad := t.broken || t.failed > 0
	if *noSkips && t.skipped > 0 {
		bad = true
		fmt.Println("skipped, which this run does not allow:")
		for _, s := range t.skips {
			fmt.Println("  ", s)
		}
	}
	if t.passed < *atLeast {
		bad = true
		fmt.Printf("only %d tests passed; there were %d (test/tally/minimum)\n", t.passed, *atLeast)
	}
	slices.SortFunc(t.long, func(x, y event) int { return cmp.Compare(y.Elapsed, x.Elapsed) })
	fmt.Println("the longest:")
	for _, e := range t.long[:min(12, len(t.long))] {
		fmt.Printf("   %s %s %.0fs\n", e.Package, e.Test, e.Elapsed)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if bad {
		os.Exit(1)
	}
}

// commands parts the words at each "+".
func commands(words []string) (all [][]string) {
	for {
		i := slices.Index(words, "+")
		if i < 0 {
			return append(all, words)
		}
		all, words = append(all, words[:i]), words[i+1:]
	}
}

func (t *tally) run(words []string) {
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		t.fails()
		return
	}
	in := bufio.NewScanner(out)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		t.mu.Lock()
		t.line(in.Bytes())
		t.mu.Unlock()
	}
	if cmd.Wait() != nil {
		t.fails()
	}
}

func (t *tally) fails() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.broken = true
}

func (t *tally) line(b []byte) {
	var e event
	if json.Unmarshal(b, &e) != nil {
		fmt.Println(string(b))
		return
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		t.output[key] = append(t.output[key], e.Output)
		if e.Action == "build-output" {
			fmt.Print(e.Output)
		}
	case "pass":
		if e.Test != "" {
			t.passed++
			if e.Elapsed > 5 && !strings.Contains(e.Test, "/") {
				t.long = append(t.long, e)
			}
			delete(t.output, key)
		} else {
			fmt.Printf("ok   %s %.1fs\n", e.Package, e.Elapsed)
		}
	case "skip":
		if e.Test != "" {
			t.skipped++
			t.skips = append(t.skips, key+": "+reason(t.output[key]))
		}
	case "fail":
		if e.Test != "" {
			t.failed++
		}
		t.failures = append(t.failures, key)
		fmt.Printf("FAIL %s\n%s", key, strings.Join(t.output[key], ""))
	}
}

// reason is the sentence that a test skipped with.
func reason(output []string) string {
	i := slices.IndexFunc(output, func(s string) bool { return strings.Contains(s, "_test.go:") })
	if i < 0 {
		return "no reason given"
	}
	return strings.TrimSpace(output[i])
}
