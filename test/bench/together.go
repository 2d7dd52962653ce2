package main

// Several at once: how many a second, and how long the slowest takes.

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// together times four and sixteen starts at once, keg beside runc, one after the other in each round.
func (b *bench) together(rounds int) error {
	rounds = max(rounds, 3)
	if err := b.copies(16); err != nil {
		return err
	}
	runc := func(i int) *row {
		return &row{name: "runc run", argv: []string{"runc", "--root", b.dir + "/runc", "run", "--bundle", fmt.Sprintf("%s/bundle%d", b.dir, i), fmt.Sprint("many", i)}, env: os.Environ()}
	}
	keg := func(i int) *row {
		return &row{name: "keg run", argv: []string{b.keg, "run", "--rm", "--network", "none", "--name", fmt.Sprint("many", i), "bench", "true"}, env: b.env}
	}
	rate := map[string][]float64{}
	for range rounds {
		for name, of := range map[string]func(int) *row{"runc run": runc, "keg run": keg} {
			begun := time.Now()
			ts, err := lanes(4, 5, of)
			if err != nil {
				return err
			}
			rate[name] = append(rate[name], float64(len(ts))/time.Since(begun).Seconds())
		}
	}
	mid := func(f []float64) float64 { slices.Sort(f); return f[len(f)/2] }
	k, r := mid(rate["keg run"]), mid(rate["runc run"])
	fmt.Printf("\nFour at once, %d rounds of 20: keg run --rm --network none %.0f a second, runc run %.0f a second, ratio %.2f\n", rounds, k, r, k/r)
	var all []time.Duration
	const sixteen = 20
	for range sixteen {
		ts, err := lanes(16, 1, keg)
		if err != nil {
			return err
		}
		all = append(all, ts...)
	}
	slices.Sort(all)
	p99, m := all[len(all)*99/100], median(all)
	fmt.Printf("Sixteen at once, %d rounds: median %.1f ms, p99 %.1f ms, ratio %.2f\n", sixteen, ms(m), ms(p99), float64(p99)/float64(m))
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// copies gives each lane of runc a bundle of its own.
func (b *bench) copies(n int) error {
	for i := range n {
		name := fmt.Sprint("bundle", i)
		if err := os.Mkdir(b.dir+"/"+name, 0o755); err != nil {
			return err
		}
		if err := b.bundle(name, "true"); err != nil {
			return err
		}
	}
	return nil
}

// lanes runs each of n rows some times, one after the other, beside the others.
func lanes(n, times int, of func(int) *row) (all []time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		r := of(i)
		wg.Go(func() {
			for range times {
				d, e := r.once()
				mu.Lock()
				all = append(all, d)
				if e != nil {
					err = e
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all, err
}
