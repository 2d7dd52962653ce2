package engine

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"

	"keg/internal/fault"
)

// readAll reads the record of each name, several at once, and keeps the names' order. What is gone
// meanwhile (fault.NotFound) is left out.
func readAll[N, T any](names []N, read func(N) (T, error)) ([]T, error) {
	got := make([]T, len(names))
	errs := make([]error, len(names))
	var next atomic.Int64
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(names) {
				return
			}
			got[i], errs[i] = read(names[i])
		}
	}
	if workers := min(runtime.GOMAXPROCS(0), 8, len(names)/16); workers > 1 {
		var w sync.WaitGroup
		for range workers {
			w.Go(work)
		}
		w.Wait()
	} else {
		work()
	}
	list := got[:0]
	for i, err := range errs {
		switch {
		case err == nil:
			list = append(list, got[i])
		case !fault.Is(err, fault.NotFound):
			return nil, errors.Join(errs[i:]...)
		}
	}
	return list, nil
}
