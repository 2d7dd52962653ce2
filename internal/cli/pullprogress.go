// Progress of pulls and pushes: bars on a terminal, lines elsewhere.

package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"keg/internal/engine"
	"keg/internal/image"
)

// progress shows events of several layers at once. On a terminal each layer has a line
// that is redrawn in place; elsewhere each change of state is a line, as Docker does.
type progress struct {
	mu    sync.Mutex
	w     io.Writer // raw: this writer moves the cursor
	tty   bool
	width int
	quiet bool
	now   func() time.Time
	intro func() // before the first event
	lines map[string]int
	last  map[string]drawn
	rows  int
}

// drawn is what a line shows, and how fast its layer moves.
type drawn struct {
	status string
	at     time.Time

	began time.Time // of this status
	first int64     // bytes that were there then: the rest of a download that was cut
}

// rate is bytes a second since the status began; 0 before that says anything.
func (d drawn) rate(current int64, now time.Time) float64 {
	if took := now.Sub(d.began).Seconds(); took >= 0.5 && current > d.first {
		return float64(current-d.first) / took
	}
	return 0
}

func (a *app) newProgress(w io.Writer, tty, quiet bool) *progress {
	p := &progress{w: w, tty: tty, quiet: quiet, now: a.now, lines: map[string]int{}, last: map[string]drawn{}, width: 80}
	if cols, _, err := term.GetSize(2); err == nil && cols > 0 {
		p.width = cols
	}
	return p
}

// pullProgress hangs a progress on the pull that a create or run may need.
func (a *app) pullProgress(o *containerFlags, req *engine.CreateOptions) {
	p := a.newProgress(a.rawErr, a.errTTY, o.quiet)
	if req.Pull == "" || req.Pull == "missing" {
		p.intro = func() {
			name := req.Config.Image
			if ref, err := image.ParseReference(name); err == nil {
				name = ref.Familiar()
			}
			fmt.Fprintf(a.err, "Unable to find image '%s' locally\n", name)
		}
	}
	req.Progress = p.event
}

func (p *progress) event(e engine.PullEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.quiet {
		return
	}
	if p.intro != nil {
		p.intro()
		p.intro = nil
	}
	if e == (engine.PullEvent{}) { // a pull begins
		return
	}
	e.ID, e.Status = oneLine(e.ID), oneLine(e.Status)
	switch {
	case e.ID == "":
		p.println(e.Status)
	case !p.tty:
		if !moving(e) { // bars have no place in a file
			p.println(e.ID + ": " + e.Status)
		}
	default:
		p.draw(e)
	}
}

// moving: one of many events of a layer on its way ("Downloading", "Pushing").
func moving(e engine.PullEvent) bool {
	return (e.Current > 0 || e.Total > 0) && strings.HasSuffix(e.Status, "ing")
}

func (p *progress) println(s string) {
	io.WriteString(p.w, s+"\n")
	p.rows++
}

// draw puts the event on the line of its layer. At most 20 redraws a second a layer.
func (p *progress) draw(e engine.PullEvent) {
	now := p.now()
	l := p.last[e.ID]
	if l.status == e.Status && now.Sub(l.at) < 50*time.Millisecond && e.Current < e.Total {
		return
	}
	if l.status != e.Status {
		l.status, l.began, l.first = e.Status, now, e.Current
	}
	l.at = now
	p.last[e.ID] = l
	row, ok := p.lines[e.ID]
	if !ok {
		p.lines[e.ID] = p.rows
		io.WriteString(p.w, p.text(e)+"\n")
		p.rows++
		return
	}
	up := p.rows - row
	fmt.Fprintf(p.w, "\x1b[%dA\x1b[2K\r%s\x1b[%dB\r", up, p.text(e), up)
}

func (p *progress) text(e engine.PullEvent) string {
	s := e.ID + ": " + e.Status
	switch {
	case !moving(e):
	case e.Current > 0 && e.Total > 0:
		tail := fmt.Sprintf("  %s/%s", units.HumanSizeWithPrecision(float64(e.Current), 3), units.HumanSizeWithPrecision(float64(e.Total), 3))
		if rate := p.last[e.ID].rate(e.Current, p.now()); rate > 0 {
			tail += fmt.Sprintf("  %s/s", units.HumanSizeWithPrecision(rate, 3))
			if left := time.Duration(float64(e.Total-e.Current) / rate * float64(time.Second)); e.Current < e.Total {
				tail += fmt.Sprintf("  %s left", left.Round(time.Second))
			}
		}
		s += " " + bar(e.Current, e.Total, p.width-len(s)-max(24, len(tail)+4)) + tail
	case e.Current > 0:
		s += "  " + units.HumanSizeWithPrecision(float64(e.Current), 3)
	}
	if r := []rune(s); len(r) >= p.width {
		s = string(r[:p.width-1]) // a line that wraps could not be redrawn
	}
	return s
}

func bar(current, total int64, width int) string {
	width = min(width, 50)
	if width < 10 {
		return ""
	}
	done := int(min(current, total) * int64(width) / total)
	head := ""
	if done < width {
		head = ">"
	}
	return "[" + strings.Repeat("=", done) + head + strings.Repeat(" ", width-done-len(head)) + "]"
}

// oneLine is text of a stranger as a part of a line.
func oneLine(s string) string {
	return strings.ReplaceAll(shown(s), "\n", `\n`)
}
