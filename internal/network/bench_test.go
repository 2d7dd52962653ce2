package network

import (
	"context"
	"slices"
	"testing"
	"time"

	mnet "github.com/moby/moby/api/types/network"
)

// BenchmarkAttach measures what a starting container waits for; Release runs outside
// the clock and is reported as its own metric.
func BenchmarkAttach(b *testing.B) {
	for _, c := range []struct {
		name string
		nets []string
		port bool
		cold bool
	}{
		{"none", nil, false, false},
		{"bridge", []string{"bridge"}, false, false},
		{"bridge+port", []string{"bridge"}, true, false},
		{"user-defined", []string{"mynet"}, false, false},
		{"cold", []string{"bridge"}, false, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := lab(b)
			if _, err := s.Create(context.Background(), CreateOptions{Name: "mynet"}); err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { s.Settle(context.Background()); s.Remove(context.Background(), "mynet") })
			if !c.cold && len(c.nets) > 0 {
				a := attach(b, s, request("keep", c.nets...))
				_ = a
			}
			var took, freed []time.Duration
			for b.Loop() {
				r := request("b", c.nets...)
				if c.port {
					r.Publish = mnet.PortMap{mnet.MustParsePort("80/tcp"): {{HostPort: "18300"}}}
				}
				t0 := time.Now()
				a, err := s.Attach(context.Background(), r)
				if err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if err := a.Release(); err != nil {
					b.Fatal(err)
				}
				took, freed = append(took, t1.Sub(t0)), append(freed, time.Since(t1))
				if c.cold {
					if err := s.Teardown(context.Background()); err != nil {
						b.Fatal(err)
					}
					time.Sleep(50 * time.Millisecond) // the kernel still frees what went
				}
			}
			slices.Sort(took)
			slices.Sort(freed)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "attach-µs")
			b.ReportMetric(float64(took[0].Microseconds()), "attach-min-µs")
			b.ReportMetric(float64(freed[len(freed)/2].Microseconds()), "release-µs")
		})
	}
}
