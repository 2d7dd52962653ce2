// Command netbench measures what TCP loses on keg's networks, beside a bare pair of veths in the same run, and how fast names
// are answered. It works in network and mount namespaces and in directories of its own.
//
//	go run ./test/netbench -keg bin/keg -rounds 5 -time 10s
//
// The rows, one after the other in each round, in a new order each time:
//
//	bare       neighbour ── veth ── host                                   the measure
//	bridge     container ── veth ── bridge ── veth ── container            two neighbours on one network
//	published  neighbour ── veth ── host ── bridge ── veth ── container    -p 7001:7000
//	loopback   host ── proxy ── bridge ── veth ── container                -p 127.0.0.1:7002:7000
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"keg/test/private"
)

// row is one way that the bytes take.
type row struct {
	name    string
	aim     float64   // of the bare pair's median
	netns   string    // where it is sent from
	to      string    // and where to
	speeds  []float64 // GB a second
	percent []float64 // of the bare pair in the same round
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "sink":
			die(sink(os.Args[2]))
		case "send":
			die(send(os.Args[2], os.Args[3]))
		case "ask":
			die(ask(os.Args[2], os.Args[3]))
		}
	}
	keg := flag.String("keg", "bin/keg", "binary under test")
	rounds := flag.Int("rounds", 5, "rounds")
	long := flag.Duration("time", 10*time.Second, "of one row in one round")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "netbench: needs root")
		os.Exit(1)
	}
	private.Enter()
	die(run(*keg, *rounds, *long))
}

func die(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(keg string, rounds int, long time.Duration) error {
	l, err := newLab(keg)
	if err != nil {
		return err
	}
	defer l.close()
	rows, err := l.furnish()
	if err != nil {
		return err
	}
	for range rounds {
		order := rand.Perm(len(rows))
		now := make([]float64, len(rows))
		for _, i := range order {
			r := rows[i]
			if now[i], err = l.measure(r.netns, r.to, long); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			r.speeds = append(r.speeds, now[i])
		}
		for i, r := range rows {
			r.percent = append(r.percent, 100*now[i]/now[0])
		}
	}
	fmt.Printf("%-10s %12s %12s %12s %6s\n", "row", "GB/s", "slowest", "of bare %", "aim %")
	for _, r := range rows {
		fmt.Printf("%-10s %12.2f %12.2f %12.1f %6.0f\n", r.name, median(r.speeds), slices.Min(r.speeds), median(r.percent), r.aim)
	}
	return l.names()
}

func median(of []float64) float64 {
	s := slices.Sorted(slices.Values(of))
	return s[len(s)/2]
}
