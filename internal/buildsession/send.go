package buildsession

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/grpc"
)

// What a build gives goes to the client by the same method, in two ways: one file as pieces of bytes, a tree in the
// packets of files.go with the roles changed. The metadata says for which of its exporters it is.
const (
	methodSend     = "/moby.filesync.v1.FileSend/DiffCopy"
	headerExporter = "buildkit-attachable-exporter-id"
	headerOneTree  = "buildkit-exporter-multi-platform" // all that an exporter gives comes in one tree
)

// maxPiece is what one message of a file has. gRPC's libraries take 4 MiB.
const maxPiece = 1 << 20

// SendFile opens the file of an exporter of the client's. Closing it waits until the client has it.
func (s *Session) SendFile(ctx context.Context, exporter int) (io.WriteCloser, error) {
	if !s.offers(methodSend) {
		return nil, fault.Invalidf("the client's session takes no files")
	}
	return &outgoing{st: s.call(ctx, methodSend, http.Header{headerExporter: {strconv.Itoa(exporter)}})}, nil
}

type outgoing struct {
	st     *stream
	closed bool
}

func (o *outgoing) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		piece := b[:min(len(b), maxPiece)]
		if err := o.st.send(grpc.AppendText(nil, 1, piece)); err != nil {
			return n, o.why(err)
		}
		n, b = n+len(piece), b[len(piece):]
	}
	return n, nil
}

// why is the client's own word on a call that broke.
func (o *outgoing) why(err error) error {
	if _, e := o.st.receive(); e != nil && !errors.Is(e, io.EOF) {
		err = e
	}
	return fmt.Errorf("send a file to the client: %w", err)
}

// CloseWithError gives up: the client does not take what it has for the whole.
func (o *outgoing) CloseWithError(error) error {
	if !o.closed {
		o.closed = true
		o.st.close()
	}
	return nil
}

func (o *outgoing) Close() error {
	if o.closed {
		return nil
	}
	o.closed = true
	defer o.st.close()
	o.st.endSending()
	if err := o.st.end(); err != nil {
		return fmt.Errorf("send a file to the client: %w", err)
	}
	return nil
}

// SendTree sends the files below root to an exporter of the client's, below a directory of its ("": at the top).
func (s *Session) SendTree(ctx context.Context, exporter int, root *os.File, below string) error {
	if !s.offers(methodSend) {
		return fault.Invalidf("the client's session takes no files")
	}
	r, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", root.Fd()))
	if err != nil {
		return err
	}
	defer r.Close()
	h := http.Header{headerExporter: {strconv.Itoa(exporter)}}
	if below == "" {
		h[headerOneTree] = []string{"1"}
	}
	st := s.call(ctx, methodSend, h)
	defer st.close()
	t := &treeSender{root: r, dir: root, below: below, send: st.send, names: map[inode]string{}, more: make(chan struct{}, 1)}
	if err := t.run(ctx, st); err != nil {
		return fmt.Errorf("send files to the client: %w", err)
	}
	st.endSending()
	return st.end()
}

type inode struct{ dev, ino uint64 }

// treeSender is one tree on its way.
type treeSender struct {
	root  *os.Root
	dir   *os.File
	below string
	send  func([]byte) error
	files []string         // by their number; "": without content
	names map[inode]string // of those with several names

	mu     sync.Mutex
	wishes []uint32
	over   bool // the client has all
	err    error
	more   chan struct{}
}

func (t *treeSender) run(ctx context.Context, st *stream) error {
	read := make(chan struct{})
	go func() {
		defer close(read)
		t.listen(st)
	}()
	err := t.list()
	if err == nil {
		err = t.serve(ctx)
	}
	if err != nil {
		t.mu.Lock()
		told := t.err // what the client says is the cause
		t.mu.Unlock()
		if told == nil {
			_ = t.send(packet{kind: packetErr, data: []byte(err.Error())}.encode())
			told = err
		}
		st.abort()
		<-read
		return told
	}
	<-read
	if !t.over {
		return t.err
	}
	return nil
}

// listen takes the client's wishes.
func (t *treeSender) listen(st *stream) {
	for {
		p, err := func() (packet, error) {
			b, err := st.receive()
			if err != nil {
				return packet{}, err
			}
			return parsePacket(b)
		}()
		t.mu.Lock()
		switch {
		case err != nil:
			t.err = err
		case p.kind == packetErr:
			t.err = fault.Invalidf("the client says %.4096q", p.data)
		case p.kind == packetReq && len(t.wishes) < maxFiles:
			t.wishes = append(t.wishes, p.id)
		case p.kind == packetFin:
			t.over = true
		default:
			t.err = fault.Invalidf("the client sent a packet of the unexpected kind %d", p.kind)
		}
		end := t.err != nil || t.over
		t.mu.Unlock()
		select {
		case t.more <- struct{}{}:
		default:
		}
		if end {
			return
		}
	}
}

// list sends what is known of each file.
func (t *treeSender) list() error {
	for i := range t.below {
		if t.below[i] == '/' {
			return fault.Invalidf("files of %q: one directory is possible", t.below)
		}
	}
	if t.below != "" {
		if err := t.stat(t.below, Stat{Path: t.below, Mode: fs.ModeDir | 0o755}); err != nil {
			return err
		}
	}
	err := fs.WalkDir(t.root.FS(), ".", func(at string, _ fs.DirEntry, err error) error {
		if err != nil || at == "." {
			return err
		}
		st, err := t.look(at)
		if err != nil {
			return err
		}
		return t.stat(at, st)
	})
	if err != nil {
		return err
	}
	return t.send(packet{kind: packetStat}.encode())
}

func (t *treeSender) stat(at string, st Stat) error {
	content := ""
	if st.Mode&fs.ModeType == 0 && st.Link == "" {
		content = at
	}
	t.files = append(t.files, content)
	return t.send(packet{kind: packetStat, stat: st.Encode()}.encode())
}

func (t *treeSender) look(at string) (Stat, error) {
	info, err := t.root.Lstat(at)
	if err != nil {
		return Stat{}, err
	}
	st := StatOf(path.Join(t.below, at), info)
	sys, _ := info.Sys().(*unixStat)
	switch {
	case st.Mode&fs.ModeSymlink != 0:
		st.Link, err = t.root.Readlink(at)
		return st, err
	case st.Mode.IsRegular():
		if sys != nil && sys.Nlink > 1 {
			id := inode{sys.Dev, sys.Ino}
			if first, ok := t.names[id]; ok {
				st.Link = first
				return st, nil
			}
			t.names[id] = st.Path
		}
		b := make([]byte, 1024)
		if n, err := unix.Lgetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", t.dir.Fd(), at), capability, b); err == nil {
			st.Capability = b[:n]
		}
	}
	return st, nil
}

// serve sends contents until the client has what it wants.
func (t *treeSender) serve(ctx context.Context) error {
	buffer := make([]byte, 256<<10)
	for {
		t.mu.Lock()
		wishes, over, err := t.wishes, t.over, t.err
		t.wishes = nil
		t.mu.Unlock()
		for _, id := range wishes {
			if err := t.content(id, buffer); err != nil {
				return err
			}
		}
		switch {
		case len(wishes) > 0:
		case over:
			return t.send(packet{kind: packetFin}.encode())
		case err != nil:
			return err
		default:
			select {
			case <-t.more:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func (t *treeSender) content(id uint32, buffer []byte) error {
	if int(id) >= len(t.files) || t.files[id] == "" {
		return fault.Invalidf("the client wants file %d, which has no content", id)
	}
	f, err := t.root.Open(t.files[id])
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		n, err := f.Read(buffer)
		if n > 0 {
			if err := t.send(packet{kind: packetData, id: id, data: buffer[:n]}.encode()); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return t.send(packet{kind: packetData, id: id}.encode())
		}
		if err != nil {
			return err
		}
	}
}
