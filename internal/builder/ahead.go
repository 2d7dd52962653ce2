// Large files of the context are digested while the steps before the one that copies them are at work.
package builder

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// largeFile is the size from which that is worth a thought.
const largeFile = 1 << 20

// ahead digests for the later steps of one stage.
type ahead struct {
	ready map[*step]chan struct{}
	stop  func()
}

// lookAhead begins with the second step that copies; nil when there is nothing to be gained.
func (s *solver) lookAhead(ctx context.Context, st *stage) *ahead {
	var later []*step
	for _, step := range st.steps {
		if o, ok := step.op.(*copyOp); ok && (o.from == nil || o.from.local != "") {
			later = append(later, step)
		}
	}
	if len(later) < 2 {
		return nil
	}
	later = later[1:]
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{ready: map[*step]chan struct{}{}}
	for _, step := range later {
		a.ready[step] = make(chan struct{})
	}
	over := make(chan struct{})
	a.stop = func() { cancel(); <-over }
	go func() {
		defer close(over)
		for _, step := range later {
			o := step.op.(*copyOp)
			for _, src := range o.sources {
				if src.content == nil && src.git == nil && src.url == "" && ctx.Err() == nil {
					s.digestAhead(o.from, src.sel)
				}
			}
			close(a.ready[step])
		}
	}()
	return a
}

// wait returns when nobody digests for the step any more.
func (a *ahead) wait(ctx context.Context, step *step) {
	if a == nil || a.ready[step] == nil {
		return
	}
	select {
	case <-a.ready[step]:
	case <-ctx.Done():
	}
}

func (a *ahead) end() {
	if a != nil {
		a.stop()
	}
}

// digestAhead remembers the digest of a single large file. What it finds no reason to remember, and every error, is left
// to the step itself.
func (s *solver) digestAhead(from *stage, sel selector) {
	if hasWildcard(sel.Path) || len(sel.Include) > 0 {
		return
	}
	bc, err := s.from(from)
	if err != nil || bc.sums == nil {
		return
	}
	s.walk.Lock()
	at, st, err := bc.resolve(sel.Path, sel.Follow)
	s.walk.Unlock()
	if err != nil || st == nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < largeFile || time.Since(time.Unix(st.Ctim.Unix())) < racy {
		return
	}
	if _, known := bc.sums.find(st); known {
		return
	}
	_ = bc.hash(at, &entry{st: *st}, make([]byte, 256<<10))
}
