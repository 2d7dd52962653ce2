// Command bench times keg beside its peers: shuffled, interleaved rounds in one run,
// medians, and ratios to a bare `runc run` of a prepared bundle. It works in network and
// mount namespaces and in directories of its own, and ends with a look for leaks.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"keg/test/private"
)

// row is one command that is timed.
type row struct {
	name  string
	base  string // the row whose median the ratio is to
	argv  []string
	env   []string
	user  *syscall.Credential
	times []time.Duration
}

func main() {
	keg := flag.String("keg", "bin/keg", "binary under test")
	rounds := flag.Int("rounds", 40, "timed rounds; two more warm up")
	docker := flag.Bool("docker", true, "also time Docker, when its engine starts here")
	only := flag.String("only", "", "comma-separated prefixes of rows to time; the bases are always timed")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: needs root")
		os.Exit(1)
	}
	private.Enter()
	if err := run(*keg, *rounds, *docker, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(keg string, rounds int, withDocker bool, only string) error {
	dir, err := os.MkdirTemp("", "kegbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if keg, err = filepath.Abs(keg); err != nil {
		return err
	}
	b := &bench{dir: dir, keg: keg, env: append(os.Environ(), "KEG_ROOT="+dir+"/root", "KEG_RUN_ROOT="+dir+"/run")}
	if err := b.prepare(); err != nil {
		return err
	}
	defer b.end()
	rows := b.rows()
	if withDocker {
		if err := b.startDocker(); err != nil {
			fmt.Println("Docker is not timed:", err)
		} else {
			rows = append(rows, b.dockerRows()...)
		}
	}
	if only != "" {
		rows = slices.DeleteFunc(rows, func(r *row) bool {
			isBase := slices.ContainsFunc(rows, func(o *row) bool { return o.base == r.name })
			return !isBase && !slices.ContainsFunc(strings.Split(only, ","), func(p string) bool { return strings.HasPrefix(r.name, p) })
		})
	}
	before := b.host()
	if err := measure(rows, rounds); err != nil {
		return err
	}
	print(rows, rounds)
	printDocker(rows)
	if err := b.together(rounds / 2); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	known := func(x string) bool { return slices.Contains(before, x) }
	if left := slices.DeleteFunc(b.host(), known); len(left) > 0 {
		return fmt.Errorf("left on the host 2 s after the last run: %q", left)
	}
	fmt.Println("\nLeak snapshot 2 s after the last run: empty.")
	return b.memory()
}

// measure times every row once a round, in a new order each round.
func measure(rows []*row, rounds int) error {
	for round := range rounds + 2 {
		for _, i := range rand.Perm(len(rows)) {
			d, err := rows[i].once()
			if err != nil {
				return err
			}
			if round >= 2 {
				rows[i].times = append(rows[i].times, d)
			}
		}
	}
	return nil
}

func (r *row) once() (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.argv[0], r.argv[1:]...)
	cmd.Env = r.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.user}
	var errs strings.Builder
	cmd.Stderr = &errs
	start := time.Now()
	err := cmd.Run()
	d := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("%s: %q: %w\n%s", r.name, r.argv, err, errs.String())
	}
	return d, nil
}

func median(ds []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return s[len(s)/2]
}

func print(rows []*row, rounds int) {
	medians := map[string]time.Duration{}
	for _, r := range rows {
		medians[r.name] = median(r.times)
	}
	fmt.Printf("\n%d interleaved rounds; milliseconds\n\n", rounds)
	fmt.Println("| command | min | median | ratio | to |")
	fmt.Println("|---|---:|---:|---:|---|")
	for _, r := range rows {
		ms := func(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }
		ratio := fmt.Sprintf("%.2f", float64(medians[r.name])/float64(medians[r.base]))
		fmt.Printf("| %s | %s | %s | %s | %s |\n", r.name, ms(slices.Min(r.times)), ms(medians[r.name]), ratio, r.base)
	}
}

// printDocker compares keg's rows with Docker's of the same words.
func printDocker(rows []*row) {
	of := map[string]time.Duration{}
	for _, r := range rows {
		of[r.name] = median(r.times)
	}
	fmt.Println()
	for _, r := range rows {
		if d := of[strings.Replace(r.name, "keg", "docker", 1)]; strings.HasPrefix(r.name, "keg") && d > 0 {
			fmt.Printf("%s: 1/%.1f of %s\n", r.name, float64(d)/float64(of[r.name]), strings.Replace(r.name, "keg", "docker", 1))
		}
	}
}
