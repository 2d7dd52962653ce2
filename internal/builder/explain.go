// Why a step was not in the cache.
package builder

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"keg/internal/disk"
)

// buildID tells one Dockerfile of one context from others.
func (s *solver) buildID() string {
	dir, err := filepath.Abs(s.context.dir)
	if err != nil {
		dir = s.context.dir
	}
	file := s.plan.o.Dockerfile
	if file == "-" {
		return hashName(dir, "-")
	}
	if file != "" {
		if abs, err := filepath.Abs(file); err == nil {
			file = abs
		}
	}
	return hashName(dir, file)
}

// plainName is a step's name without its number.
func plainName(name string) string {
	_, text, ok := strings.Cut(name, "] ")
	if !ok {
		return name
	}
	return text
}

func (s *solver) lastStep(step *step, key string) lastStep {
	stage := step.stage.src.Name
	if stage == "" {
		stage = fmt.Sprint(step.stage.index)
	}
	return lastStep{Stage: stage, N: step.n, Text: plainName(step.name), Key: key}
}

// note remembers a step of this build.
func (s *solver) note(step *step, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = append(s.done, s.lastStep(step, key))
}

// loadLast reads the last build of this Dockerfile, once. The caller holds mu.
func (s *solver) loadLast() *lastBuild {
	if s.last == nil {
		s.last = &lastBuild{}
		if err := disk.GetJSON(s.cache.last(s.buildID()), s.last); err != nil || s.last.Version != recordVersion {
			s.last = &lastBuild{}
		}
	}
	return s.last
}

// explain names the first input that differs from the last time; diff is all that does, when it was done before.
func (s *solver) explain(step *step, in *inputs) (reason string, diff *change) {
	s.mu.Lock()
	last := s.loadLast()
	s.mu.Unlock()
	key, ok := last.find(s.lastStep(step, ""))
	if !ok {
		return "never built here", nil
	}
	old, ok := s.cache.inputsOf(key)
	if !ok {
		return "the record of the last time is gone" + s.expired(step), nil
	}
	if d := Difference(old, in.all()); d != "" {
		c := compare(old, in.all())
		return d + s.expired(step), &c
	}
	return "its cached result is gone" + s.expired(step), nil
}

// expired names the cache mounts that the step had the last time and that prune or the quota took since. They are no
// inputs, but why a step that runs takes longer than the last time.
func (s *solver) expired(step *step) (words string) {
	o, ok := step.op.(*runOp)
	if !ok {
		return ""
	}
	for i := range o.mounts {
		m := &o.mounts[i]
		if m.kind != instructions.MountTypeCache {
			continue
		}
		dir := s.cache.mountDir(m.dirName())
		if m.sharing == instructions.MountSharingPrivate {
			dir += "-0"
		}
		if _, err := os.Lstat(dir); notExist(err) {
			words += fmt.Sprintf("; cache mount %s expired: it starts empty", m.id)
		}
	}
	return words
}

// rerun remembers for advise what a step did again.
func (s *solver) rerun(step *step, in *inputs, diff *change, took time.Duration) {
	if diff == nil {
		return
	}
	r := ran{took: took, diff: *diff}
	for _, i := range in.all() {
		if i.Kind == kindFile {
			r.files = append(r.files, i.Name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reruns[step] = r
}

// saveLast writes the steps of this build, merged over those of other targets. Nothing
// is written when nothing changed; a failure costs an explanation, not the build.
func (s *solver) saveLast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.loadLast()
	type place struct {
		stage string
		n     int
	}
	now := map[place]lastStep{}
	stages := map[string]bool{}
	for _, d := range s.done {
		now[place{d.Stage, d.N}] = d
		stages[d.Stage] = true
	}
	changed := false
	next := lastBuild{Version: recordVersion}
	for _, o := range last.Steps {
		d, ok := now[place{o.Stage, o.N}]
		switch {
		case ok:
			changed = changed || d != o
			next.Steps = append(next.Steps, d)
			delete(now, place{o.Stage, o.N})
		case !stages[o.Stage]:
			next.Steps = append(next.Steps, o)
		default:
			changed = true
		}
	}
	for _, d := range s.done {
		if _, left := now[place{d.Stage, d.N}]; left {
			next.Steps = append(next.Steps, d)
			delete(now, place{d.Stage, d.N})
			changed = true
		}
	}
	if changed {
		disk.PutJSONVolatile(s.cache.last(s.buildID()), next)
	}
}

// missing words the error of a source that is not there, with a hint when it is only
// ignored.
func (s *solver) missing(step *step, err error) error {
	var nf *notFound
	if !errors.As(err, &nf) {
		return err
	}
	text := fmt.Errorf("failed to compute cache key: failed to calculate checksum of ref: %w", err)
	o, isCopy := step.op.(*copyOp)
	bare := tree{root: s.context.root}
	if isCopy && o.from == nil {
		// A link on the way is followed as if the context were all there is.
		if at, link := bare.link(nf.path); link != "" {
			text = fmt.Errorf("%w (%q is a link to %q, which the context does not have)", text, at, link)
		}
	}
	if isCopy && o.from == nil && s.context.ignore != nil {
		if _, st, e := bare.resolve(nf.path, true); e == nil && st != nil {
			return fmt.Errorf("%w (%s is in the context, but %s excludes it)", text, strings.TrimPrefix(path.Clean("/"+nf.path), "/"), s.context.ignore.name)
		}
	}
	return text
}

// link is the last symlink on the way of p, and where it leads.
func (t *tree) link(p string) (at, to string) {
	follow(int(t.root.Fd()), p, true, func(link string) error { at = link; return nil })
	if at != "" {
		to, _ = readlinkBeneath(int(t.root.Fd()), at)
	}
	return at, to
}
