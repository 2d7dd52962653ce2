// The files that a step reads: found, digested, remembered, and copied for a mount.
package builder

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/image"
)

// files adds the digest of the selected files to the inputs. The files themselves are
// returned when they were looked at; for a stage whose answer is remembered they are
// not, and source finds them when needed.
func (s *solver) files(ctx context.Context, from *stage, sel selector, in *inputs) ([]source, error) {
	label := path.Clean("/" + sel.Path)
	if from != nil {
		label = from.label() + ":" + label
	}
	if from == nil || from.local != "" {
		found, err := s.contextFiles(ctx, from, sel)
		if err != nil {
			return nil, err
		}
		in.add(kindFiles, label, digestOf(found, false))
		in.details = append(in.details, func() []Input { return fileInputs(label, found, false) })
		return found, nil
	}
	r, err := s.wait(ctx, from)
	if err != nil {
		return nil, err
	}
	memo := s.cache.tree(hashName(image.ChainID(r.stack).String(), fmt.Sprintf("%+v", sel)))
	var sum string
	if disk.GetJSON(memo, &sum) == nil && len(sum) == sha256.Size*2 {
		in.add(kindFiles, label, sum)
		in.details = append(in.details, func() []Input {
			found, err := s.stageFiles(ctx, from, sel)
			if err != nil {
				return nil
			}
			return fileInputs(label, found, true)
		})
		return nil, nil
	}
	found, err := s.stageFiles(ctx, from, sel)
	if err != nil {
		return nil, err
	}
	sum = digestOf(found, true)
	in.add(kindFiles, label, sum)
	in.details = append(in.details, func() []Input { return fileInputs(label, found, true) })
	return found, disk.PutJSONVolatile(memo, sum)
}

func (s *stage) label() string {
	if s.external || s.src.Name == "" {
		return s.src.BaseName
	}
	return s.src.Name
}

// contextFiles finds and digests files of the context. The matcher of the ignore file
// serves one at a time.
func (s *solver) contextFiles(ctx context.Context, from *stage, sel selector) ([]source, error) {
	bc, err := s.from(from)
	if err != nil {
		return nil, err
	}
	s.walk.Lock()
	var v *vertex
	if s.load == nil {
		v = s.progress.start("[internal] load build context")
		s.load = v
	}
	found, err := bc.find(ctx, sel)
	s.walk.Unlock()
	if err == nil {
		err = bc.fill(ctx, found)
	}
	if v != nil {
		var n int64
		for _, f := range found {
			for _, e := range f.entries {
				if e.is(unix.S_IFREG) {
					n += e.st.Size
				}
			}
		}
		v.status("transferring context: " + size(n) + " done")
		v.done(nil)
	}
	return found, err
}

func (s *solver) stageFiles(ctx context.Context, from *stage, sel selector) ([]source, error) {
	r, err := s.wait(ctx, from)
	if err != nil {
		return nil, err
	}
	t, err := s.view(ctx, r.stack)
	if err != nil {
		return nil, err
	}
	found, err := t.find(ctx, sel)
	if err != nil {
		return nil, err
	}
	return found, t.fill(ctx, found)
}

// digestOf hashes everything of the sources that a copy shows: names, types, modes,
// owners (where they count), targets, contents. Times do not count.
func digestOf(found []source, owned bool) string {
	h := sha256.New()
	for i := range found {
		writeString(h, found[i].name)
		for j := range found[i].entries {
			writeEntry(h, &found[i].entries[j], owned)
		}
		h.Write([]byte{0xff})
	}
	return hex.EncodeToString(h.Sum(nil))
}

func writeString(h hash.Hash, s string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(s)))
	h.Write(n[:])
	h.Write([]byte(s))
}

func writeEntry(h hash.Hash, e *entry, owned bool) {
	writeString(h, e.rel)
	var b [33]byte
	be := binary.BigEndian
	be.PutUint32(b[0:], e.st.Mode)
	if e.is(unix.S_IFLNK) {
		be.PutUint32(b[0:], unix.S_IFLNK|0o777)
	}
	if owned {
		be.PutUint32(b[4:], e.st.Uid)
		be.PutUint32(b[8:], e.st.Gid)
	}
	if e.is(unix.S_IFBLK) || e.is(unix.S_IFCHR) {
		be.PutUint64(b[16:], uint64(e.st.Rdev))
	}
	if e.parent {
		b[32] = 1
	}
	h.Write(b[:])
	writeString(h, e.link)
	h.Write(e.sum[:])
}

// fileInputs are the files one by one, for explanations.
func fileInputs(label string, found []source, owned bool) []Input {
	var list []Input
	for i := range found {
		for j := range found[i].entries {
			e := &found[i].entries[j]
			owner := "-"
			if owned {
				owner = fmt.Sprintf("%d:%d", e.st.Uid, e.st.Gid)
			}
			sum := hex.EncodeToString(e.sum[:6])
			if e.link != "" {
				sum = "->" + e.link
			}
			name := found[i].at(e)
			list = append(list, Input{kindFile, name, fmt.Sprintf("%s %04o %s %s", typeName(e.st.Mode), e.st.Mode&0o7777, owner, sum)})
		}
	}
	return list
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	}
	return "special"
}

// materialise copies the selected files into a new directory below dir and returns its
// path, or that of the copy when a single file is meant.
func (s *solver) materialise(ctx context.Context, from *stage, sel selector, dir string) (string, error) {
	at := path.Join(dir, "m")
	if err := os.Mkdir(at, 0o755); err != nil {
		return "", err
	}
	isDir, err := s.materialiseAt(ctx, from, sel, at)
	if err != nil || isDir {
		return at, err
	}
	return path.Join(at, path.Base(path.Clean("/"+sel.Path))), nil
}

func (s *solver) materialiseAt(ctx context.Context, from *stage, sel selector, at string) (isDir bool, err error) {
	t, found, err := s.source(ctx, from, sel, nil)
	if err != nil {
		return false, err
	}
	root, err := os.OpenFile(at, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false, err
	}
	defer root.Close()
	c := copier{ctx: ctx, from: t, root: int(root.Fd()), buffer: make([]byte, 128<<10)}
	for i := range found {
		if err := c.copy(&found[i], "/"); err != nil {
			return false, err
		}
		isDir = found[i].dir()
	}
	if isDir && len(found) == 1 {
		st := &found[0].entries[0].st
		err = os.Chmod(at, fs.FileMode(st.Mode&0o777))
	}
	return isDir, err
}

// source gives the tree and the files of a selection; known are those that were
// looked at already.
func (s *solver) source(ctx context.Context, from *stage, sel selector, known []source) (*tree, []source, error) {
	if from == nil || from.local != "" {
		bc, err := s.from(from)
		if err == nil && known == nil {
			known, err = s.contextFiles(ctx, from, sel)
		}
		if err != nil {
			return nil, nil, err
		}
		return &bc.tree, known, nil
	}
	r, err := s.wait(ctx, from)
	if err != nil {
		return nil, nil, err
	}
	t, err := s.view(ctx, r.stack)
	if err != nil {
		return nil, nil, err
	}
	if known == nil {
		known, err = t.find(ctx, sel)
	}
	return t, known, err
}
