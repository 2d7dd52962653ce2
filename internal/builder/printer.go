// Printing progress: plain as Docker's --progress=plain, live on a terminal, or quiet.
package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Printer shows the events of one build. Its methods may be called from several
// goroutines.
type Printer struct {
	mu       sync.Mutex
	w        io.Writer
	show     display
	vertices map[int]*line
	order    []*line
	explain  bool
	now      func() time.Time
	paused   bool
	stop     chan struct{}
	stopped  sync.WaitGroup
}

// PrintOptions for NewPrinter. Quiet wins over Live.
type PrintOptions struct {
	Live    bool             // for a terminal
	Quiet   bool             // failures only
	Explain bool             // say of each step that ran what differed from the last time
	Now     func() time.Time // nil: the clock
}

// display is one way of showing.
type display interface {
	update(p *Printer, l *line)
	pause(p *Printer)
	resume(p *Printer)
	finish(p *Printer)
}

// tail is how much output of a failed step is shown again at the end.
const tail = 10

// line is a vertex as the printer knows it.
type line struct {
	id       int
	name     string
	started  time.Time
	finished *time.Time
	cached   bool
	err      error
	status   []string
	reason   string

	pending []string // whole lines not shown yet
	partial string   // the last line, so far without its end
	shown   int      // bytes of partial that plain mode has shown
	last    []string // the last lines, for failures
	raw     []string // the last lines as they came, for a terminal
	done    bool     // its end was shown
	since   time.Time
}

// NewPrinter shows progress on w, plain in BuildKit's form when nothing else is asked.
func NewPrinter(w io.Writer, o PrintOptions) *Printer {
	p := &Printer{w: w, vertices: map[int]*line{}, show: &plain{}, explain: o.Explain, now: o.Now}
	if p.now == nil {
		p.now = time.Now
	}
	switch {
	case o.Quiet:
		p.show = silent{}
	case o.Live:
		t := &live{begin: p.now()}
		p.show = t
		p.stop = make(chan struct{})
		p.stopped.Add(1)
		go p.tick()
	}
	return p
}

// tick redraws a terminal while nothing happens.
func (p *Printer) tick() {
	defer p.stopped.Done()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.mu.Lock()
			p.update(nil)
			p.mu.Unlock()
		}
	}
}

// Event shows one event; it is a Deps.Progress.
func (p *Printer) Event(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.vertices[e.Vertex]
	if l == nil {
		l = &line{id: e.Vertex, since: p.now()}
		p.vertices[e.Vertex] = l
		p.order = append(p.order, l)
	}
	if e.Name != "" {
		l.name = visible(e.Name, 4096)
	}
	if e.Started != nil {
		l.started = *e.Started
	}
	if e.Status != "" {
		l.say(e.Status)
	}
	if e.Reason != "" && p.explain {
		l.reason = "not cached: " + visible(e.Reason, 4096)
		l.say(l.reason)
	}
	if len(e.Log) > 0 {
		l.log(e.Log, p.now())
	}
	if e.Finished != nil {
		l.finished, l.cached, l.err = e.Finished, e.Cached, e.Err
	}
	p.update(l)
}

func (p *Printer) update(l *line) {
	if !p.paused {
		p.show.update(p, l)
	}
}

// Pause shows all that there is and then nothing more until Resume: somebody else writes.
func (p *Printer) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show.pause(p)
	p.paused = true
}

// Resume shows what came meanwhile.
func (p *Printer) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = false
	p.show.resume(p)
}

// say adds a line of status.
func (l *line) say(status string) {
	status = visible(status, 4096)
	l.status, l.pending = append(l.status, status), append(l.pending, status)
}

// log cuts output into lines, each with the seconds since its step began.
func (l *line) log(b []byte, now time.Time) {
	for len(b) > 0 {
		text, rest, whole := bytes.Cut(b, []byte{'\n'})
		b = rest
		if l.partial == "" {
			l.partial = seconds(now.Sub(l.started)) + " "
			l.raw = keepLast(append(l.raw, ""))
		}
		l.partial += string(text)
		if n := len(l.raw); n > 0 {
			l.raw[n-1] += string(text)
		}
		if whole {
			l.pending = append(l.pending, l.partial)
			l.last = keepLast(append(l.last, l.partial))
			l.partial = ""
		}
	}
}

func keepLast(s []string) []string {
	if len(s) > tail {
		s = append(s[:0], s[len(s)-tail:]...)
	}
	return s
}

func seconds(d time.Duration) string {
	s := d.Seconds()
	switch {
	case s < 10:
		return fmt.Sprintf("%.3f", s)
	case s < 100:
		return fmt.Sprintf("%.2f", s)
	}
	return fmt.Sprintf("%.1f", s)
}

// Close ends the display: what is pending is shown, and the output of steps that
// failed once more.
func (p *Printer) Close() error {
	if p.stop != nil {
		close(p.stop)
		p.stopped.Wait()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show.finish(p)
	for _, l := range p.order {
		if l.err == nil || canceled(l.err) {
			continue
		}
		fmt.Fprintf(p.w, "------\n > %s:\n", l.name)
		for _, s := range l.last {
			fmt.Fprintln(p.w, s)
		}
		if l.partial != "" {
			fmt.Fprintln(p.w, l.partial)
		}
		fmt.Fprint(p.w, "------\n")
	}
	return nil
}

func canceled(err error) bool { return errors.Is(err, context.Canceled) }

type silent struct{}

func (silent) update(*Printer, *line) {}
func (silent) pause(*Printer)         {}
func (silent) resume(*Printer)        {}

// finish gives the explanations, which were asked for.
func (silent) finish(p *Printer) {
	for _, l := range p.order {
		if l.reason != "" {
			fmt.Fprintf(p.w, "%s: %s\n", l.name, l.reason)
		}
	}
}

// plain prints vertices one after the other. While several run, one has the floor; the
// others are kept until it is done or silent for a while.
type plain struct {
	current *line
	any     bool
}

// antiFlicker is how long a running vertex keeps the floor while others have output.
const antiFlicker = 5 * time.Second

func (d *plain) update(p *Printer, l *line) {
	if l == nil {
		return
	}
	l.since = p.now()
	switch {
	case d.current == nil || d.current == l || d.current.done:
		d.print(p, l)
	case p.now().Sub(d.current.since) > antiFlicker:
		d.print(p, l)
	default:
		return
	}
	if d.current == nil {
		d.rest(p)
	}
}

// rest shows what waited: finished vertices first, then one that runs.
func (d *plain) rest(p *Printer) {
	for _, l := range p.order {
		if l.finished != nil && !l.done {
			d.print(p, l)
		}
	}
	for _, l := range p.order {
		if !l.done && d.current == nil {
			d.print(p, l)
		}
	}
}

func (d *plain) print(p *Printer, l *line) {
	if l.done {
		return
	}
	if l != d.current {
		if d.current != nil {
			d.endPartial(p, d.current)
			fmt.Fprintf(p.w, "#%d ...\n", d.current.id)
		}
		if d.any {
			fmt.Fprintln(p.w)
		}
		fmt.Fprintf(p.w, "#%d %s\n", l.id, l.name)
		d.any, d.current = true, l
	}
	for _, s := range l.pending {
		if l.shown > 0 {
			fmt.Fprintf(p.w, "%s\n", s[min(l.shown, len(s)):])
			l.shown = 0
			continue
		}
		fmt.Fprintf(p.w, "#%d %s\n", l.id, s)
	}
	l.pending = nil
	if l.partial != "" {
		if l.shown == 0 {
			fmt.Fprintf(p.w, "#%d ", l.id)
		}
		io.WriteString(p.w, l.partial[l.shown:])
		l.shown = len(l.partial)
	}
	if l.finished == nil {
		return
	}
	d.endPartial(p, l)
	l.done, d.current = true, nil
	switch {
	case l.err != nil && canceled(l.err):
		fmt.Fprintf(p.w, "#%d CANCELED\n", l.id)
	case l.err != nil:
		fmt.Fprintf(p.w, "#%d ERROR: %v\n", l.id, l.err)
	case l.cached:
		fmt.Fprintf(p.w, "#%d CACHED\n", l.id)
	default:
		fmt.Fprintf(p.w, "#%d DONE %.1fs\n", l.id, l.finished.Sub(l.started).Seconds())
	}
}

// endPartial ends a line that was shown without its end.
func (d *plain) endPartial(p *Printer, l *line) {
	if l.shown > 0 {
		fmt.Fprintln(p.w)
		l.shown = 0
		l.last = keepLast(append(l.last, l.partial))
		l.partial = ""
	}
}

func (d *plain) pause(p *Printer) {
	if d.current != nil {
		d.print(p, d.current)
		d.endPartial(p, d.current)
	}
}

func (d *plain) resume(p *Printer) {
	if d.current != nil {
		d.print(p, d.current)
	}
	if d.current == nil {
		d.rest(p)
	}
}

func (d *plain) finish(p *Printer) {
	if d.current != nil {
		d.endPartial(p, d.current)
		d.current = nil
	}
	d.rest(p)
}

// visible is output as a terminal may show it in one row: no control characters, and
// nothing that steers the terminal.
func visible(s string, width int) string {
	if i := strings.LastIndexByte(strings.TrimRight(s, "\r"), '\r'); i >= 0 {
		s = s[i+1:] // a line that was written over
	}
	var b strings.Builder
	n := 0
	for i := 0; i < len(s) && n < width; {
		if s[i] == 0x1b {
			i += escape(s[i:])
			continue
		}
		r, size := decode(s[i:])
		i += size
		if r == '\t' {
			r = ' '
		}
		if r != 0 {
			b.WriteRune(r)
			n++
		}
	}
	return b.String()
}
