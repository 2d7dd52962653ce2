package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"keg/internal/weakness"
)

// Executable opens the running binary on a read-only mount of its own. Who clones containers
// should be started from it (its linux.FDPath as the path to execute): an image whose
// entrypoint is a script with the interpreter /proc/self/exe gets hold of the binary that
// cloned it, and could write to it once nobody executes it (CVE-2019-5736). Through this
// mount nobody can.
func Executable() (*os.File, error) {
	fd, err := clone("/proc/self/exe")
	if errors.Is(err, unix.EINVAL) {
		// Executed through a mount of another namespace: the same file by its name here.
		fd, err = cloneByName()
	}
	if err == nil && !weakness.Of("RT1") {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE})
	}
	if err != nil {
		return nil, fmt.Errorf("mount the engine's binary read-only: %w", err)
	}
	return os.NewFile(uintptr(fd), "/proc/self/exe"), nil
}

func clone(name string) (int, error) {
	return unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.O_CLOEXEC)
}

func cloneByName() (int, error) {
	name, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	fd, err := clone(name)
	if err != nil {
		return -1, err
	}
	var running, found unix.Stat_t
	err = errors.Join(unix.Stat("/proc/self/exe", &running), unix.Fstat(fd, &found))
	if err == nil && (running.Dev != found.Dev || running.Ino != found.Ino) {
		err = fmt.Errorf("%s is another file by now", name)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// RuntimeArgv0 is a name of the binary that makes it an OCI runtime.
const RuntimeArgv0 = "keg-oci"

// Runtime tells whether a start of the binary is one of the runtime, and gives the words that are the runtime's.
func Runtime(args []string) (words []string, ok bool) {
	switch {
	case len(args) > 0 && filepath.Base(args[0]) == RuntimeArgv0:
		return args[1:], true
	case len(args) > 1 && args[1] == "oci":
		return args[2:], true
	}
	return nil, false
}

// FromSafePlace executes this program again as the runtime, from Executable, and returns nil where it is that already: what
// clones a container can be reached from the container.
func FromSafePlace(words []string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/proc/self/exe", &fs); err == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return nil
	}
	f, err := Executable()
	if err != nil {
		return err
	}
	defer f.Close()
	return syscall.Exec("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), append([]string{RuntimeArgv0}, words...), os.Environ())
}
