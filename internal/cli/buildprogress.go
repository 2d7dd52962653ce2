// Progress of a build, as lines.

package cli

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"keg/internal/builder"
)

// buildPrinter shows a build. close ends the show and repeats what a failed step said.
type buildPrinter interface {
	event(builder.Event)
	close()
}

func (a *app) buildPrinter(o *buildFlags) (buildPrinter, error) {
	kind := o.progress
	if o.quiet {
		kind = "quiet"
	}
	switch {
	case kind == "quiet":
		return silent{}, nil
	case kind == "tty" || kind == "auto" && a.errTTY:
		return a.newBuildScreen(), nil
	case kind == "plain" || kind == "auto":
		return &plainBuild{w: a.err, now: a.now, steps: map[int]*plainStep{}}, nil
	}
	return nil, failf("invalid progress type %q: must be one of \"auto\", \"plain\", \"tty\" or \"quiet\"", kind)
}

type silent struct{}

func (silent) event(builder.Event) {}
func (silent) close()              {}

// plainBuild prints each event as it comes, in BuildKit's words: "#5 [2/3] RUN make",
// "#5 0.123 text", "#5 DONE 1.2s".
type plainBuild struct {
	mu    sync.Mutex
	w     io.Writer
	now   func() time.Time
	steps map[int]*plainStep
	last  int // the vertex of the line before
	bad   *plainStep
}

type plainStep struct {
	name    string
	started time.Time
	line    bytes.Buffer // an unfinished line of output
	said    bytes.Buffer // the beginning of its output, for the case that it fails
}

func (p *plainBuild) event(e builder.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.steps[e.Vertex]
	if s == nil {
		s = &plainStep{}
		p.steps[e.Vertex] = s
	}
	if e.Name != "" {
		s.name = e.Name
	}
	if e.Started != nil {
		s.started = *e.Started
	}
	p.speak(e.Vertex, s)
	if e.Status != "" {
		fmt.Fprintf(p.w, "#%d %s\n", e.Vertex, oneLine(e.Status))
	}
	if e.Reason != "" {
		fmt.Fprintf(p.w, "#%d not cached: %s\n", e.Vertex, oneLine(e.Reason))
	}
	if len(e.Log) > 0 {
		p.log(e.Vertex, s, e.Log)
	}
	if e.Finished != nil || e.Err != nil || e.Cached {
		p.finish(e, s)
	}
}

// speak names the vertex when another one spoke before, after an empty line.
func (p *plainBuild) speak(n int, s *plainStep) {
	if p.last == n {
		return
	}
	if p.last != 0 {
		fmt.Fprintln(p.w)
	}
	p.last = n
	fmt.Fprintf(p.w, "#%d %s\n", n, oneLine(s.name))
}

// log prints whole lines with the seconds since the start of the step.
func (p *plainBuild) log(n int, s *plainStep, b []byte) {
	s.line.Write(b)
	keep(&s.said, b)
	for {
		line, rest, ok := bytes.Cut(s.line.Bytes(), []byte("\n"))
		if !ok {
			return
		}
		p.logLine(n, s, line)
		s.line = *bytes.NewBuffer(bytes.Clone(rest))
	}
}

func (p *plainBuild) logLine(n int, s *plainStep, line []byte) {
	fmt.Fprintf(p.w, "#%d %.3f %s\n", n, p.now().Sub(s.started).Seconds(), bytes.TrimSuffix(line, []byte("\r")))
}

func (p *plainBuild) finish(e builder.Event, s *plainStep) {
	if s.line.Len() > 0 {
		p.logLine(e.Vertex, s, s.line.Bytes())
		s.line.Reset()
	}
	switch {
	case e.Err != nil:
		p.bad = s
		fmt.Fprintf(p.w, "#%d ERROR: %v\n", e.Vertex, e.Err)
	case e.Cached:
		fmt.Fprintf(p.w, "#%d CACHED\n", e.Vertex)
	default:
		fmt.Fprintf(p.w, "#%d DONE %.1fs\n", e.Vertex, took(s.started, e.Finished).Seconds())
	}
}

func took(start time.Time, end *time.Time) time.Duration {
	if end == nil || start.IsZero() {
		return 0
	}
	return max(0, end.Sub(start))
}

func (p *plainBuild) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bad != nil && p.bad.said.Len() > 0 {
		repeat(p.w, p.bad.name, p.bad.said.Bytes())
	}
}

const maxKept = 1 << 20 // bytes of a step's output

func keep(to *bytes.Buffer, b []byte) {
	to.Write(b[:min(len(b), max(0, maxKept-to.Len()))])
}

// repeat shows the output of a step that failed once more, after all others.
func repeat(w io.Writer, name string, said []byte) {
	fmt.Fprintf(w, "------\n > %s:\n%s\n------\n", oneLine(name), bytes.TrimRight(quote(said), "\n"))
}
