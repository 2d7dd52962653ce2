// Package snapshot keeps root file systems as overlay stacks: committed layers below,
// one writable directory on top.
//
//	layers/diff-<diff-id>/{diff/,recipe,layer.json}    a layer that is whole by itself
//	layers/chain-<chain-id>/{diff/,...,damaged}        one that was finished on its parents
//	layers/.new/  .trash/                              being made, being deleted
//	layers/.unsynced/<boot-id>/<layer>                 not known to be on disk yet
//	layers/.leases/  .lock  .empty/                    protection from Sweep; the bottom of scratch
//	active/<key>/{upper/,work/,parents}                writable: containers and build steps
//
// Everything appears by one rename. .lock is held shared while a layer or key comes
// into being (microseconds) and exclusive while Sweep decides.
package snapshot

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/layer"
	"keg/internal/linux"
	"keg/internal/weakness"
)

// Store owns layers/ and active/ below its root.
type Store struct {
	root string
	opt  Options

	noAppend atomic.Bool // the kernel lacks lowerdir+ (before 6.7)
}

// Options of OpenWith.
type Options struct {
	// UserXattr mounts and unpacks with user.overlay.* attributes: inside a user
	// namespace (overlayfs "userxattr", kernel 5.11).
	UserXattr bool
	// SingleID leaves all files owned by the caller: a user namespace with one id.
	SingleID bool
}

// Open uses the directory root and makes its skeleton when missing. It scans nothing
// but the list of layers that another boot left unsynced, and drops these.
func Open(root string) (*Store, error) {
	return OpenWith(root, Options{UserXattr: linux.InUserNS(), SingleID: linux.SingleID()})
}

// OpenWith is Open with options.
func OpenWith(root string, o Options) (*Store, error) {
	s := &Store{root: root, opt: o}
	if err := s.skeleton(); err != nil {
		return nil, err
	}
	if err := s.dropUnsynced(); err != nil {
		return nil, err
	}
	return s, nil
}

// skeleton makes the directories; active/ comes last and tells that all are there.
func (s *Store) skeleton() error {
	if _, err := os.Lstat(s.active("")); err == nil {
		return nil
	}
	mode := os.FileMode(0o700)
	if weakness.Of("IM3") {
		mode = 0o755
	}
	for _, d := range []string{"", ".new", ".trash", ".unsynced", ".leases", ".empty"} {
		if err := os.MkdirAll(s.layers(d), mode); err != nil {
			return err
		}
	}
	for _, d := range []string{".empty/a", ".empty/b"} {
		if err := os.MkdirAll(s.layers(d), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(s.layers(d), 0o755); err != nil {
			return err
		}
	}
	return os.MkdirAll(s.active(""), 0o700)
}

func (s *Store) layers(p string) string { return filepath.Join(s.root, "layers", p) }
func (s *Store) active(p string) string { return filepath.Join(s.root, "active", p) }

// lock keeps Sweep out (shared) or everybody else (exclusive).
func (s *Store) lock(how int) (unlock func(), err error) {
	f, err := os.OpenFile(s.layers(".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// A stack is the list of diffIDs of an image, bottom first, as in its config.

// layerDir is a committed layer as found on disk.
type layerDir struct {
	name string
	root layer.Attr // of its root directory
	says bool       // its tar lists the root, so root counts
	time unix.Timespec
}

// unlisted is the time of a root directory that its layer's tar does not list. It
// costs no second look when a stack is prepared.
var unlisted = unix.Timespec{Sec: 0, Nsec: 1}

func sharedName(d digest.Digest) string { return "diff-" + d.Encoded() }
func chainName(id digest.Digest) string { return "chain-" + id.Encoded() }
func validStack(st []digest.Digest) error {
	for _, d := range st {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fault.Invalidf("layer %q: not a sha256 digest", d)
		}
	}
	return nil
}

// find looks for layer i of a stack; chain is the stack's chain id up to it.
func (s *Store) find(diffID, chain digest.Digest) (layerDir, bool) {
	for _, name := range [...]string{sharedName(diffID), chainName(chain)} {
		var st unix.Stat_t
		if unix.Lstat(s.layers(name)+"/diff", &st) == nil && !s.damaged(name) {
			return layerDir{name, layer.Attr{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}, st.Mtim != unlisted, st.Mtim}, true
		}
	}
	return layerDir{}, false
}

func (s *Store) damaged(name string) bool {
	return unix.Access(s.layers(name)+"/damaged", unix.F_OK) == nil
}

// resolve finds the layers of a stack from the bottom until one is missing.
func (s *Store) resolve(stack []digest.Digest) (found []layerDir) {
	if validStack(stack) != nil {
		return nil
	}
	chains := image.ChainIDs(stack)
	for i, d := range stack {
		l, ok := s.find(d, chains[i])
		if !ok {
			return found
		}
		found = append(found, l)
	}
	return found
}

// all is resolve of a stack that must be whole.
func (s *Store) all(stack []digest.Digest) ([]layerDir, error) {
	if err := validStack(stack); err != nil {
		return nil, err
	}
	found := s.resolve(stack)
	if n := len(found); n < len(stack) {
		return nil, s.missing(stack[n], image.ChainID(stack[:n+1]))
	}
	return found, nil
}

func (s *Store) missing(d, chain digest.Digest) error {
	for _, name := range [...]string{sharedName(d), chainName(chain)} {
		if s.damaged(name) {
			return fault.NotFoundf("layer %s is damaged; run \"keg system check\", then pull or build the image again", d)
		}
	}
	return fault.NotFoundf("layer %s is not here; pull or build the image again", d)
}

// Has reports how many layers of the stack, from the bottom, are committed here. A
// layer that was found damaged is not.
func (s *Store) Has(stack []digest.Digest) int { return len(s.resolve(stack)) }

// rootAttr is what the root directory shows on top of a stack: the attributes that the
// topmost layer which lists it gives.
func rootAttr(found []layerDir) (layer.Attr, unix.Timespec, bool) {
	for i := len(found) - 1; i >= 0; i-- {
		if found[i].says {
			return found[i].root, found[i].time, true
		}
	}
	return layer.Attr{Mode: 0o755}, unix.Timespec{}, false
}

// validKey keeps keys to one safe path element.
func validKey(key string) error {
	ok := key != "" && len(key) <= 128 && key[0] != '.' && strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == ""
	if !ok {
		return fault.Invalidf("invalid snapshot key %q", key)
	}
	return nil
}

func randomName() string {
	var b [8]byte
	for i, v := 0, rand.Uint64(); i < 8; i, v = i+1, v>>8 {
		b[i] = byte(v)
	}
	return hex.EncodeToString(b[:])
}

func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// exists reports what a rename of a directory onto another says.
func exists(err error) bool { return errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) }
