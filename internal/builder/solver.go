// The solver: stages at once, each step from the cache or done.
package builder

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/image"
	"keg/internal/snapshot"
	"keg/internal/store"
)

// op is the work of a step.
type op interface {
	// inputs adds what the result depends on, beside what it stands on.
	inputs(ctx context.Context, s *solver, in *inputs) error
	// perform changes the active snapshot w.key.
	perform(ctx context.Context, s *solver, w *work) error
	// reads lists the stages that it needs finished.
	reads() []*stage
}

// work is a step being done.
type work struct {
	key   string // active snapshot
	name  string // of the step
	below []digest.Digest
	v     *vertex
	epoch *time.Time

	places []string // made for mounts: they are not of the image while they are empty
}

// solver does one build.
type solver struct {
	deps
	plan    *plan
	context *buildContext
	results map[*stage]*result

	once   sync.Once  // of the first failure
	walk   sync.Mutex // one at a time walks the context: matchers are not for several
	mu     sync.Mutex
	holder *disk.Dir
	layers snapshot.Lease // on what this build relies on, once it makes something
	held   store.Lease    // on the blobs of the image, until its names are set
	n      atomic.Int64
	keys   map[string]*result // steps by key: equal ones are done once
	sealed map[string]*tree   // views of finished stages
	load   *vertex            // "load build context"
	last   *lastBuild         // of the time before
	done   []lastStep
	reruns map[*step]ran

	opened   map[*stage]*buildContext
	checkout func() *time.Time // of the context's commit; nil: not a clean checkout
}

// result is a stack that somebody may be waiting for.
type result struct {
	ready  chan struct{}
	stack  []digest.Digest
	record []*Record // of the steps of the stage and of the stages that it stands on
	err    error
}

func newSolver(d deps, p *plan, bc *buildContext) *solver {
	s := &solver{deps: d, plan: p, context: bc, results: map[*stage]*result{},
		keys: map[string]*result{}, sealed: map[string]*tree{}, reruns: map[*step]ran{}}
	s.checkout = sync.OnceValue(func() *time.Time {
		// It is asked for by the first step that copies, whose own context may end before others do.
		if t, ok := CommitTime(context.Background(), bc.dir); ok {
			return &t
		}
		return nil
	})
	bc.sums = loadSums(d.cache.sumsFile(s.buildID()))
	return s
}

func (s *solver) close() {
	for _, t := range s.sealed {
		t.root.Close()
	}
	if s.layers != nil {
		s.layers.Release()
	}
	if s.held != nil {
		s.held.Release()
	}
	if s.holder != nil {
		s.holder.Remove()
	}
	s.context.sums.save()
	for _, bc := range s.opened {
		bc.sums.save()
		bc.close()
	}
}

// solve makes all needed stages, those that do not wait for each other in parallel,
// and returns the target's result.
func (s *solver) solve(ctx context.Context, target *stage) (*result, error) {
	needed := s.plan.reach()
	for _, st := range needed {
		s.results[st] = &result{ready: make(chan struct{})}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, st := range needed {
		r := s.results[st]
		g.Go(func() error {
			defer close(r.ready)
			r.stack, r.record, r.err = s.stage(ctx, st)
			return r.err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	s.saveLast()
	return s.results[target], nil
}

// wait returns the stack of a finished stage.
func (s *solver) wait(ctx context.Context, st *stage) (*result, error) {
	r := s.results[st]
	select {
	case <-r.ready:
		return r, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// stage does the steps of one stage, one after the other.
func (s *solver) stage(ctx context.Context, st *stage) ([]digest.Digest, []*Record, error) {
	var stack []digest.Digest
	var records []*Record
	switch {
	case st.base != nil:
		r, err := s.wait(ctx, st.base)
		if err != nil {
			return nil, nil, err
		}
		stack, records = r.stack, r.record
	case st.image != nil:
		stack = st.image.Config.RootFS.DiffIDs
		if v := s.progress.start(st.fromMsg); s.plan.uncached(st) {
			v.done(nil)
		} else {
			v.cached()
		}
	}
	a := s.lookAhead(ctx, st)
	defer a.end()
	for _, step := range st.steps {
		a.wait(ctx, step)
		for _, f := range step.op.reads() {
			if _, err := s.wait(ctx, f); err != nil {
				return nil, nil, err
			}
		}
		r, err := s.step(ctx, step, stack)
		if err != nil {
			return nil, nil, s.plan.file.At(step.at, err)
		}
		stack = append(stack[:len(stack):len(stack)], r.Layer)
		records = append(records[:len(records):len(records)], r)
	}
	return stack, records, nil
}

// step gives a step's layer: from the cache when the key is known, else by doing it.
func (s *solver) step(ctx context.Context, step *step, below []digest.Digest) (_ *Record, err error) {
	in := s.newInputs(step, below)
	v, err := s.readInputs(ctx, step, in)
	if err != nil {
		return nil, err
	}
	key := in.key()
	s.note(step, key)
	r, first := s.claim(key)
	if !first {
		select {
		case <-r.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if r.err != nil {
			return nil, r.err
		}
		if v == nil {
			v = s.progress.start(step.name)
		}
		v.cached()
		return r.record[0], nil
	}
	defer func() {
		r.err = err
		close(r.ready)
	}()
	if v == nil {
		v = s.progress.start(step.name)
	}
	rec, reason := s.lookup(step, key, below)
	if rec != nil {
		v.cached()
		r.record = []*Record{rec}
		return rec, nil
	}
	if rec = s.bring(ctx, step, key, below, v); rec != nil {
		v.cached()
		r.record = []*Record{rec}
		return rec, s.cache.put(rec, in.all())
	}
	var diff *change
	if reason == "" {
		reason, diff = s.explain(step, in)
	}
	v.reason(reason)
	rec, err = s.perform(ctx, step, below, key, v)
	v.done(err)
	if err != nil {
		return nil, err
	}
	s.rerun(step, in, diff, rec.Took)
	r.record = []*Record{rec}
	return rec, s.cache.put(rec, in.all())
}

func (s *solver) newInputs(step *step, below []digest.Digest) *inputs {
	in := &inputs{}
	parent := image.ChainID(below).String()
	if step.n == 0 && step.stage.image != nil {
		in.add(kindBase, step.stage.image.Ref.Familiar(), parent)
	} else {
		in.add(kindParent, "", parent)
	}
	if e := s.plan.epoch; e != nil {
		in.add(kindEpoch, "", fmt.Sprint(e.Unix()))
	}
	return in
}

// readInputs collects the inputs. An error gets the step's own vertex.
func (s *solver) readInputs(ctx context.Context, step *step, in *inputs) (v *vertex, err error) {
	if err = step.op.inputs(ctx, s, in); err != nil {
		err = s.missing(step, err)
		v = s.progress.start(step.name)
		v.done(err)
	}
	return v, err
}

// claim registers a key; first is true for the one who does the work.
func (s *solver) claim(key string) (r *result, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.keys[key]; ok {
		return r, false
	}
	r = &result{ready: make(chan struct{})}
	s.keys[key] = r
	return r, true
}

// lookup finds a valid record, or the reason why there cannot be one ("" when the
// inputs will tell).
func (s *solver) lookup(step *step, key string, below []digest.Digest) (*Record, string) {
	if step.noCache {
		return nil, "the cache was not asked (--no-cache)"
	}
	rec, ok := s.cache.get(key)
	if !ok {
		return nil, ""
	}
	stack := append(below[:len(below):len(below)], rec.Layer)
	if s.snaps.Has(stack) < len(stack) {
		return nil, "its layer is no longer there"
	}
	s.cache.touch(key, time.Now())
	return rec, ""
}

// perform does the step on a new active snapshot and commits it. Whatever ends it,
// the snapshot is gone or found by Sweep.
func (s *solver) perform(ctx context.Context, step *step, below []digest.Digest, key string, v *vertex) (_ *Record, err error) {
	start := time.Now()
	active, err := s.newActive()
	if err != nil {
		return nil, err
	}
	if err := s.keep(ctx, below); err != nil {
		return nil, err
	}
	if err := s.snaps.Prepare(ctx, active, below); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.snaps.Remove(active)
		}
	}()
	epoch := s.epochOf(step)
	w := &work{key: active, name: step.name, below: below, v: v, epoch: epoch}
	if err := step.op.perform(ctx, s, w); err != nil {
		return nil, s.missing(step, err)
	}
	c, err := s.snaps.Commit(ctx, active, snapshot.CommitOptions{Epoch: epoch, Omit: w.places})
	if err != nil {
		return nil, err
	}
	if c.Empty {
		s.snaps.Remove(active)
		if c, err = s.emptyLayer(ctx, below); err != nil {
			return nil, err
		}
	}
	if err := s.keep(ctx, append(below[:len(below):len(below)], c.DiffID)); err != nil {
		return nil, err
	}
	rec := &Record{Key: key, Step: plainName(step.name), Layer: c.DiffID, Size: c.Size, Stack: below,
		Created: time.Now().UTC(), Took: time.Since(start)}
	if s.plan.epoch != nil {
		rec.Created = *s.plan.epoch
	}
	return rec, nil
}

// epochOf is the time that no file of a step's layer is younger than: SOURCE_DATE_EPOCH, else, for what is copied
// in a clean git checkout, that of the commit. The latter is no input of the step: a new commit does not make
// what it did not touch be copied again.
func (s *solver) epochOf(step *step) *time.Time {
	if s.plan.epoch != nil {
		return s.plan.epoch
	}
	if _, copies := step.op.(*copyOp); copies {
		return s.checkout()
	}
	return nil
}

// emptyTar is a tar without entries. BuildKit gives a step that changes nothing this
// layer, so that history and layers agree.
var emptyTar [1024]byte

func (s *solver) emptyLayer(ctx context.Context, below []digest.Digest) (snapshot.Committed, error) {
	want := digest.FromBytes(emptyTar[:])
	c := snapshot.Committed{DiffID: want, Size: int64(len(emptyTar))}
	if stack := append(below[:len(below):len(below)], want); s.snaps.Has(stack) == len(stack) {
		return c, nil
	}
	u, err := s.snaps.UnpackRecorded(ctx, strings.NewReader(string(emptyTar[:])), want)
	if err != nil {
		return c, err
	}
	defer u.Discard()
	return c, u.Place(ctx, below)
}

// keep saves layers from collection until the image names them.
func (s *solver) keep(ctx context.Context, stack []digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(stack) == 0 {
		return nil
	}
	if s.layers == nil {
		l, err := s.snaps.Lease(ctx, stack)
		if err == nil {
			s.layers = l
		}
		return err
	}
	return s.layers.Add(stack)
}

// newActive names a new active snapshot. The first one makes this process a builder at
// work: a directory that carries its flock.
func (s *solver) newActive() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holder == nil {
		h, err := disk.HoldDir(s.cache.dir("held"), "")
		if err != nil {
			return "", err
		}
		s.holder = h
	}
	return fmt.Sprintf("%s%s-%d", keyPrefix, filepath.Base(s.holder.Path), s.n.Add(1)), nil
}

// scratch is a new directory below the active snapshots' file system, for one step.
func (s *solver) scratch(ctx context.Context, undo *cleanup) (string, error) {
	key, err := s.newActive()
	if err != nil {
		return "", err
	}
	if err := s.snaps.Prepare(ctx, key, nil); err != nil {
		return "", err
	}
	undo.add(func() { s.snaps.Remove(key) })
	return s.snaps.Upper(key), nil
}

// view is the tree of a finished stage, mounted once a build.
func (s *solver) view(ctx context.Context, stack []digest.Digest) (*tree, error) {
	if err := s.keep(ctx, stack); err != nil {
		return nil, err
	}
	id := image.ChainID(stack).String()
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.sealed[id]; ok {
		return t, nil
	}
	fd, err := s.snaps.View(stack)
	if err != nil {
		return nil, err
	}
	t := &tree{root: os.NewFile(uintptr(fd), "/"), owned: true}
	s.sealed[id] = t
	return t, nil
}

// flockFree reports whether nobody holds a flock on f; f itself holds one afterwards.
func flockFree(f *os.File) bool {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}
