package builder

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPlainIsDockers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := NewPrinter(&b, PrintOptions{})
		pr := progress{emit: p.Event}
		v := pr.start("[internal] load build definition from Dockerfile")
		v.status("transferring dockerfile: 103B done")
		v.done(nil)
		v = pr.start("[2/3] RUN true")
		time.Sleep(123 * time.Millisecond)
		v.Write([]byte("output\nhalf"))
		v.Write([]byte(" line\n"))
		time.Sleep(20 * time.Second)
		v.Write([]byte("late"))
		v.done(nil)
		pr.start("[3/3] RUN true").cached()
		v = pr.start("[4/4] RUN false")
		v.Write([]byte("oops\n"))
		v.done(errors.New("exit code: 1"))
		p.Close()
		want := `#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 103B done
#1 DONE 0.0s

#2 [2/3] RUN true
#2 0.123 output
#2 0.123 half line
#2 20.12 late
#2 DONE 20.1s

#3 [3/3] RUN true
#3 CACHED

#4 [4/4] RUN false
#4 0.000 oops
#4 ERROR: exit code: 1
------
 > [4/4] RUN false:
0.000 oops
------
`
		if b.String() != want {
			t.Errorf("got\n%s\nwant\n%s", b.String(), want)
		}
	})
}

func TestPlainTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := NewPrinter(&b, PrintOptions{})
		pr := progress{emit: p.Event}
		one, two := pr.start("one"), pr.start("two")
		one.Write([]byte("a\n"))
		two.Write([]byte("x\n"))
		one.Write([]byte("b\n"))
		time.Sleep(6 * time.Second) // one is silent: two gets the floor
		two.Write([]byte("y\n"))
		one.Write([]byte("c\n"))
		two.done(nil)
		one.done(nil)
		p.Close()
		want := "#1 one\n#1 0.000 a\n#1 0.000 b\n#1 ...\n\n#2 two\n#2 0.000 x\n#2 6.000 y\n#2 DONE 6.0s\n\n#1 one\n#1 6.000 c\n#1 DONE 6.0s\n"
		if b.String() != want {
			t.Errorf("got\n%s\nwant\n%s", b.String(), want)
		}
	})
}

func TestQuietShowsFailuresOnly(t *testing.T) {
	var b bytes.Buffer
	p := NewPrinter(&b, PrintOptions{Live: true, Quiet: true})
	pr := progress{emit: p.Event}
	pr.start("fine").done(nil)
	v := pr.start("bad")
	v.Write([]byte("why\n"))
	v.done(errors.New("x"))
	p.Close()
	if got := b.String(); !strings.HasPrefix(got, "------\n > bad:\n0.0") || !strings.HasSuffix(got, " why\n------\n") {
		t.Errorf("%q", got)
	}
}

func TestTerminalShowsRowsAndNoForeignEscapes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := NewPrinter(&b, PrintOptions{Live: true})
		pr := progress{emit: p.Event}
		pr.start("[1/2] FROM x").cached()
		v := pr.start("[2/2] RUN \x1b]0;evil\x07 make")
		v.Write([]byte("50%\r\x1b[2J\x1b[31m100%\x9b done\x07\n"))
		time.Sleep(300 * time.Millisecond)
		v.done(nil)
		p.Close()
		got := b.String()
		for _, want := range []string{" => CACHED [1/2] FROM x", " => => # 100% done", "[2/2] RUN  make", "0.3s", "FINISHED"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %q", want, got)
			}
		}
		for _, bad := range []string{"\x1b]", "\x07", "\x1b[2J", "\x1b[31m1", "\u009b"} {
			if strings.Contains(got, bad) {
				t.Errorf("foreign %q in output", bad)
			}
		}
	})
}

func TestExplanationsAreForThoseWhoAsk(t *testing.T) {
	for _, c := range []struct {
		o    PrintOptions
		want string
	}{
		{PrintOptions{}, "#1 [2/2] RUN make\n#1 DONE 0.0s\n"},
		{PrintOptions{Explain: true}, "#1 [2/2] RUN make\n#1 not cached: ENV A: \"1\" -> \"2\"\n#1 DONE 0.0s\n"},
		{PrintOptions{Explain: true, Quiet: true}, "[2/2] RUN make: not cached: ENV A: \"1\" -> \"2\"\n"},
		{PrintOptions{Quiet: true}, ""},
	} {
		var b bytes.Buffer
		p := NewPrinter(&b, c.o)
		pr := progress{emit: p.Event}
		v := pr.start("[2/2] RUN make")
		v.reason(`ENV A: "1" -> "2"`)
		v.done(nil)
		p.Close()
		if b.String() != c.want {
			t.Errorf("%+v: got %q, want %q", c.o, b.String(), c.want)
		}
	}
}

// While somebody else writes, nothing is shown, and afterwards all that came meanwhile.
func TestPrinterPauses(t *testing.T) {
	var out strings.Builder
	p := NewPrinter(&out, PrintOptions{})
	now := time.Now()
	p.Event(Event{Vertex: 1, Name: "a", Started: &now})
	p.Event(Event{Vertex: 1, Log: []byte("half")})
	p.Pause()
	before := out.String()
	p.Event(Event{Vertex: 2, Name: "b", Started: &now})
	p.Event(Event{Vertex: 1, Log: []byte("the rest\n")})
	p.Event(Event{Vertex: 1, Finished: &now})
	p.Event(Event{Vertex: 2, Finished: &now})
	if !strings.HasSuffix(before, "half\n") || out.String() != before {
		t.Errorf("%q, then %q", before, out.String())
	}
	p.Resume()
	p.Close()
	if rest := out.String()[len(before):]; !strings.Contains(rest, "the rest\n#1 DONE") || !strings.Contains(rest, "#2 b\n#2 DONE") {
		t.Errorf("afterwards %q", rest)
	}
}
