// Live progress on a terminal: one row a vertex, the last output of what runs, drawn
// over itself.
package builder

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	tailRows = 6
	clearEnd = "\x1b[K"
	faint    = "\x1b[2m"
	blue     = "\x1b[34m"
	red      = "\x1b[31m"
	yellow   = "\x1b[33m"
	plainSGR = "\x1b[0m"
)

// live redraws at most ten times a second; what has scrolled out of the screen is not
// drawn again.
type live struct {
	begin time.Time
	drawn time.Time
	rows  int // drawn the last time
}

func (d *live) update(p *Printer, l *line) {
	if l != nil && l.finished == nil && p.now().Sub(d.drawn) < 100*time.Millisecond {
		return
	}
	if p.now().Sub(d.drawn) < 20*time.Millisecond {
		return
	}
	d.draw(p, false)
}

func (d *live) finish(p *Printer) { d.draw(p, true) }
func (d *live) pause(p *Printer)  { d.draw(p, false) }

// resume starts on a new row: what stood there is the other's.
func (d *live) resume(p *Printer) {
	d.rows = 0
	d.draw(p, false)
}

// terminalSize is that of w, or what a terminal is without saying so.
func terminalSize(w io.Writer) (width, height int) {
	if f, ok := w.(*os.File); ok {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 && ws.Row > 0 {
			return int(ws.Col), int(ws.Row)
		}
	}
	return 80, 24
}

func (d *live) draw(p *Printer, last bool) {
	d.drawn = p.now()
	width, height := terminalSize(p.w)
	rows := d.content(p, width, last)
	if limit := height - 1; !last && len(rows) > limit {
		// The head stays, the oldest rows go.
		rows = append(rows[:1:1], rows[len(rows)-limit+1:]...)
	}
	var b strings.Builder
	if d.rows > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", d.rows)
	}
	for _, r := range rows {
		b.WriteString(r + clearEnd + "\n")
	}
	for range max(0, d.rows-len(rows)) {
		b.WriteString(clearEnd + "\n")
	}
	if gone := d.rows - len(rows); gone > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", gone)
	}
	d.rows = len(rows)
	io.WriteString(p.w, b.String())
}

func (d *live) content(p *Printer, width int, last bool) []string {
	finished, failed := 0, false
	for _, l := range p.order {
		if l.finished != nil {
			finished++
		}
		failed = failed || l.err != nil
	}
	word := ""
	if last && !failed {
		word = " FINISHED"
	}
	rows := []string{fmt.Sprintf("[+] Building %.1fs (%d/%d)%s", p.now().Sub(d.begin).Seconds(), finished, len(p.order), word)}
	for _, l := range p.order {
		rows = append(rows, d.row(l, width, p.now()))
		for _, s := range l.status {
			rows = append(rows, " => => "+visible(s, width-8))
		}
		if l.finished != nil {
			continue
		}
		for _, s := range l.raw[max(0, len(l.raw)-tailRows):] {
			if text := visible(s, width-10); strings.TrimSpace(text) != "" {
				rows = append(rows, faint+" => => # "+text+plainSGR)
			}
		}
	}
	return rows
}

func (d *live) row(l *line, width int, now time.Time) string {
	name, colour := l.name, ""
	took := now.Sub(l.started)
	if l.finished != nil {
		took, colour = l.finished.Sub(l.started), blue
	}
	switch {
	case l.err != nil && canceled(l.err):
		name, colour = "CANCELED "+name, yellow
	case l.err != nil:
		name, colour = "ERROR "+name, red
	case l.cached:
		name = "CACHED " + name
	}
	if took < 50*time.Millisecond {
		took = 0
	}
	timer := fmt.Sprintf(" %3.1fs", took.Seconds())
	left := max(12, width-len(" => ")-len(timer)-1)
	text := visible(name, left)
	pad := strings.Repeat(" ", max(0, left-utf8.RuneCountInString(text)))
	return colour + " => " + text + pad + timer + plainSGR
}

// decode reads one rune; control characters and bad bytes are 0.
func decode(s string) (rune, int) {
	r, n := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && n == 1 || r != '\t' && !unicode.IsPrint(r) {
		return 0, n
	}
	return r, n
}

// escape is the length of the escape sequence at the start of s (ECMA-48 5.3, 5.4).
func escape(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	switch s[1] {
	case '[':
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
		}
		return len(s)
	case ']', 'P', '_', '^':
		for i := 2; i < len(s); i++ {
			if s[i] == 7 {
				return i + 1
			}
			if s[i] == 0x1b {
				return min(len(s), i+2)
			}
		}
		return len(s)
	}
	return 2
}
