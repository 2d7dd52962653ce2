// Progress of a build on a terminal: steps that stay, running ones redrawn below.

package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"keg/internal/builder"
)

const (
	redrawEvery = 100 * time.Millisecond
	logLines    = 6 // of a running step
)

// buildScreen keeps all steps and redraws them in place. Steps that no longer fit
// scroll away.
type buildScreen struct {
	mu      sync.Mutex
	w       io.Writer
	now     func() time.Time
	start   time.Time
	width   int
	height  int
	steps   []*screenStep
	drawn   int // lines on the screen that are ours
	stop    chan struct{}
	stopped sync.WaitGroup
}

type screenStep struct {
	n        int
	name     string
	started  time.Time
	finished *time.Time
	cached   bool
	err      error
	statuses []string
	logs     []string
	part     []byte
	all      bytes.Buffer // shown when it fails
}

func (a *app) newBuildScreen() *buildScreen {
	s := &buildScreen{w: a.rawErr, now: a.now, start: a.now(), width: 80, height: 24, stop: make(chan struct{})}
	if w, h, err := term.GetSize(2); err == nil && w > 0 {
		s.width, s.height = w, h
	}
	s.stopped.Go(func() {
		tick := time.NewTicker(redrawEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.mu.Lock()
				s.draw()
				s.mu.Unlock()
			case <-s.stop:
				return
			}
		}
	})
	return s
}

func (s *buildScreen) event(e builder.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.steps, func(v *screenStep) bool { return v.n == e.Vertex })
	if i < 0 {
		s.steps = append(s.steps, &screenStep{n: e.Vertex})
		i = len(s.steps) - 1
	}
	v := s.steps[i]
	v.name = cmp.Or(oneLine(e.Name), v.name)
	if e.Started != nil {
		v.started = *e.Started
	}
	v.log(e.Log)
	if e.Status != "" {
		v.statuses = append(v.statuses, oneLine(e.Status))
	}
	v.cached = v.cached || e.Cached
	if e.Finished != nil {
		v.finished = e.Finished
	}
	if e.Err != nil {
		v.err = e.Err
	}
}

func (v *screenStep) log(b []byte) {
	keep(&v.all, b)
	v.part = append(v.part, b...)
	for {
		line, rest, ok := bytes.Cut(v.part, []byte("\n"))
		if !ok {
			return
		}
		v.logs = append(v.logs, oneLine(strings.TrimSuffix(string(line), "\r")))
		if len(v.logs) > logLines {
			v.logs = v.logs[1:]
		}
		v.part = bytes.Clone(rest)
	}
}

func (s *buildScreen) lines(final bool) []string {
	done := 0
	for _, v := range s.steps {
		if v.finished != nil {
			done++
		}
	}
	head := fmt.Sprintf("[+] Building %.1fs (%d/%d)", s.now().Sub(s.start).Seconds(), done, len(s.steps))
	if final && done == len(s.steps) {
		head += " FINISHED"
	}
	out := []string{head}
	for _, v := range s.steps {
		out = append(out, s.step(v, final)...)
	}
	return out
}

func (s *buildScreen) step(v *screenStep, final bool) []string {
	name, mark := v.name, "=> "
	switch {
	case v.err != nil:
		mark = "=> ERROR "
	case v.cached:
		mark = "=> CACHED "
	}
	end := v.finished
	if end == nil {
		now := s.now()
		end = &now
	}
	out := []string{s.row(" "+mark+name, took(v.started, end))}
	for _, l := range v.statuses {
		out = append(out, s.row(" => => "+strings.TrimSuffix(l, " done"), took(v.started, end)))
	}
	if v.finished == nil && !final {
		for _, l := range v.logs {
			out = append(out, s.cut(" => => # "+l))
		}
	}
	return out
}

// row puts the seconds at the right edge.
func (s *buildScreen) row(text string, d time.Duration) string {
	secs := fmt.Sprintf("%.1fs", d.Seconds())
	text = cutRunes(text, s.width-len(secs)-2)
	return text + strings.Repeat(" ", max(1, s.width-1-len([]rune(text))-len(secs))) + secs
}

func (s *buildScreen) cut(text string) string { return cutRunes(text, s.width-1) }

func cutRunes(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:max(0, n)])
	}
	return s
}

func (s *buildScreen) draw() {
	lines := s.lines(false)
	if fit := s.height - 2; fit > 1 && len(lines) > fit {
		lines = append(lines[:1], lines[len(lines)-fit+1:]...)
	}
	s.replace(lines)
}

// replace moves up over what was drawn and writes anew; \x1b[J clears the rest.
func (s *buildScreen) replace(lines []string) {
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", s.drawn)
	}
	b.WriteString("\x1b[J")
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	s.drawn = len(lines)
	io.WriteString(s.w, b.String())
}

func (s *buildScreen) close() {
	close(s.stop)
	s.stopped.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replace(s.lines(true))
	s.drawn = 0
	for _, v := range s.steps {
		if v.err != nil && v.all.Len() > 0 {
			repeat(s.w, v.name, v.all.Bytes())
		}
	}
}
