package mirror

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// check collects what is not as it must be.
type check struct{ errs []error }

func (c *check) ok(what string, err error) {
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("%s: %w", what, err))
	}
}

func (c *check) is(what string, got, want any) {
	if got != want {
		c.errs = append(c.errs, fmt.Errorf("%s: got %v, want %v", what, got, want))
	}
}

func (c *check) fails(what string, err error, want error) {
	if !errors.Is(err, want) {
		c.errs = append(c.errs, fmt.Errorf("%s: got %v, want %v", what, err, want))
	}
}

func (c *check) content(path, want string) {
	b, err := os.ReadFile(path)
	c.ok("read "+path, err)
	c.is("content of "+path, string(b), want)
}

func (c *check) owner(path string, uid, gid, mode uint32) {
	var st unix.Stat_t
	c.ok("stat "+path, unix.Lstat(path, &st))
	c.is("owner of "+path, fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777), fmt.Sprintf("%d:%d %o", uid, gid, mode))
}

func (c *check) end() error { return errors.Join(c.errs[:min(len(c.errs), 20)]...) }

// user does something as somebody without rights.
func user(uid, gid int, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends
		unix.Setfsgid(gid)
		unix.Setfsuid(uid)
		done <- do()
	}()
	return <-done
}

func write(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }

var programs = map[string]program{
	"owners": {
		before: func(d string) error {
			var c check
			c.ok("write", write(d+"/roots", "r"))
			c.ok("write", write(d+"/users", "u"))
			c.ok("chown", os.Chown(d+"/users", 1000, 1001))
			c.ok("write", write(d+"/beyond", "b"))
			c.ok("chown", os.Chown(d+"/beyond", 5000, 5000)) // not among the program's ids
			return c.end()
		},
		work: func(d string) error {
			var c check
			c.owner(d+"/roots", 0, 0, 0o644)
			c.owner(d+"/users", 1000, 1001, 0o644)
			c.owner(d+"/beyond", 65534, 65534, 0o644)
			c.fails("write what belongs to nobody", write(d+"/beyond", "x"), unix.EACCES)
			c.fails("own what belongs to nobody", os.Chown(d+"/beyond", 0, 0), unix.EPERM)
			unix.Umask(0o027)
			c.ok("make", write(d+"/made", "m"))
			c.owner(d+"/made", 0, 0, 0o640)
			c.ok("mkdir", os.Mkdir(d+"/open", 0o777))
			c.ok("chmod", unix.Chmod(d+"/open", 0o1777))
			c.ok("as a user", user(1000, 1001, func() error {
				var c check
				c.ok("mkdir", os.Mkdir(d+"/open/dir", 0o777))
				c.ok("write", write(d+"/open/dir/f", "f"))
				c.ok("symlink", os.Symlink("f", d+"/open/dir/l"))
				c.ok("mkfifo", unix.Mkfifo(d+"/open/dir/p", 0o666))
				c.fails("write into root's directory", write(d+"/mine", "x"), unix.EACCES)
				c.fails("write root's file", write(d+"/roots", "x"), unix.EACCES)
				c.fails("chown", os.Chown(d+"/open/dir/f", 0, 0), unix.EPERM)
				c.fails("chmod of root's", os.Chmod(d+"/roots", 0o777), unix.EPERM)
				_, err := os.ReadFile(d + "/made")
				c.fails("read what is not for others", err, unix.EACCES)
				return c.end()
			}))
			c.owner(d+"/open/dir", 1000, 1001, 0o750)
			c.owner(d+"/open/dir/f", 1000, 1001, 0o640)
			c.owner(d+"/open/dir/l", 1000, 1001, 0o777)
			c.owner(d+"/open/dir/p", 1000, 1001, 0o640)
			c.ok("another user", user(1002, 1002, func() error {
				var c check
				c.fails("remove from a sticky directory", os.RemoveAll(d+"/open/dir"), unix.EACCES)
				c.fails("rename in a sticky directory", os.Rename(d+"/open/dir", d+"/open/x"), unix.EPERM)
				return c.end()
			}))
			c.ok("chown", os.Chown(d+"/made", 7, 8))
			c.owner(d+"/made", 7, 8, 0o640)
			c.ok("lchown", os.Lchown(d+"/open/dir/l", 9, 9))
			c.owner(d+"/open/dir/l", 9, 9, 0o777)
			c.fails("chown to an id that is not there", os.Chown(d+"/made", 5000, 5000), unix.EINVAL)
			return c.end()
		},
		after: func(d string) error {
			var c check
			c.owner(d+"/made", 7, 8, 0o640)
			c.owner(d+"/open/dir/f", 1000, 1001, 0o640)
			c.owner(d+"/beyond", 5000, 5000, 0o644)
			return c.end()
		},
	},
	"bits": {
		before: func(d string) error { return errors.Join(write(d+"/suid", "old"), os.Chmod(d+"/suid", 0o777)) },
		work: func(d string) error {
			var c check
			unix.Umask(0o022)
			suid := func() { c.ok("chmod", unix.Chmod(d+"/suid", 0o6777)); c.owner(d+"/suid", 0, 0, 0o6777) }
			suid()
			c.ok("root writes", write(d+"/suid", "x"))
			c.owner(d+"/suid", 0, 0, 0o777) // root of a user namespace loses the bits as everybody does
			suid()
			c.ok("a user writes", user(1000, 1000, func() error {
				f, err := os.OpenFile(d+"/suid", os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = f.Write([]byte("y"))
				return err
			}))
			c.owner(d+"/suid", 0, 0, 0o777)
			suid()
			c.ok("a user truncates", user(1000, 1000, func() error { return os.Truncate(d+"/suid", 0) }))
			c.owner(d+"/suid", 0, 0, 0o777)
			suid()
			c.ok("chown", os.Chown(d+"/suid", 1, 1))
			c.owner(d+"/suid", 1, 1, 0o777)

			capability := make([]byte, 20) // VFS_CAP_REVISION_2 without its rights, which is all that matters
			binary.LittleEndian.PutUint32(capability, 0x02000001)
			binary.LittleEndian.PutUint32(capability[4:], 1<<10)
			c.ok("set a capability", unix.Setxattr(d+"/suid", "security.capability", capability, 0))
			got := make([]byte, 64)
			n, err := unix.Getxattr(d+"/suid", "security.capability", got)
			c.ok("get a capability", err)
			c.is("a capability's size", n, 20)
			c.ok("write", write(d+"/suid", "z"))
			_, err = unix.Getxattr(d+"/suid", "security.capability", got)
			c.fails("a capability after a write", err, unix.ENODATA)

			c.ok("mkdir", os.Mkdir(d+"/group", 0o777))
			c.ok("chown", os.Chown(d+"/group", 0, 500))
			c.ok("chmod", unix.Chmod(d+"/group", 0o2777))
			c.ok("as a user", user(1000, 1000, func() error { return errors.Join(os.Mkdir(d+"/group/d", 0o755), write(d+"/group/f", "")) }))
			c.owner(d+"/group/d", 1000, 500, 0o2755)
			c.owner(d+"/group/f", 1000, 500, 0o644)
			return c.end()
		},
	},
	"contents": {
		before: func(d string) error { return write(d+"/below", "from below") },
		work: func(d string) error {
			var c check
			f, err := os.OpenFile(d+"/f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = os.OpenFile(d+"/f", os.O_CREATE|os.O_EXCL, 0o600)
			c.fails("make it again", err, unix.EEXIST)
			big := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
			_, err = f.WriteAt(big, 12345)
			c.ok("write", err)
			back := make([]byte, len(big))
			_, err = f.ReadAt(back, 12345)
			c.ok("read", err)
			c.is("what was written", bytes.Equal(back, big), true)
			_, err = f.ReadAt(back[:1], int64(12345+len(big)))
			c.fails("read at the end", err, io.EOF)
			c.ok("truncate", f.Truncate(100))
			c.content(d+"/f", strings.Repeat("\x00", 100))

			for i := range 3 { // two that append do not write over each other
				for _, s := range []string{"a", "b"} {
					g, err := os.OpenFile(d+"/log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
					c.ok("append", err)
					defer g.Close()
					_, err = g.WriteString(s + strconv.Itoa(i))
					c.ok("append", err)
				}
			}
			c.content(d+"/log", "a0b0a1b1a2b2")
			c.content(d+"/below", "from below")
			g, err := os.OpenFile(d+"/below", os.O_WRONLY|os.O_APPEND, 0)
			c.ok("append below", err)
			g.WriteString(", and more")
			g.Close()
			c.content(d+"/below", "from below, and more")
			c.ok("empty it", write(d+"/below", "new"))
			c.content(d+"/below", "new")

			c.ok("fallocate", unix.Fallocate(int(f.Fd()), 0, 0, 1<<20))
			fi, _ := f.Stat()
			c.is("size", fi.Size(), int64(1<<20))
			c.ok("punch a hole", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<19))
			f.WriteAt([]byte("x"), 1<<19)
			off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
			c.ok("seek data", err)
			c.is("data is at", off, int64(1<<19))
			from, to := int64(1<<19), int64(0)
			n, err := unix.CopyFileRange(int(f.Fd()), &from, int(f.Fd()), &to, 1, 0)
			c.ok("copy a range", err)
			c.is("copied", n, 1)
			c.ok("sync", errors.Join(f.Sync(), unix.Fdatasync(int(f.Fd()))))

			m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			c.ok("map", err)
			c.is("mapped", m[0], byte('x'))
			copy(m[10:], "by memory")
			c.ok("msync", unix.Msync(m, unix.MS_SYNC))
			c.ok("unmap", unix.Munmap(m))
			f.ReadAt(back[:9], 10)
			c.is("what was mapped", string(back[:9]), "by memory")

			d1, err := unix.Open(d+"/f", unix.O_RDONLY|unix.O_DIRECT, 0)
			c.ok("open around the cache", err)
			unix.Close(d1)
			c.ok("times", os.Chtimes(d+"/f", time.Unix(1, 5), time.Unix(2, 6)))
			var st unix.Stat_t
			unix.Stat(d+"/f", &st)
			c.is("times", fmt.Sprint(st.Atim.Sec, st.Atim.Nsec, st.Mtim.Sec, st.Mtim.Nsec), "1 5 2 6")
			c.ok("a name without times", unix.UtimesNanoAt(unix.AT_FDCWD, d+"/f", []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_OMIT}}, 0))
			unix.Stat(d+"/f", &st)
			c.is("time", st.Mtim.Sec, int64(2))
			c.is("time", st.Atim.Sec > 1e9, true)

			e, err := os.Create(d + "/sh")
			c.ok("create", err)
			exe, _ := os.Open("/bin/true")
			io.Copy(e, exe)
			e.Chmod(0o755)
			e.Close()
			p, err := os.StartProcess(d+"/sh", []string{"sh"}, &os.ProcAttr{})
			c.ok("execute", err)
			if err == nil {
				s, _ := p.Wait()
				c.is("exit", s.ExitCode(), 0)
			}
			return c.end()
		},
		after: func(d string) error {
			var c check
			c.content(d+"/log", "a0b0a1b1a2b2")
			c.content(d+"/below", "new")
			b, _ := os.ReadFile(d + "/f")
			c.is("on disk", string(b[10:19]), "by memory")
			return c.end()
		},
	},
	"names": {
		before: func(d string) error {
			return errors.Join(write(d+"/below", "b"), os.Mkdir(d+"/dir", 0o755), write(d+"/dir/in", "i"), write(d+"/one", "1"), os.Link(d+"/one", d+"/same"))
		},
		work: func(d string) error {
			var c check
			// What is gone and open can be used; its name may mean another one.
			f, err := os.OpenFile(d+"/below", os.O_RDWR, 0)
			c.ok("open", err)
			c.ok("remove", os.Remove(d+"/below"))
			_, err = os.Stat(d + "/below")
			c.fails("stat", err, unix.ENOENT)
			c.ok("make another", write(d+"/below", "another"))
			_, err = f.WriteAt([]byte("B"), 0)
			c.ok("write", err)
			b := make([]byte, 1)
			f.ReadAt(b, 0)
			c.is("content", string(b), "B")
			var st unix.Stat_t
			c.ok("stat what is gone", unix.Fstat(int(f.Fd()), &st))
			c.is("names", uint64(st.Nlink), uint64(0))
			f.Close()
			c.content(d+"/below", "another")

			c.ok("rename", os.Rename(d+"/below", d+"/moved"))
			c.content(d+"/moved", "another")
			c.ok("rename over", os.Rename(d+"/moved", d+"/same"))
			c.content(d+"/same", "another")
			c.content(d+"/one", "1")
			c.fails("rename without replacing", unix.Renameat2(unix.AT_FDCWD, d+"/same", unix.AT_FDCWD, d+"/one", unix.RENAME_NOREPLACE), unix.EEXIST)
			c.ok("exchange", unix.Renameat2(unix.AT_FDCWD, d+"/same", unix.AT_FDCWD, d+"/one", unix.RENAME_EXCHANGE))
			c.content(d+"/one", "another")
			c.content(d+"/same", "1")

			c.fails("remove a full directory", os.Remove(d+"/dir"), unix.ENOTEMPTY)
			c.ok("mkdir", os.Mkdir(d+"/dir2", 0o755))
			c.ok("move a file", os.Rename(d+"/dir/in", d+"/dir2/in"))
			c.ok("move a directory", os.Rename(d+"/dir2", d+"/dir3"))
			c.content(d+"/dir3/in", "i")
			at, err := unix.Open(d+"/dir", unix.O_DIRECTORY, 0)
			c.ok("open a directory", err)
			c.ok("remove it", os.Remove(d+"/dir"))
			_, err = unix.Openat(at, "x", unix.O_CREAT|unix.O_WRONLY, 0o644)
			c.fails("make something in a directory that is gone", err, unix.ENOENT)
			unix.Close(at)

			c.ok("link", os.Link(d+"/one", d+"/two"))
			c.ok("write by one name", write(d+"/two", "both"))
			c.content(d+"/one", "both")
			unix.Stat(d+"/one", &st)
			c.is("names", uint64(st.Nlink), uint64(2))
			c.ok("remove one", os.Remove(d+"/one"))
			c.content(d+"/two", "both")
			unix.Stat(d+"/two", &st)
			c.is("names", uint64(st.Nlink), uint64(1))

			c.ok("symlink", os.Symlink("../../../../../../etc/hostname", d+"/out"))
			l, _ := os.Readlink(d + "/out")
			c.is("link", l, "../../../../../../etc/hostname")
			c.ok("symlink", os.Symlink(d+"/two", d+"/abs"))
			c.content(d+"/abs", "both")
			c.ok("symlink", os.Symlink("loop", d+"/loop"))
			_, err = os.ReadFile(d + "/loop")
			c.fails("loop", err, unix.ELOOP)
			c.ok("a long name", write(d+"/"+strings.Repeat("n", 255), ""))
			c.fails("a longer name", write(d+"/"+strings.Repeat("n", 256), ""), unix.ENAMETOOLONG)

			fd, err := unix.Open(d, unix.O_TMPFILE|unix.O_RDWR, 0o600)
			c.ok("a file without a name", err)
			unix.Write(fd, []byte("late"))
			c.ok("gets one", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, d+"/late", unix.AT_SYMLINK_FOLLOW))
			unix.Close(fd)
			c.content(d+"/late", "late")

			c.fails("make a device", unix.Mknod(d+"/dev", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.EPERM)
			c.ok("make a pipe", unix.Mkfifo(d+"/pipe", 0o666))
			go func() { _ = write(d+"/pipe", "through") }()
			c.content(d+"/pipe", "through")
			s, err := net.Listen("unix", d+"/socket")
			c.ok("listen", err)
			k, err := net.Dial("unix", d+"/socket")
			c.ok("connect", err)
			k.Close()
			s.Close()

			g, _ := os.Open(d + "/two")
			h, _ := os.Open(d + "/two")
			c.ok("lock", unix.Flock(int(g.Fd()), unix.LOCK_EX))
			c.fails("lock again", unix.Flock(int(h.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
			var fs unix.Statfs_t
			c.ok("statfs", unix.Statfs(d, &fs))
			c.is("blocks", fs.Blocks > 0, true)
			return c.end()
		},
	},
	// Names of one file in a lower layer are two files once one is written to, as on the overlay itself.
	"lowerlinks": {
		before: func(d string) error {
			return errors.Join(write(d+"/a", "old"), os.Link(d+"/a", d+"/b"), os.Link(d+"/a", d+"/c"))
		},
		work: func(d string) error {
			var c check
			c.content(d+"/a", "old")
			c.content(d+"/b", "old")
			f, err := os.OpenFile(d+"/b", os.O_RDWR, 0)
			c.ok("open", err)
			f.WriteString("new")
			f.Close()
			c.content(d+"/b", "new")
			var a, b unix.Stat_t
			unix.Stat(d+"/a", &a)
			unix.Stat(d+"/b", &b)
			want := "new"
			if a.Ino != b.Ino {
				want = "old"
			}
			c.content(d+"/a", want)
			c.content(d+"/c", want)
			return c.end()
		},
		after: func(d string) error {
			var c check
			a, _ := os.ReadFile(d + "/a")
			b, _ := os.ReadFile(d + "/b")
			var st unix.Statfs_t
			unix.Statfs(d, &st)
			c.is("a and b on disk", string(a)+" "+string(b), map[bool]string{true: "old new", false: "new new"}[st.Type == unix.OVERLAYFS_SUPER_MAGIC])
			return c.end()
		},
	},
	"attributes": {
		before: func(d string) error { return write(d+"/f", "") },
		work: func(d string) error {
			var c check
			c.ok("set", unix.Setxattr(d+"/f", "user.a", []byte("value"), unix.XATTR_CREATE))
			c.fails("set again", unix.Setxattr(d+"/f", "user.a", []byte("value"), unix.XATTR_CREATE), unix.EEXIST)
			b := make([]byte, 64)
			n, err := unix.Getxattr(d+"/f", "user.a", b)
			c.ok("get", err)
			c.is("value", string(b[:n]), "value")
			_, err = unix.Getxattr(d+"/f", "user.a", b[:2])
			c.fails("get too little", err, unix.ERANGE)
			n, err = unix.Getxattr(d+"/f", "user.a", nil)
			c.ok("ask for the size", err)
			c.is("size", n, 5)
			n, err = unix.Listxattr(d+"/f", b)
			c.ok("list", err)
			c.is("list", slices.Contains(strings.Split(string(b[:n]), "\x00"), "user.a"), true)
			c.ok("remove", unix.Removexattr(d+"/f", "user.a"))
			_, err = unix.Getxattr(d+"/f", "user.a", b)
			c.fails("get what is gone", err, unix.ENODATA)
			c.fails("trusted", unix.Setxattr(d+"/f", "trusted.a", []byte("x"), 0), unix.EPERM)

			// An access control list: user 1000 may write, and its id is shifted as owners are.
			acl := []byte{2, 0, 0, 0}
			for _, e := range [][3]uint32{{1, 6, 1<<32 - 1}, {2, 6, 1000}, {4, 4, 1<<32 - 1}, {0x10, 6, 1<<32 - 1}, {0x20, 0, 1<<32 - 1}} {
				acl = binary.LittleEndian.AppendUint16(acl, uint16(e[0]))
				acl = binary.LittleEndian.AppendUint16(acl, uint16(e[1]))
				acl = binary.LittleEndian.AppendUint32(acl, e[2])
			}
			c.ok("set a list", unix.Setxattr(d+"/f", "system.posix_acl_access", acl, 0))
			n, err = unix.Getxattr(d+"/f", "system.posix_acl_access", b)
			c.ok("get a list", err)
			c.is("the list", bytes.Equal(b[:n], acl), true)
			put := func() error {
				f, err := os.OpenFile(d+"/f", os.O_WRONLY, 0)
				if err == nil {
					f.Close()
				}
				return err
			}
			c.ok("who is on the list", user(1000, 5, put))
			c.fails("who is not", user(1001, 5, put), unix.EACCES)

			c.ok("mkdir", os.Mkdir(d+"/d", 0o777))
			c.ok("set a default list", unix.Setxattr(d+"/d", "system.posix_acl_default", acl, 0))
			unix.Umask(0o077)
			c.ok("make", os.WriteFile(d+"/d/f", nil, 0o666))
			c.owner(d+"/d/f", 0, 0, 0o660) // the list's, whatever the umask
			return c.end()
		},
		after: func(d string) error {
			b := make([]byte, 64)
			n, err := unix.Getxattr(d+"/f", "system.posix_acl_access", b)
			if err != nil {
				return err
			}
			if id := binary.LittleEndian.Uint32(b[:n][16:]); id != 1000 {
				return fmt.Errorf("the list on disk names user %d", id)
			}
			return nil
		},
	},
	"many": {
		before: func(d string) error {
			err := os.Mkdir(d+"/below", 0o755)
			for i := range 2000 {
				err = errors.Join(err, write(fmt.Sprintf("%s/below/%04d", d, i), ""))
			}
			return err
		},
		work: func(d string) error {
			var c check
			for i := range 1000 {
				c.ok("make", write(fmt.Sprintf("%s/below/n%04d", d, i), strconv.Itoa(i)))
			}
			es, err := os.ReadDir(d + "/below")
			c.ok("list", err)
			c.is("entries", len(es), 3000)
			seen := map[string]bool{}
			for _, e := range es {
				seen[e.Name()] = true
				fi, err := e.Info()
				c.ok("stat", err)
				c.is("regular", fi.Mode().IsRegular(), true)
			}
			c.is("names", len(seen), 3000)
			c.is("this is among them", seen["n0999"] && seen["0000"], true)
			f, err := os.Open(d + "/below")
			c.ok("open", err)
			left := 3000
			for { // removed while it is listed
				names, err := f.Readdirnames(100)
				if err != nil {
					break
				}
				for _, n := range names {
					c.ok("remove", os.Remove(filepath.Join(d, "below", n)))
					left--
				}
			}
			f.Close()
			c.is("left", left, 0)
			c.ok("remove the directory", os.Remove(d+"/below"))
			return c.end()
		},
	},
	"swapped": {
		before: func(d string) error {
			out := filepath.Dir(d)
			return errors.Join(os.WriteFile(out+"/secret", []byte("secret"), 0o600), os.Mkdir(out+"/outside", 0o700), os.WriteFile(out+"/outside/secret", []byte("secret"), 0o600),
				write(d+"/x", "mine"), os.Symlink("../secret", d+"/x2"), os.Mkdir(d+"/d", 0o777), write(d+"/d/secret", "mine"), os.Symlink("../outside", d+"/d2"))
		},
		beside: func(d string, stop <-chan struct{}) {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, n := range []string{"/x", "/d"} {
					unix.Renameat2(unix.AT_FDCWD, d+n, unix.AT_FDCWD, d+n+"2", unix.RENAME_EXCHANGE)
				}
			}
		},
		work: func(d string) error {
			var c check
			did := map[string]int{}
			count := func(what string, err error) {
				if err == nil {
					did[what]++
				}
			}
			for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
				for _, n := range []string{d + "/x", d + "/d/secret"} {
					b, err := os.ReadFile(n)
					count("read", err)
					if err == nil && string(b) == "secret" {
						return errors.New("what is outside was read")
					}
					f, err := os.OpenFile(n, os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o666)
					count("write", err)
					if err == nil {
						f.WriteString("mine")
						f.Close()
					}
					count("truncate", os.Truncate(n, 4))
					count("chmod", unix.Chmod(n, 0o666))
					count("chown", os.Chown(n, 7, 7))
					count("set an attribute", unix.Setxattr(n, "user.x", []byte("x"), 0))
					count("times", os.Chtimes(n, time.Unix(1, 0), time.Unix(1, 0)))
				}
				count("make", write(d+"/d/new", "n"))
				count("list", func() error { _, err := os.ReadDir(d + "/d"); return err }())
				count("link", os.Link(d+"/x", d+"/link"))
				os.Remove(d + "/link")
				os.Remove(d + "/d/new")
			}
			for _, what := range []string{"read", "write", "truncate", "chmod", "chown", "set an attribute", "times", "make", "list", "link"} {
				if did[what] < 3 { // what is inside can be used all the time
					c.errs = append(c.errs, fmt.Errorf("%s worked %d times", what, did[what]))
				}
			}
			return c.end()
		},
		after: func(d string) error {
			var c check
			for _, n := range []string{"/secret", "/outside/secret"} {
				n = filepath.Dir(d) + n
				c.content(n, "secret")
				c.owner(n, 0, 0, 0o600)
				_, err := unix.Getxattr(n, "user.x", nil)
				c.fails("an attribute of "+n, err, unix.ENODATA)
			}
			es, _ := os.ReadDir(filepath.Dir(d) + "/outside")
			c.is("entries outside", len(es), 1)
			return c.end()
		},
	},
}
