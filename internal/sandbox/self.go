package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"keg/internal/weakness"
)

// Executable opens the running binary on a read-only mount of its own. Who clones containers
// should be started from it (its linux.FDPath as the path to execute): an image whose
// entrypoint is a script with the interpreter /proc/self/exe gets hold of the binary that
// cloned it, and could write to it once nobody executes it (CVE-2019-5736). Through this
// mount nobody can.
func Executable() (*os.File, error) {
	fd, err := cloneTree(unix.AT_FDCWD, "/proc/self/exe", false)
	if errors.Is(err, unix.EINVAL) {
		// Executed through a mount of another namespace: the same file by its name here.
		fd, err = cloneByName()
	}
	if err == nil && !weakness.Of("RT1") {
		err = setAttr(fd, false, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE})
	}
	if err != nil {
		return nil, fmt.Errorf("mount the engine's binary read-only: %w", err)
	}
	return os.NewFile(uintptr(fd), "/proc/self/exe"), nil
}

func cloneByName() (int, error) {
	name, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	fd, err := cloneTree(unix.AT_FDCWD, name, false)
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
