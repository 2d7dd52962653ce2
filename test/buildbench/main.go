// Command buildbench times builds of keg beside Debian's Docker with BuildKit (-set day: everyday
// commands beside Docker): the same Dockerfiles, contexts and bases, in one run, one after the other in each round, with
// medians. It works in network and mount namespaces and in directories of its own.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"keg/test/private"
)

// row is one measured thing, done by both engines.
type row struct {
	name   string
	aim    string
	rounds int
	before func(e *engine) error // not timed
	do     func(e *engine) error
	alone  bool // only keg does it
	keg    []time.Duration
	docker []time.Duration
}

// engine is a client with its environment.
type engine struct {
	name string
	argv []string
	env  []string
	peak int64 // KiB, of the largest process that was waited for
}

func main() {
	keg := flag.String("keg", "bin/keg", "binary under test")
	rounds := flag.Int("rounds", 7, "rounds of the quick rows; the large ones are done once or twice")
	size := flag.Int("mb", 1400, "size of each of the four tars")
	set := flag.String("set", "build", "what to time: build, or day (lists, logs, copies, archives)")
	only := flag.String("only", "", "comma-separated prefixes of rows")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "buildbench: needs root")
		os.Exit(1)
	}
	private.Enter()
	if err := run(*keg, *rounds, *size, *set, *only); err != nil {
		fmt.Fprintln(os.Stderr, "buildbench:", err)
		os.Exit(1)
	}
}

func run(keg string, rounds, mb int, set, only string) error {
	dir, err := os.MkdirTemp("", "kegbb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if keg, err = filepath.Abs(keg); err != nil {
		return err
	}
	b := &bench{dir: dir, mb: mb, rounds: rounds}
	defer b.end()
	ours := &engine{name: "keg", argv: []string{keg}, env: append(os.Environ(), "KEG_ROOT="+dir+"/root", "KEG_RUN_ROOT="+dir+"/run")}
	theirs, err := b.startDocker()
	if err != nil {
		return err
	}
	var rows []*row
	switch set {
	case "build":
		if err := b.prepare(ours, theirs); err != nil {
			return err
		}
		rows = b.rows()
	case "day":
		d := &day{b.dir, mb}
		if err := b.prepareDay(d, ours, theirs); err != nil {
			return err
		}
		rows = d.rows(rounds)
	default:
		return fmt.Errorf("unknown -set %q", set)
	}
	if only != "" {
		rows = slices.DeleteFunc(rows, func(r *row) bool {
			return !slices.ContainsFunc(strings.Split(only, ","), func(p string) bool { return strings.HasPrefix(r.name, p) })
		})
	}
	for _, r := range rows {
		fmt.Fprintln(os.Stderr, "...", r.name)
		if err := r.measure(ours, theirs); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "   ", r.line())
	}
	print(rows)
	if set == "build" {
		fmt.Printf("\nThe largest process of keg's builds held %d MiB.\n", ours.peak>>10)
	}
	return nil
}

func (r *row) measure(ours, theirs *engine) error {
	for range r.rounds {
		for _, e := range []*engine{ours, theirs} {
			if r.alone && e == theirs {
				continue
			}
			if r.before != nil {
				if err := r.before(e); err != nil {
					return fmt.Errorf("%s, %s: %w", r.name, e.name, err)
				}
			}
			start := time.Now()
			if err := r.do(e); err != nil {
				return fmt.Errorf("%s, %s: %w", r.name, e.name, err)
			}
			if d := time.Since(start); e == ours {
				r.keg = append(r.keg, d)
			} else {
				r.docker = append(r.docker, d)
			}
		}
	}
	return nil
}

func (e *engine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(e.argv[0], append(e.argv[1:len(e.argv):len(e.argv)], args...)...)
	cmd.Env = e.env
	return cmd
}

// run executes a command of the engine's client.
func (e *engine) run(args ...string) error {
	cmd := e.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil {
		return fmt.Errorf("%s %q: %w\n%s", e.name, args, err, out.Bytes())
	}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && args[0] == "build" {
		e.peak = max(e.peak, u.Maxrss)
	}
	return nil
}

func median(ds []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return s[len(s)/2]
}

func print(rows []*row) {
	fmt.Println("| build | rounds | keg ms | BuildKit ms | ratio | aim |")
	fmt.Println("|---|---:|---:|---:|---:|---|")
	for _, r := range rows {
		fmt.Println(r.line())
	}
}

func (r *row) line() string {
	k, d := median(r.keg), median(r.keg)
	if !r.alone {
		d = median(r.docker)
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }
	if r.alone {
		return fmt.Sprintf("| %s | %d | %s | | | %s |", r.name, r.rounds, ms(k), r.aim)
	}
	return fmt.Sprintf("| %s | %d | %s | %s | 1/%.1f | %s |", r.name, r.rounds, ms(k), ms(d), float64(d)/float64(k), r.aim)
}
