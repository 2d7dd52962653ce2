// Command tally runs `go test -json` and closes with "N passed, N failed, N skipped".
// It fails when a test failed, when fewer ran than the minimum and, if told so, when
// one skipped.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type tally struct {
	passed, failed, skipped int
	output                  map[string][]string
	skips, failures         []string
}

func main() {
	noSkips := flag.Bool("no-skips", false, "a skipped test is a failure")
	atLeast := flag.Int("at-least", 0, "how many tests must pass")
	flag.Parse()
	cmd := exec.Command(flag.Arg(0), flag.Args()[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
	t := tally{output: map[string][]string{}}
	in := bufio.NewScanner(out)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		t.line(in.Bytes())
	}
	err = cmd.Wait()
	bad := err != nil || t.failed > 0
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
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if bad {
		os.Exit(1)
	}
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
