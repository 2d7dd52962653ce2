package api

// The context of a build: a tar from a client to a directory of our own. It is hostile:
// every name goes through os.Root, which leaves the directory by no link.

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// makeScratch makes a directory that goes with this process: what a killed server left is
// swept by the next build. dir is locked while directories come and go.
func makeScratch(dir string) (string, func(), error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	all, err := flocked(dir, unix.LOCK_EX)
	if err != nil {
		return "", nil, err
	}
	defer all.Close()
	old, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, err
	}
	for _, e := range old {
		p := filepath.Join(dir, e.Name())
		if f, err := flocked(p, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			os.RemoveAll(p)
			f.Close()
		}
	}
	own, err := os.MkdirTemp(dir, "")
	if err != nil {
		return "", nil, err
	}
	hold, err := flocked(own, unix.LOCK_EX)
	if err != nil {
		return "", nil, err
	}
	return own, func() { os.RemoveAll(own); hold.Close() }, nil
}

func flocked(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// decompressed finds out how a stream is packed.
func decompressed(r io.Reader) (*bufio.Reader, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var u io.Reader
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		u, err = gzip.NewReader(b)
	case bytes.HasPrefix(head, []byte("BZh")):
		u, err = bzip2.NewReader(b), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		u, err = xz.NewReader(b)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		u, err = zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
	default:
		return b, nil
	}
	if err != nil {
		return nil, fault.Invalidf("read the context: %w", err)
	}
	return bufio.NewReaderSize(u, 64<<10), nil
}

// unpackContext writes a context below root. With plain a body that is no archive is the
// Dockerfile itself, which is returned.
func unpackContext(root *os.Root, body io.Reader, plain bool) ([]byte, error) {
	b, err := decompressed(body)
	if err != nil {
		return nil, err
	}
	if head, _ := b.Peek(262); plain && (len(head) < 262 || string(head[257:262]) != "ustar") {
		text, err := io.ReadAll(io.LimitReader(b, maxDockerfile+1))
		if len(text) > maxDockerfile {
			return nil, fault.Invalidf("the remote file is neither an archive nor a Dockerfile of at most 4 MiB")
		}
		return text, err
	}
	u := unpacking{root: root}
	for t := tar.NewReader(b); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, u.finish()
		}
		if err != nil {
			return nil, fault.Invalidf("read the context: %w", err)
		}
		if err := u.entry(h, t); err != nil {
			return nil, fault.Invalidf("unpack %q of the context: %w", h.Name, err)
		}
	}
}

type unpacking struct {
	root *os.Root
	dirs []*tar.Header // their modes and times are set last
}

func (u *unpacking) entry(h *tar.Header, r io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		return nil
	}
	if h.Typeflag == tar.TypeDir {
		if err := u.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		u.dirs = append(u.dirs, h)
		err := u.root.Mkdir(name, 0o755)
		if st, serr := u.root.Lstat(name); errors.Is(err, fs.ErrExist) && serr == nil && st.IsDir() {
			return nil
		}
		return err
	}
	if err := u.clear(name); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.regular(name, h, r)
	case tar.TypeSymlink:
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return u.root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("files of type %q are not taken into a context", h.Typeflag)
}

// clear makes the place of a file that is no directory.
func (u *unpacking) clear(name string) error {
	if err := u.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	st, err := u.root.Lstat(name)
	if err != nil {
		return nil
	}
	if st.IsDir() {
		return errors.New("it replaces a directory")
	}
	return u.root.Remove(name)
}

func (u *unpacking) regular(name string, h *tar.Header, r io.Reader) error {
	f, err := u.create(name, h)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// unpacked is a file that gets its mode and time when it is closed.
type unpacked struct {
	*os.File
	root *os.Root
	name string
	h    *tar.Header
}

func (u *unpacking) create(name string, h *tar.Header) (*unpacked, error) {
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &unpacked{f, u.root, name, h}, nil
}

func (f *unpacked) Close() error {
	if err := errors.Join(f.Chmod(modeOf(f.h)), f.File.Close()); err != nil {
		return err
	}
	return f.root.Chtimes(f.name, time.Time{}, f.h.ModTime)
}

func modeOf(h *tar.Header) fs.FileMode {
	return h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

// finish gives directories their modes and times, the deepest first.
func (u *unpacking) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if st, err := u.root.Lstat(name); err != nil || !st.IsDir() {
			continue // a later entry replaced it
		}
		if err := errors.Join(u.root.Chmod(name, modeOf(h)), u.root.Chtimes(name, time.Time{}, h.ModTime)); err != nil {
			return fault.Invalidf("unpack %q of the context: %w", h.Name, err)
		}
	}
	return nil
}
