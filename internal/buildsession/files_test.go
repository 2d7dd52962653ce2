package buildsession

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"keg/internal/grpc"
)

// TestGolden: the bytes are those of the coders that are generated from the definitions of BuildKit 0.34 and fsutil.
func TestGolden(t *testing.T) {
	at := time.Unix(1, 5)
	for _, c := range []struct {
		what string
		got  []byte
		want string
	}{
		{"a wish", packet{kind: packetReq, id: 300}.encode(), "080118ac02"},
		{"a wish for the first file", packet{kind: packetReq}.encode(), "0801"},
		{"the end", packet{kind: packetFin}.encode(), "0803"},
		{"an error", packet{kind: packetErr, data: []byte("no")}.encode(), "080422026e6f"},
		{"content", packet{kind: packetData, id: 7, data: []byte("abc")}.encode(), "080218072203616263"},
		{"the end of files", packet{}.encode(), ""},
		{"a vertex", Trace{Vertices: []Vertex{{Digest: "d", Name: "n", Cached: true, Started: &at, Error: "e"}}}.Encode(), "0a110a01641a016e20012a04080110053a0165"},
		{"a status", Trace{Statuses: []Status{{ID: "i", Vertex: "d", Current: 128, At: at, Completed: &at}}}.Encode(), "12150a0169120164208001320408011005420408011005"},
		{"a log", Trace{Logs: []Log{{"d", at, []byte("x\n")}}}.Encode(), "1a0f0a016412040801100518012202780a"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	for _, c := range []struct {
		text string
		want Stat
	}{
		{"12230a03612f6210a40318e80720e8072803308594ebdc03520b0a06757365722e78120179", Stat{Path: "a/b", Mode: 0o644, Size: 3, ModTime: time.Unix(1, 5)}},
		{"12180a016c10ff83804030ffffffffffffffffff013a03612f62", Stat{Path: "l", Mode: fs.ModeSymlink | 0o777, ModTime: time.Unix(0, -1), Link: "a/b"}},
	} {
		b, _ := hex.DecodeString(c.text)
		p, err := parsePacket(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseStat(p.stat); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v", c.text, got, err)
		}
	}
}

// stat is a file as a client sends it.
func stat(s Stat) packet {
	b := grpc.AppendNumber(grpc.AppendText(nil, 1, s.Path), 2, uint64(s.Mode))
	b = grpc.AppendNumber(grpc.AppendNumber(b, 5, uint64(s.Size)), 6, uint64(s.ModTime.UnixNano()))
	return packet{stat: grpc.AppendText(b, 7, s.Link)}
}

// memory is a sink.
type memory struct {
	added []string
	files map[string]*memoryFile
	most  int // files open at once
	open  int
	fail  error
}

type memoryFile struct {
	bytes.Buffer
	m      *memory
	closed bool
}

func (f *memoryFile) Close() error { f.closed = true; f.m.open--; return nil }

func (m *memory) Add(s Stat) error { m.added = append(m.added, s.Path); return m.fail }

func (m *memory) Create(s Stat) (io.WriteCloser, error) {
	if m.fail != nil {
		return nil, m.fail
	}
	f := &memoryFile{m: m}
	if m.files == nil {
		m.files = map[string]*memoryFile{}
	}
	m.files[s.Path] = f
	m.open++
	m.most = max(m.most, m.open)
	return f, nil
}

// client answers a transfer from memory, as fsutil's sender does: files first, content as it is wished for.
type client struct {
	packets []packet          // what it sends by itself
	content map[uint32]string // answers to wishes
	sent    []packet          // what it got
}

func (c *client) send(b []byte) error {
	p, err := parsePacket(b)
	c.sent = append(c.sent, p)
	if p.kind == packetReq && c.content != nil {
		if text := c.content[p.id]; text != "" {
			c.packets = append(c.packets, packet{kind: packetData, id: p.id, data: []byte(text)})
		}
		c.packets = append(c.packets, packet{kind: packetData, id: p.id})
	}
	if p.kind == packetFin {
		c.packets = append(c.packets, packet{kind: packetFin})
	}
	return err
}

func (c *client) receive() ([]byte, error) {
	if len(c.packets) == 0 {
		return nil, io.EOF
	}
	p := c.packets[0]
	c.packets = c.packets[1:]
	return p.encode(), nil
}

func (c *client) run(m *memory) error {
	t := &transfer{sink: m, send: c.send, open: map[uint32]io.WriteCloser{}}
	return t.run(c.receive)
}

func TestTransfer(t *testing.T) {
	c := &client{content: map[uint32]string{1: "one", 300: "last"}}
	c.packets = append(c.packets, stat(Stat{Path: "d", Mode: fs.ModeDir | 0o755}))
	for i := 1; i <= 300; i++ {
		c.packets = append(c.packets, stat(Stat{Path: fmt.Sprintf("d/%03d", i), Mode: 0o644}))
	}
	c.packets = append(c.packets, stat(Stat{Path: "hard", Mode: 0o644, Link: "d/001"}), stat(Stat{Path: "link", Mode: fs.ModeSymlink, Link: "/etc"}),
		stat(Stat{Path: "pipe", Mode: fs.ModeNamedPipe}), packet{})
	m := &memory{}
	if err := c.run(m); err != nil {
		t.Fatal(err)
	}
	if want := []string{"d", "hard", "link", "pipe"}; !slices.Equal(m.added, want) {
		t.Errorf("without content: %q", m.added)
	}
	if len(m.files) != 300 || m.files["d/001"].String() != "one" || m.files["d/300"].String() != "last" || m.open != 0 || m.most > maxWanted {
		t.Errorf("%d files, %d open, once %d; the first %q", len(m.files), m.open, m.most, m.files["d/001"])
	}
	if last := c.sent[len(c.sent)-1]; last.kind != packetFin || len(c.sent) != 301 {
		t.Errorf("%d packets to the client, the last %+v", len(c.sent), last)
	}
	if err := (&client{packets: []packet{{}}}).run(&memory{}); err != nil {
		t.Errorf("an empty tree: %v", err)
	}
}

// TestHostileFiles: what a client may not send ends the transfer, is told to it, and makes nothing.
func TestHostileFiles(t *testing.T) {
	file := stat(Stat{Path: "a", Mode: 0o644})
	for what, packets := range map[string][]packet{
		"names the end early":    {file},
		"finishes early":         {file, {}, {kind: packetFin}},
		"finishes unasked":       {{kind: packetFin}},
		"a file after the end":   {file, {}, file},
		"the end twice":          {file, {}, {}},
		"content of no file":     {file, {kind: packetData, id: 1, data: []byte("x")}},
		"content of a directory": {stat(Stat{Path: "a", Mode: fs.ModeDir}), {kind: packetData, id: 0}},
		"content twice":          {file, {kind: packetData, id: 0}, {kind: packetData, id: 0}},
		"an unknown kind":        {{kind: 9}},
		"a file without name":    {stat(Stat{Mode: 0o644})},
		"a file without stat":    {{stat: []byte{}}},
		"half a stat":            {{stat: []byte{0x0a, 5, 'a'}}},
		"..":                     {stat(Stat{Path: "..", Mode: fs.ModeDir})},
		"../x":                   {stat(Stat{Path: "../x", Mode: 0o644})},
		"a/../../x":              {stat(Stat{Path: "a/../../x", Mode: 0o644})},
		"/x":                     {stat(Stat{Path: "/x", Mode: 0o644})},
		"a//x":                   {stat(Stat{Path: "a//x", Mode: 0o644})},
		"a/":                     {stat(Stat{Path: "a/", Mode: fs.ModeDir})},
		".":                      {stat(Stat{Path: ".", Mode: fs.ModeDir})},
		"no UTF-8":               {stat(Stat{Path: "a\xff", Mode: 0o644})},
		"a long name":            {stat(Stat{Path: strings.Repeat("a", maxPath+1), Mode: 0o644})},
		"a long link":            {stat(Stat{Path: "a", Mode: fs.ModeSymlink, Link: strings.Repeat("a", maxPath+1)})},
	} {
		c, m := &client{packets: packets}, &memory{}
		if err := c.run(m); err == nil {
			t.Errorf("%s: taken", what)
		}
		if strings.Contains(what, "/") && len(m.files)+len(m.added) > 0 {
			t.Errorf("%s: made %q %q", what, slices.Collect(maps.Keys(m.files)), m.added)
		}
	}
	c := &client{packets: []packet{file, {kind: packetErr, data: []byte("disk \x1b gone")}}}
	if err := c.run(&memory{}); err == nil || !strings.Contains(err.Error(), `disk \x1b gone`) {
		t.Errorf("the client's error: %v", err)
	}
	c = &client{packets: []packet{file}}
	if err := c.run(&memory{fail: errors.New("no room")}); err == nil || err.Error() != "no room" {
		t.Errorf("our error: %v", err)
	} else if last := c.sent[len(c.sent)-1]; last.kind != packetErr || string(last.data) != "no room" {
		t.Errorf("the client was told %+v", last)
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(stat(Stat{Path: "a", Mode: 0o644}).encode())
	f.Add([]byte("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Add([]byte("\x22\xff\xff\xff\xff\xff\xff\xff\xff\x7fabc"))
	f.Add([]byte("\x0b\x00\x09abcdefgh"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err != nil {
			return
		}
		if q, err := parsePacket(p.encode()); err != nil || q.kind != p.kind || q.id != p.id || !bytes.Equal(q.data, p.data) || !bytes.Equal(q.stat, p.stat) {
			t.Errorf("%+v, %v is not %+v", q, err, p)
		}
		if s, err := parseStat(p.stat); err == nil && (!fs.ValidPath(s.Path) || len(s.Path) > maxPath) {
			t.Errorf("the path %q", s.Path)
		}
	})
}

func TestPatternsThatFitNoHeader(t *testing.T) {
	for _, c := range []struct {
		patterns []string
		want     bool
	}{
		{[]string{"a", "!b/*"}, true},
		{nil, false},
		{[]string{"a", "ä"}, false},
		{[]string{"a\x01"}, false},
		{slices.Repeat([]string{strings.Repeat("a", 1000)}, 1000), false},
	} {
		//lint:ignore SA1008 gRPC's metadata is in small letters
		if _, got := (Select{Dir: "context", Exclude: c.patterns}).metadata()["exclude-patterns"]; got != c.want {
			t.Errorf("%.20q: sent: %v", c.patterns, got)
		}
	}
}
