// ls lists files: ls [-aAl1dhR] [FILE...].
package builtin

import (
	"bufio"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/docker/go-units"
)

type lsOptions struct{ all, almost, long, one, dir, human, deep bool }

func ls(name string, args []string) int {
	var o lsOptions
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolVar(&o.all, "a", false, "hidden files, too")
		f.BoolVar(&o.almost, "A", false, "hidden files but . and ..")
		f.BoolVar(&o.long, "l", false, "with modes, owners, sizes, times")
		f.BoolVar(&o.one, "1", false, "one a line")
		f.BoolVar(&o.dir, "d", false, "directories themselves, not what they hold")
		f.BoolVar(&o.human, "h", false, "sizes for people")
		f.BoolVar(&o.deep, "R", false, "directories inside, too")
	})
	if !ok {
		return 2
	}
	paths := f.Args()
	if len(paths) == 0 {
		paths = []string{"."}
	}
	return printing(func(w *bufio.Writer) int {
		code := 0
		for i, p := range paths {
			if i > 0 && len(paths) > 1 && !o.dir {
				fmt.Fprintln(w)
			}
			if err := o.list(w, p, len(paths) > 1); err != nil {
				w.Flush()
				code = fail(name, err)
			}
		}
		return code
	})
}

// list prints a file, or what a directory holds.
func (o lsOptions) list(w *bufio.Writer, p string, head bool) error {
	st, err := os.Lstat(p)
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSymlink != 0 && !o.long {
		if to, err := os.Stat(p); err == nil {
			st = to
		}
	}
	if !st.IsDir() || o.dir {
		o.entry(w, p, p, st)
		return nil
	}
	ents, err := os.ReadDir(p)
	if err != nil {
		return err
	}
	if head || o.deep {
		fmt.Fprintf(w, "%s:\n", p)
	}
	if o.all {
		for _, d := range []string{".", ".."} {
			if st, err := os.Lstat(filepath.Join(p, d)); err == nil {
				o.entry(w, d, filepath.Join(p, d), st)
			}
		}
	}
	var inside []string
	for _, e := range ents {
		if e.Name()[0] == '.' && !o.all && !o.almost {
			continue
		}
		st, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		full := filepath.Join(p, e.Name())
		o.entry(w, e.Name(), full, st)
		if st.IsDir() {
			inside = append(inside, full)
		}
	}
	if !o.deep {
		return nil
	}
	for _, d := range inside {
		fmt.Fprintln(w)
		if err := o.list(w, d, true); err != nil {
			return err
		}
	}
	return nil
}

func (o lsOptions) entry(w *bufio.Writer, name, full string, st fs.FileInfo) {
	if !o.long {
		fmt.Fprintln(w, name)
		return
	}
	sys := st.Sys().(*syscall.Stat_t)
	size := strconv.FormatInt(st.Size(), 10)
	if o.human {
		size = units.BytesSize(float64(st.Size()))
	}
	when := st.ModTime().Format("Jan _2 15:04")
	if age := time.Since(st.ModTime()); age > 180*24*time.Hour || age < 0 {
		when = st.ModTime().Format("Jan _2  2006")
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		if to, err := os.Readlink(full); err == nil {
			name += " -> " + to
		}
	}
	fmt.Fprintf(w, "%s %4d %-8s %-8s %9s %s %s\n", modeText(st.Mode()), sys.Nlink, ownerName(sys.Uid),
		orElse(groupName(strconv.Itoa(int(sys.Gid))), strconv.Itoa(int(sys.Gid))), size, when, name)
}

// modeText writes a mode as ls does: Go has other letters for setuid and friends.
func modeText(m fs.FileMode) string {
	b := []byte("-" + m.Perm().String()[1:])
	for bit, c := range map[fs.FileMode]byte{fs.ModeDir: 'd', fs.ModeSymlink: 'l', fs.ModeNamedPipe: 'p', fs.ModeSocket: 's', fs.ModeDevice: 'b'} {
		if m&bit != 0 {
			b[0] = c
		}
	}
	if m&fs.ModeCharDevice != 0 {
		b[0] = 'c'
	}
	special := func(at int, on fs.FileMode, with, without byte) {
		if m&on == 0 {
			return
		}
		if b[at] == 'x' {
			b[at] = with
		} else {
			b[at] = without
		}
	}
	special(3, fs.ModeSetuid, 's', 'S')
	special(6, fs.ModeSetgid, 's', 'S')
	special(9, fs.ModeSticky, 't', 'T')
	return string(b)
}

func ownerName(uid uint32) string {
	id := strconv.Itoa(int(uid))
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}
