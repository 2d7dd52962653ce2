package sandbox

// The container's file tree while its mounts are still detached: paths are walked by
// descriptor, mount by mount, exactly as the container's own kernel view will resolve
// them, so that a symlink of the image leads into the container and nowhere else.

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"keg/internal/weakness"
)

// tree is the root and what will be mounted on it, in order.
type tree struct {
	root   int
	owner  *owner // of what is made; nil: us
	mounts []mountpoint
}

// mountpoint is a mount at a canonical path (no symlinks). fd is its root, or -1 for what only
// the child can make (proc, sysfs): below it nothing can be created from here.
type mountpoint struct {
	path string
	fd   int
}

// place is the end of a walk. file is opened with O_PATH; nil below a mount of the child, which
// must then open path itself.
type place struct {
	path string
	file *os.File
	mode uint32 // st_mode
	made bool   // it was created by this walk
}

func (p *place) isDir() bool { return p.mode&unix.S_IFMT == unix.S_IFDIR }

func (t *tree) at(p string) *mountpoint {
	for i := len(t.mounts) - 1; i >= 0; i-- {
		if t.mounts[i].path == p {
			return &t.mounts[i]
		}
	}
	return nil
}

// kind of object that a walk creates when its end is missing.
type kind uint8

const (
	nothing kind = iota
	directory
	emptyFile
)

// node is one step of the way; own says that the walk opened fd.
type node struct {
	path string
	fd   int
	own  bool
}

// Mirrors the kernel's limit (path_resolution(7)).
const maxLinks = 40

// walk resolves p, creating what is missing as make says.
func (t *tree) walk(p string, create kind) (_ place, err error) {
	stack := []node{{path: "/", fd: t.root}}
	if m := t.at("/"); m != nil {
		stack[0].fd = m.fd
	}
	defer func() {
		for _, n := range stack {
			if n.own {
				unix.Close(n.fd)
			}
		}
	}()
	rest := strings.Split(path.Clean("/"+p), "/")
	made := false
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		cur := stack[len(stack)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
				if cur.own {
					unix.Close(cur.fd)
				}
			}
			continue
		}
		at := path.Join(cur.path, name)
		if m := t.at(at); m != nil {
			if m.fd < 0 {
				return place{path: path.Join(append([]string{at}, rest...)...)}, nil
			}
			stack = append(stack, node{path: at, fd: m.fd})
			continue
		}
		fd, isLink, err := openName(cur.fd, name)
		if errors.Is(err, unix.ENOENT) && create != nothing {
			if err = t.makeName(cur.fd, name, create == emptyFile && last(rest)); err == nil {
				made = true
				fd, isLink, err = openName(cur.fd, name)
			}
		}
		if err != nil {
			return place{}, &os.PathError{Op: "resolve", Path: at, Err: err}
		}
		if !isLink {
			stack = append(stack, node{path: at, fd: fd, own: true})
			continue
		}
		to, err := readLink(fd)
		unix.Close(fd)
		if links++; err == nil && links > maxLinks {
			err = unix.ELOOP
		}
		if err != nil {
			return place{}, &os.PathError{Op: "follow", Path: at, Err: err}
		}
		if strings.HasPrefix(to, "/") {
			for _, n := range stack[1:] {
				if n.own {
					unix.Close(n.fd)
				}
			}
			stack = stack[:1]
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return t.arrive(stack[len(stack)-1], made)
}

// arrive turns the last node into a place with a descriptor of its own.
func (t *tree) arrive(end node, made bool) (place, error) {
	fd, err := unix.FcntlInt(uintptr(end.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return place{}, &os.PathError{Op: "hold", Path: end.path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return place{}, &os.PathError{Op: "stat", Path: end.path, Err: err}
	}
	return place{path: end.path, file: os.NewFile(uintptr(fd), end.path), mode: st.Mode, made: made}, nil
}

func last(rest []string) bool {
	for _, r := range rest {
		if r != "" && r != "." {
			return false
		}
	}
	return true
}

// openName opens one component, never through a link.
func openName(dir int, name string) (fd int, isLink bool, err error) {
	flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if weakness.Of("RT3") || weakness.Of("RT12") {
		flags &^= unix.O_NOFOLLOW
	}
	for {
		fd, err = unix.Openat(dir, name, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return -1, false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFLNK, nil
}

func (t *tree) makeName(dir int, name string, file bool) error {
	err := error(nil)
	defer t.become()()
	if file {
		err = unix.Mknodat(dir, name, unix.S_IFREG|0o644, 0)
	} else {
		err = unix.Mkdirat(dir, name, 0o755)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func readLink(fd int) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	if err != nil {
		return "", err
	}
	if n == 0 {
		return "", syscall.ENOENT
	}
	return string(b[:n]), nil
}

// typeMismatch words the mistake as Docker does.
func typeMismatch(source, target string) error {
	return fmt.Errorf("mount %s on %s: %w: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type", source, target, unix.ENOTDIR)
}
