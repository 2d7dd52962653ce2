package buildsession

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/grpc"
)

// Files come as packets (github.com/tonistiigi/fsutil, types/wire.proto):
//
//	client  STAT path mode ...   one for each file, in the order of a walk; an empty one ends them
//	engine  REQ id               wants what is in the id-th
//	client  DATA id bytes        without bytes: its end
//	engine  FIN
//	client  FIN
//	either  ERR text
const (
	packetStat = 0
	packetReq  = 1
	packetData = 2
	packetFin  = 3
	packetErr  = 4
)

const methodDiffCopy = "/moby.filesync.v1.FileSync/DiffCopy"

// Bounds of one tree.
const (
	maxFiles = 4 << 20
	maxPath  = 4096
	// maxWanted is how many files are on their way at once. A client stops listening to
	// wishes while more than 128 are not answered, and we send them while we read.
	maxWanted = 64
)

// Stat describes a file of the client's. Path is local and clean, links are not looked at.
type Stat struct {
	Path    string
	Mode    fs.FileMode
	Size    int64
	ModTime time.Time
	Link    string // the target of a symlink; of a regular file: the path that it is another name of

	// Only of what is sent to a client.
	UID, GID   uint32
	Device     uint64
	Capability []byte // the attribute security.capability
}

const capability = "security.capability"

type unixStat = syscall.Stat_t

// StatOf is what is known of a file.
func StatOf(name string, info fs.FileInfo) Stat {
	st := Stat{Path: name, Mode: info.Mode(), ModTime: info.ModTime()}
	if st.Mode.IsRegular() {
		st.Size = info.Size()
	}
	if sys, ok := info.Sys().(*unixStat); ok {
		st.UID, st.GID, st.Device = sys.Uid, sys.Gid, sys.Rdev
	}
	return st
}

// Encode is the message as it travels.
func (s Stat) Encode() []byte {
	b := grpc.AppendNumber(grpc.AppendText(nil, 1, s.Path), 2, uint64(uint32(s.Mode)))
	b = grpc.AppendNumber(grpc.AppendNumber(b, 3, uint64(s.UID)), 4, uint64(s.GID))
	b = grpc.AppendNumber(grpc.AppendNumber(b, 5, uint64(s.Size)), 6, uint64(s.ModTime.UnixNano()))
	b = grpc.AppendText(b, 7, s.Link)
	b = grpc.AppendNumber(grpc.AppendNumber(b, 8, uint64(unix.Major(s.Device))), 9, uint64(unix.Minor(s.Device)))
	if s.Capability != nil {
		b = grpc.AppendMessage(b, 10, grpc.AppendText(grpc.AppendText(nil, 1, capability), 2, s.Capability))
	}
	return b
}

// Select says which files are wanted.
type Select struct {
	Dir    string   // what the client calls it: "context", "dockerfile"
	Follow []string // these, and what they lead to as symlinks; none: all
	// Exclude has the patterns of an ignore file. A client may send more than they let
	// through: patterns that do not fit into a header are not sent.
	Exclude []string
}

func (s Select) metadata() http.Header {
	h := http.Header{"dir-name": {s.Dir}}
	if len(s.Follow) > 0 {
		h["followpaths"] = s.Follow
	}
	if fitsHeader(s.Exclude) {
		h["exclude-patterns"] = s.Exclude
	}
	return h
}

// maxPatterns is half of what Go's servers take as the header of a request.
const maxPatterns = 512 << 10

func fitsHeader(patterns []string) bool {
	n := 0
	for _, p := range patterns {
		n += len(p) + 64
		for i := range len(p) {
			if p[i] < ' ' || p[i] > '~' {
				return false
			}
		}
	}
	return n > 0 && n < maxPatterns
}

// Sink takes the files as they come.
type Sink interface {
	// Add is called for each but regular files with a content of their own.
	Add(Stat) error
	// Create is called for these; the writer is closed when all is there.
	Create(Stat) (io.WriteCloser, error)
}

// Files has the client send a tree. progress is told the bytes so far.
func (s *Session) Files(ctx context.Context, sel Select, sink Sink, progress func(n int64)) error {
	if !s.offers(methodDiffCopy) {
		return fault.Invalidf("the client's session offers no files")
	}
	st := s.call(ctx, methodDiffCopy, sel.metadata())
	defer st.close()
	t := &transfer{sink: sink, send: st.send, open: map[uint32]io.WriteCloser{}, progress: progress}
	err := t.run(st.receive)
	for _, w := range t.open {
		w.Close()
	}
	if err == nil {
		st.endSending()
		err = st.end()
	}
	if err != nil {
		return fmt.Errorf("receive the %s from the client: %w", sel.Dir, err)
	}
	return nil
}

// transfer is one tree on its way. One goroutine reads, writes files and sends wishes.
type transfer struct {
	sink     Sink
	send     func([]byte) error
	progress func(int64)

	count   uint32
	listed  bool
	waiting []wanted
	open    map[uint32]io.WriteCloser
	bytes   int64
	told    int64
}

type wanted struct {
	id   uint32
	stat Stat
}

func (t *transfer) run(receive func() ([]byte, error)) error {
	for {
		b, err := receive()
		if errors.Is(err, io.EOF) {
			return fault.Invalidf("it ended before all was sent")
		}
		if err != nil {
			return err
		}
		p, err := parsePacket(b)
		if err == nil && p.kind == packetFin {
			if !t.done() {
				return fault.Invalidf("it ended before all was sent")
			}
			return nil
		}
		if err == nil {
			err = t.packet(p)
		}
		if err != nil {
			if p.kind != packetErr { // the client shows it
				_ = t.send(packet{kind: packetErr, data: []byte(err.Error())}.encode())
			}
			return err
		}
	}
}

func (t *transfer) done() bool { return t.listed && len(t.waiting) == 0 && len(t.open) == 0 }

func (t *transfer) packet(p packet) error {
	was := t.done()
	switch {
	case p.kind == packetErr:
		return fault.Invalidf("%.4096q", p.data)
	case p.kind == packetStat && t.listed:
		return fault.Invalidf("it sent more files than it has")
	case p.kind == packetStat && p.stat == nil:
		t.listed = true
	case p.kind == packetStat:
		if err := t.stat(p.stat); err != nil {
			return err
		}
	case p.kind == packetData:
		if err := t.data(p); err != nil {
			return err
		}
	default:
		return fault.Invalidf("it sent a packet of the unknown kind %d", p.kind)
	}
	if err := t.wish(); err != nil {
		return err
	}
	if !was && t.done() {
		return t.send(packet{kind: packetFin}.encode())
	}
	return nil
}

func (t *transfer) stat(b []byte) error {
	st, err := parseStat(b)
	if err != nil {
		return err
	}
	if t.count == maxFiles {
		return fault.Invalidf("it has more than %d files; name what is not wanted in .dockerignore", maxFiles)
	}
	id := t.count
	t.count++
	// What has bits of a type can have no content (fileCanRequestData of both sides).
	if st.Mode&fs.ModeType != 0 || st.Link != "" {
		return t.sink.Add(st)
	}
	t.waiting = append(t.waiting, wanted{id, st})
	return nil
}

// wish asks for what may be under way.
func (t *transfer) wish() error {
	for len(t.waiting) > 0 && len(t.open) < maxWanted {
		w := t.waiting[0]
		t.waiting = t.waiting[1:]
		f, err := t.sink.Create(w.stat)
		if err != nil {
			return err
		}
		t.open[w.id] = f
		if err := t.send(packet{kind: packetReq, id: w.id}.encode()); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) data(p packet) error {
	f := t.open[p.id]
	if f == nil {
		return fault.Invalidf("it sent what is in file %d, which nobody wants", p.id)
	}
	if len(p.data) == 0 {
		delete(t.open, p.id)
		return f.Close()
	}
	t.bytes += int64(len(p.data))
	if t.progress != nil && t.bytes-t.told > 256<<10 {
		t.told = t.bytes
		t.progress(t.bytes)
	}
	_, err := f.Write(p.data)
	return err
}

// packet as it travels. stat is the message of a file; nil: none.
type packet struct {
	kind int
	stat []byte
	id   uint32
	data []byte
}

func (p packet) encode() []byte {
	b := grpc.AppendNumber(nil, 1, uint64(p.kind))
	if p.stat != nil {
		b = grpc.AppendMessage(b, 2, p.stat)
	}
	return grpc.AppendText(grpc.AppendNumber(b, 3, uint64(p.id)), 4, p.data)
}

func parsePacket(b []byte) (p packet, err error) {
	err = grpc.Each(b, func(f grpc.Field) error {
		switch {
		case f.Number == 1 && f.Kind == grpc.Varint:
			p.kind = int(min(f.Value, 1<<16))
		case f.Number == 2 && f.Kind == grpc.Delimited:
			p.stat = f.Data
		case f.Number == 3 && f.Kind == grpc.Varint:
			p.id = uint32(f.Value)
		case f.Number == 4 && f.Kind == grpc.Delimited:
			p.data = f.Data
		}
		return nil
	})
	return p, err
}

func parseStat(b []byte) (s Stat, err error) {
	err = grpc.Each(b, func(f grpc.Field) error {
		switch {
		case f.Number == 1 && f.Kind == grpc.Delimited:
			s.Path = string(f.Data)
		case f.Number == 2 && f.Kind == grpc.Varint:
			s.Mode = fs.FileMode(uint32(f.Value))
		case f.Number == 5 && f.Kind == grpc.Varint:
			s.Size = int64(f.Value)
		case f.Number == 6 && f.Kind == grpc.Varint:
			s.ModTime = time.Unix(0, int64(f.Value))
		case f.Number == 7 && f.Kind == grpc.Delimited:
			s.Link = string(f.Data)
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	if !fs.ValidPath(s.Path) || s.Path == "." || len(s.Path) > maxPath || path.Clean(s.Path) != s.Path || len(s.Link) > maxPath {
		return s, fault.Invalidf("it sent a file with the name %.256q", s.Path)
	}
	return s, nil
}
