package test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// listing is a file tree by path: all that an image keeps of a file, in words.
type listing map[string]string

// oldFile is what a file's time is compared below: later ones were made by the build.
const oldFile = 1704067200 // 2024

// listTree reads the tree below root, which ends in a slash where it is a link. Times count where they are older than the test.
func listTree(root string) (listing, error) {
	l := listing{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, strings.TrimSuffix(root, "/"))
		if rel == "" {
			rel = "/"
		}
		l[rel], err = describeFile(p)
		return err
	})
	return l, err
}

func describeFile(p string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return "", err
	}
	s := fmt.Sprintf("%s %04o %d:%d", kindOf(st.Mode), st.Mode&0o7777, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		sum, err := hashFile(p)
		if err != nil {
			return "", err
		}
		s += fmt.Sprintf(" %d %s", st.Size, sum)
	case unix.S_IFLNK:
		to, err := os.Readlink(p)
		if err != nil {
			return "", err
		}
		s += " -> " + to
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if st.Mtim.Sec < oldFile && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s += fmt.Sprintf(" @%d", st.Mtim.Sec)
	}
	xattrs, err := fileXattrs(p)
	return s + xattrs, err
}

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFREG:
		return "file"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFIFO:
		return "fifo"
	}
	return "node"
}

func hashFile(p string) (string, error) {
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), err
}

// fileXattrs leaves out what belongs to the overlay itself.
func fileXattrs(p string) (string, error) {
	b := make([]byte, 4096)
	n, err := unix.Llistxattr(p, b)
	if err != nil {
		return "", nil // a file system without them
	}
	var names []string
	for name := range strings.SplitSeq(string(b[:n]), "\x00") {
		if name != "" && !strings.HasPrefix(name, "trusted.overlay.") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	s := ""
	for _, name := range names {
		v := make([]byte, 4096)
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			return "", err
		}
		s += fmt.Sprintf(" %s=%x", name, v[:n])
	}
	return s, nil
}

// differ lists the paths whose words differ, sorted.
func (l listing) differ(o listing) (paths []string) {
	for p := range l {
		if l[p] != o[p] {
			paths = append(paths, p)
		}
	}
	for p := range o {
		if _, ok := l[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths
}
