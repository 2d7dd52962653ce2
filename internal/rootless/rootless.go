// Package rootless gives an ordinary user a place where he is root: one user namespace with all his
// subordinate ids, one mount namespace and one network of his own, for all his commands and
// containers together.
//
//	run: userns/lock    held shared by every command and monitor inside
//	     userns/making  held by who starts a keeper
//	     userns/keeper  pid and start time of the keeper
//	     userns/net     the network namespace, a mount that is seen inside only
//	     userns/way     a sentence: through what it reaches out
//	     userns/lack    why it has no way out, when it has none
//
// A command enters by becoming a few instructions of machine code that join the namespaces and execute
// keg again: the same process, so that signals, terminal and exit status need no help. The keeper
// holds the namespaces open between commands and carries packets between the user's network and
// the host's, or has pasta(1) carry them. It ends when nobody has held the lock for a second.
package rootless

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// marker tells a re-executed keg which descriptor is the lock; a process that has it is inside.
const marker = "_KEG_USERNS"

// place is the directory userns/ of one engine's run root.
type place string

func at(run string) place { return place(filepath.Join(run, "userns")) }

func (p place) lock() string   { return filepath.Join(string(p), "lock") }
func (p place) making() string { return filepath.Join(string(p), "making") }
func (p place) keeper() string { return filepath.Join(string(p), "keeper") }
func (p place) net() string    { return filepath.Join(string(p), "net") }
func (p place) way() string    { return filepath.Join(string(p), "way") }
func (p place) lack() string   { return filepath.Join(string(p), "lack") }

// Entry is a command that wants to be inside.
type Entry struct {
	Root, Run string   // of the engine, absolute
	Name      string   // of the user; "" when the system does not know it
	Args      []string // argv
	Env       []string
	Warn      func(string) // is told, when the namespaces are made, what they lack
}

// Enter makes this process run the same command line inside the user's namespaces. It returns only
// when that cannot be.
func Enter(e Entry) error {
	if err := privateDir(e.Run); err != nil {
		return err
	}
	p := at(e.Run)
	if err := os.MkdirAll(string(p), 0o700); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	lock, err := hold(p)
	if err != nil {
		return err
	}
	ns, err := p.open()
	if err != nil {
		if ns, err = p.make(e); err != nil {
			lock.Close()
			return err
		}
	}
	env := append(without(e.Env, marker, "KEG_ROOT", "KEG_RUN_ROOT"),
		marker+"="+strconv.Itoa(int(lock.Fd())), "KEG_ROOT="+e.Root, "KEG_RUN_ROOT="+e.Run)
	return ns.join(lock, e.Args, env)
}

// variable is the last value in env, or "".
func variable(env []string, name string) (value string) {
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}

func without(env []string, names ...string) []string {
	out := make([]string, 0, len(env)+3)
	for _, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		keep := true
		for _, n := range names {
			keep = keep && k != n
		}
		if keep {
			out = append(out, kv)
		}
	}
	return out
}

// Arrived tells a command that was executed inside from others. It is called once, early.
func Arrived(env []string) bool {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, marker+"="); ok {
			fd, err := strconv.Atoi(v)
			if err != nil || fd < 3 {
				return false
			}
			unix.CloseOnExec(fd) // held open until this process ends
			name := append([]byte("keg"), 0)
			_ = unix.Prctl(unix.PR_SET_NAME, addressOf(name), 0, 0, 0)
			os.Unsetenv(marker)
			return true
		}
	}
	return false
}

// Hold makes a process that lives on, a monitor, count as inside until it ends. Elsewhere it does nothing.
func Hold(run string) {
	if fd, err := unix.Open(at(run).lock(), unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Flock(fd, unix.LOCK_SH) // who started us holds it shared: this does not wait
	}
}

// Network opens the user's network namespace, or returns -1 when this process is not inside.
func Network(run string) int {
	if !linux.InUserNS() {
		return -1
	}
	fd, err := unix.Open(at(run).net(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		unix.Close(fd)
		return -1
	}
	return fd
}

// RunDir is where the run directory of an ordinary user is when he does not say it.
func RunDir(uid int, xdg string) string {
	user := "/run/user/" + strconv.Itoa(uid)
	if xdg == "" && owned(user, uid) {
		xdg = user
	}
	if xdg == "" {
		return filepath.Join(os.TempDir(), "keg-"+strconv.Itoa(uid))
	}
	return filepath.Join(xdg, "keg")
}

func owned(dir string, uid int) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == uid
}

// privateDir makes the run directory and refuses one that others made or can write to: in a directory
// like /tmp anybody may have been first.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Deniedf("make the run directory: %w; set XDG_RUNTIME_DIR or --run-root to a directory of yours", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fault.Deniedf("%s is not a directory that only you can write to; remove it, or set XDG_RUNTIME_DIR or --run-root to a directory of yours", dir)
	}
	return nil
}

// hold takes the lock shared. It waits only for a keeper that is just ending.
func hold(p place) (*os.File, error) {
	fd, err := unix.Open(p.lock(), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p.lock(), Err: err}
	}
	for {
		err = unix.Flock(fd, unix.LOCK_SH)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "flock", Path: p.lock(), Err: err}
	}
	return os.NewFile(uintptr(fd), p.lock()), nil
}
