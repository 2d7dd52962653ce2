package linux

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fsNames are the magic numbers of statfs(2) that people meet.
var fsNames = [...]struct {
	magic  int64
	name   string
	remote bool
}{
	{unix.EXT4_SUPER_MAGIC, "ext4", false},
	{unix.XFS_SUPER_MAGIC, "xfs", false},
	{unix.BTRFS_SUPER_MAGIC, "btrfs", false},
	{unix.OVERLAYFS_SUPER_MAGIC, "overlay", false},
	{unix.TMPFS_MAGIC, "tmpfs", false},
	{unix.F2FS_SUPER_MAGIC, "f2fs", false},
	{0x2fc12fc1, "zfs", false},
	{unix.NFS_SUPER_MAGIC, "NFS", true},
	{0xff534d42, "CIFS", true},
	{unix.SMB2_SUPER_MAGIC, "SMB", true},
	{unix.SMB_SUPER_MAGIC, "SMB", true},
	{unix.FUSE_SUPER_MAGIC, "FUSE", true},
	{unix.V9FS_MAGIC, "9p", true},
	{unix.AFS_SUPER_MAGIC, "AFS", true},
	{unix.CEPH_SUPER_MAGIC, "Ceph", true},
}

// RemoteFS names the file system of path and reports whether it is one that is served
// by another machine or process (NFS, CIFS, FUSE and their like).
func RemoteFS(path string) (name string, remote bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	magic := int64(uint32(st.Type))
	for _, f := range fsNames {
		if f.magic == magic {
			return f.name, f.remote, nil
		}
	}
	return fmt.Sprintf("a file system of type %#x", uint32(st.Type)), false, nil
}
