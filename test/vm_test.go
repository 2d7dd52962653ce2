package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// What this host's kernel cannot show (pure cgroup v2, AppArmor, a reboot) runs in a
// small virtual machine: Debian's cloud kernel, emulated, with an initramfs that holds
// busybox, keg and the scripts of test/vm.

// vmModules are loaded in this order, each after what it depends on.
var vmModules = []string{"overlay", "veth", "bridge", "nf_tables", "nft_chain_nat", "nft_fib_inet", "nft_ct", "nft_masq",
	"nft_nat", "nft_redir", "nft_reject_inet", "nf_conntrack_netlink", "nft_compat", "virtio_pci", "virtio_blk"}

const vmInit = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /new
# A container's root is made by pivot_root(2), which the initial rootfs does not allow.
cp -a /bin /etc /lib /lib64 /scripts /new/
mkdir -p /new/disk /new/proc /new/sys /new/dev /new/tmp /new/run /new/var/lib /new/root
exec switch_root /new /bin/sh /scripts/init
`

const vmInit2 = `mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs sec /sys/kernel/security 2>/dev/null
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
for m in $(cat /lib/modules/order); do insmod /lib/modules/$m || echo "insmod $m failed"; done
ip link set lo up
export PATH=/bin HOME=/root
cd /root
dir=/scripts
grep -q keg.after /proc/cmdline && dir=/scripts/after
for s in $dir/*.sh; do
	name=$(basename $s .sh)
	echo "== $name"
	if sh -ex $s; then echo "VM PASS $name"; else echo "VM FAIL $name"; fi
done
echo VM DONE
poweroff -f
`

func TestVM(t *testing.T) {
	if testing.Short() {
		t.Skip("a virtual machine is not short")
	}
	kernel := vmKernel(t)
	scripts, err := filepath.Glob("vm/*.sh")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	// The machine starts again with the same disk: what is in after/ runs then.
	after, err := filepath.Glob("vm/after/*.sh")
	if err != nil || len(after) == 0 {
		t.Fatalf("no scripts for the second start: %v", err)
	}
	initrd, disk := filepath.Join(t.TempDir(), "initrd"), filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(writeInitrd(initrd, kernel, scripts, after), writeDisk(disk)); err != nil {
		t.Fatal(err)
	}
	report(t, boot(t, kernel, initrd, disk, ""), scripts)
	report(t, boot(t, kernel, initrd, disk, "keg.after"), after)
}

// report tells each script's verdict.
func report(t *testing.T, out string, scripts []string) {
	if !strings.Contains(out, "VM DONE") {
		t.Fatalf("the machine did not finish:\n%s", out)
	}
	for _, s := range scripts {
		name := strings.TrimSuffix(filepath.Base(s), ".sh")
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(out, "VM PASS "+name+"\r\n") {
				_, after, _ := strings.Cut(out, "== "+name+"\r\n")
				log, _, _ := strings.Cut(after, "\r\n== ")
				t.Error(log)
			}
		})
	}
}

// vmKernel returns the path of Debian's cloud kernel.
func vmKernel(t *testing.T) string {
	t.Helper()
	kernels, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	_, err := exec.LookPath("qemu-system-x86_64")
	if len(kernels) == 0 || err != nil {
		t.Skip("needs qemu-system-x86 and linux-image-cloud-amd64 (scripts/install-test-deps)")
	}
	for _, p := range []string{"/sbin/apparmor_parser", "/sbin/mkfs.ext4"} {
		if _, err := os.Stat(p); err != nil {
			t.Skip("needs apparmor and e2fsprogs (scripts/install-test-deps): ", err)
		}
	}
	f, err := os.Open(kernels[len(kernels)-1])
	if err != nil {
		t.Skipf("needs to read the kernel: %v", err)
	}
	f.Close()
	return kernels[len(kernels)-1]
}

// boot runs the machine for at most six minutes and returns its console.
func boot(t *testing.T, kernel, initrd, disk, word string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-nographic",
		"-no-reboot", "-nic", "none", "-drive", "file="+disk+",format=raw,if=virtio", "-kernel", kernel, "-initrd", initrd, "-append",
		"console=ttyS0 quiet panic=-1 cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1 apparmor=1 security=apparmor rdinit=/init "+word)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("qemu: %v", err)
	}
	return out.String()
}

// writeInitrd makes the initramfs (kernel documentation, "initramfs buffer format": newc).
func writeInitrd(path, kernel string, scripts, after []string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &cpio{w: f}
	for _, d := range []string{"bin", "etc", "lib", "lib/modules", "lib/x86_64-linux-gnu", "lib64", "new", "proc", "scripts", "scripts/after", "dev"} {
		c.add(d, 0o040755, nil)
	}
	c.add("init", 0o100755, []byte(vmInit))
	c.add("scripts/init", 0o100644, []byte(vmInit2))
	c.add("etc/passwd", 0o100644, []byte("root:x:0:0::/root:/bin/sh\n"))
	c.add("etc/group", 0o100644, []byte("root:x:0:\n"))
	c.add("etc/resolv.conf", 0o100644, []byte("nameserver 192.0.2.1\n"))
	c.copy("bin/busybox", 0o100755, "/bin/busybox")
	c.copy("bin/keg", 0o100755, filepath.Join(bin, "keg"))
	var order []string
	for _, m := range modules(kernel) {
		base := filepath.Base(m)
		order = append(order, base)
		c.copy("lib/modules/"+base, 0o100644, m)
	}
	c.add("lib/modules/order", 0o100644, []byte(strings.Join(order, "\n")))
	for _, s := range scripts {
		c.copy("scripts/"+filepath.Base(s), 0o100755, s)
	}
	for _, s := range after {
		c.copy("scripts/after/"+filepath.Base(s), 0o100755, s)
	}
	c.copy("bin/apparmor_parser", 0o100755, "/sbin/apparmor_parser")
	c.copy("lib/x86_64-linux-gnu/libc.so.6", 0o100755, "/lib/x86_64-linux-gnu/libc.so.6")
	c.copy("lib64/ld-linux-x86-64.so.2", 0o100755, "/lib64/ld-linux-x86-64.so.2")
	c.add("TRAILER!!!", 0, nil)
	return c.err
}

// writeDisk makes an empty ext4.
func writeDisk(path string) error {
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(128<<20), f.Close())
	}
	if err != nil {
		return err
	}
	if out, err := exec.Command("/sbin/mkfs.ext4", "-q", path).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return nil
}

// modules resolves vmModules with modules.dep into files, dependencies first.
func modules(kernel string) (files []string) {
	dir := "/lib/modules/" + strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	dep, _ := os.ReadFile(filepath.Join(dir, "modules.dep"))
	needs := map[string][]string{}
	byName := map[string]string{}
	for line := range strings.Lines(string(dep)) {
		file, list, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[file] = strings.Fields(list)
		byName[strings.TrimSuffix(filepath.Base(file), ".ko")] = file
	}
	var add func(file string)
	add = func(file string) {
		full := filepath.Join(dir, file)
		if file == "" || slices.Contains(files, full) {
			return
		}
		for _, d := range slices.Backward(needs[file]) {
			add(d)
		}
		if !slices.Contains(files, full) {
			files = append(files, full)
		}
	}
	for _, m := range vmModules {
		add(byName[m])
	}
	return files
}

type cpio struct {
	w   io.Writer
	ino int
	err error
}

func (c *cpio) copy(name string, mode int, from string) {
	b, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.add(name, mode, b)
}

func (c *cpio) add(name string, mode int, data []byte) {
	c.ino++
	var b bytes.Buffer
	fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	b.WriteString(name + "\x00")
	b.Write(make([]byte, (4-b.Len()%4)%4))
	b.Write(data)
	b.Write(make([]byte, (4-b.Len()%4)%4))
	if _, err := c.w.Write(b.Bytes()); err != nil && c.err == nil {
		c.err = err
	}
}
