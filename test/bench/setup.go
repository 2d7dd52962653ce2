package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
)

// bench holds what was prepared for one run.
type bench struct {
	dir, keg  string
	env       []string
	userEnv   []string
	user      *syscall.Credential // of the ordinary user; nil: none here
	docker    *exec.Cmd
	dockerEnv []string
	started   []func()
}

const dockerfile = "FROM scratch\nADD rootfs.tar /\nCMD [\"sh\"]\n"

// prepare makes one busybox root, as a bundle for runc and as an image for keg.
func (b *bench) prepare() error {
	root := filepath.Join(b.dir, "bundle/rootfs")
	for _, d := range []string{"bin", "dev", "proc", "sys", "etc", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w (scripts/install-test-deps installs busybox-static)", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755); err != nil {
		return err
	}
	for _, n := range []string{"sh", "true", "sleep", "cat", "ls"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", n)); err != nil {
			return err
		}
	}
	os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644)
	if err := b.bundle("bundle", "true"); err != nil {
		return err
	}
	ctx := filepath.Join(b.dir, "image")
	if err := os.Mkdir(ctx, 0o755); err != nil {
		return err
	}
	os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte(dockerfile), 0o644)
	steps := "FROM bench\n"
	for i := range 19 {
		steps += fmt.Sprintf("RUN echo %d > /step%d\n", i, i)
	}
	os.MkdirAll(filepath.Join(b.dir, "steps"), 0o755)
	os.WriteFile(filepath.Join(b.dir, "steps/Dockerfile"), []byte(steps), 0o644)
	for _, argv := range [][]string{
		{"tar", "-C", root, "-cf", filepath.Join(ctx, "rootfs.tar"), "."},
		{b.keg, "build", "-q", "-t", "bench", ctx},
		{b.keg, "build", "-q", "-t", "steps", filepath.Join(b.dir, "steps")},
		{b.keg, "run", "-d", "--name", "idle", "--network", "none", "bench", "sleep", "100000"},
	} {
		if err := b.do(argv); err != nil {
			return err
		}
	}
	b.started = append(b.started, func() { b.do([]string{b.keg, "rm", "-f", "idle"}) })
	if err := b.emptyProgram(); err != nil {
		return err
	}
	if err := b.prepareUser(); err != nil {
		fmt.Println("A container of an ordinary user is not timed:", err)
	}
	return b.idleRunc()
}

// prepareUser starts a container as an ordinary user, for the row that enters it.
func (b *bench) prepareUser() error {
	const uid = 1000
	for _, d := range []string{b.dir, b.dir + "/image"} {
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	home := filepath.Join(b.dir, "user")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	if err := os.Chown(home, uid, uid); err != nil {
		return err
	}
	b.userEnv = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "KEG_ROOT=" + home + "/root", "KEG_RUN_ROOT=" + home + "/run"}
	b.user = &syscall.Credential{Uid: uid, Gid: uid}
	keg := filepath.Join(home, "keg") // where the user can read it
	if err := b.do([]string{"install", "-m", "0755", b.keg, keg}); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{keg, "build", "-q", "-t", "bench", b.dir + "/image"},
		{keg, "run", "-d", "--name", "idle", "--network", "none", "bench", "sleep", "100000"},
	} {
		if err := b.doAs(argv, b.userEnv, b.user); err != nil {
			b.user = nil
			return err
		}
	}
	b.started = append(b.started, func() { b.doAs([]string{keg, "rm", "-f", "idle"}, b.userEnv, b.user) })
	return nil
}

func (b *bench) do(argv []string) error { return b.doAs(argv, b.env, nil) }

func (b *bench) doAs(argv, env []string, user *syscall.Credential) error {
	// A file, not a pipe: what a detached container keeps open must not be waited for.
	out, err := os.CreateTemp(b.dir, "out-")
	if err != nil {
		return err
	}
	defer out.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%q: %w\n%s", argv, err, said)
	}
	return nil
}

// bundle writes runc's own default config with another command.
func (b *bench) bundle(name string, args ...string) error {
	dir := filepath.Join(b.dir, name)
	cmd := exec.Command("runc", "spec")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("runc spec: %w\n%s", err, out)
	}
	path := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return err
	}
	spec.Process.Terminal = false
	spec.Process.Args = args
	spec.Root.Path = filepath.Join(b.dir, "bundle/rootfs")
	if raw, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o644)
}

// idleRunc starts the container that runc's exec row enters.
func (b *bench) idleRunc() error {
	if err := os.Mkdir(filepath.Join(b.dir, "idle"), 0o755); err != nil {
		return err
	}
	if err := b.bundle("idle", "sleep", "100000"); err != nil {
		return err
	}
	err := b.do([]string{"runc", "--root", b.dir + "/runc", "run", "-d", "--bundle", filepath.Join(b.dir, "idle"), "benchidle"})
	b.started = append(b.started, func() { b.do([]string{"runc", "--root", b.dir + "/runc", "delete", "-f", "benchidle"}) })
	return err
}

func (b *bench) emptyProgram() error {
	dir := filepath.Join(b.dir, "empty")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() {}\n"), 0o644)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "empty"), filepath.Join(dir, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build an empty program: %w\n%s", err, out)
	}
	return nil
}

func (b *bench) rows() []*row {
	keg := func(name, base string, args ...string) *row {
		return &row{name: name, base: base, argv: append([]string{b.keg}, args...), env: b.env}
	}
	plain := func(name, base string, argv ...string) *row {
		return &row{name: name, base: base, argv: argv, env: os.Environ()}
	}
	rows := []*row{
		plain("empty Go program", "empty Go program", filepath.Join(b.dir, "empty/empty")),
		keg("keg --version", "empty Go program", "--version"),
		plain("runc run", "runc run", "runc", "--root", b.dir+"/runc", "run", "--bundle", b.dir+"/bundle", "bench1"),
		keg("keg run --rm --network none", "runc run", "run", "--rm", "--network", "none", "--name", "bench", "bench", "true"),
		keg("keg run --rm", "runc run", "run", "--rm", "--name", "benchb", "bench", "true"),
		keg("keg run --rm -p", "runc run", "run", "--rm", "--name", "benchp", "-p", "18080:80", "bench", "true"),
		plain("runc exec", "runc exec", "runc", "--root", b.dir+"/runc", "exec", "benchidle", "true"),
		keg("keg exec", "runc exec", "exec", "idle", "true"),
		plain("keg oci run, the same bundle", "runc run", b.keg, "oci", "--root", b.dir+"/oci", "run", "--bundle", b.dir+"/bundle", "bench2"),
		keg("keg build, 20 steps, all cached", "runc run", "build", "-q", "-t", "steps", b.dir+"/steps"),
	}
	if b.user != nil {
		rows = append(rows, &row{name: "keg exec, an ordinary user's", base: "runc exec", argv: []string{b.dir + "/user/keg", "exec", "idle", "true"}, env: b.userEnv, user: b.user})
	}
	return rows
}

// startDocker starts Debian's engine with directories and a socket of its own.
func (b *bench) startDocker() error {
	sock := "unix://" + b.dir + "/docker.sock"
	b.dockerEnv = append(os.Environ(), "DOCKER_HOST="+sock)
	log, err := os.Create(b.dir + "/dockerd.log")
	if err != nil {
		return err
	}
	defer log.Close()
	b.docker = exec.Command("dockerd", "-H", sock, "--data-root", b.dir+"/docker", "--exec-root", b.dir+"/dockerexec",
		"--pidfile", b.dir+"/docker.pid", "--storage-driver", "overlay2")
	b.docker.Stdout, b.docker.Stderr = log, log
	b.docker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := b.docker.Start(); err != nil {
		b.docker = nil
		return err
	}
	for range 300 {
		if b.dockerDo("version") == nil {
			if err := b.dockerDo("import", b.dir+"/image/rootfs.tar", "bench"); err != nil {
				return err
			}
			return b.dockerDo("run", "-d", "--name", "idle", "--network", "none", "bench", "sleep", "100000")
		}
		time.Sleep(100 * time.Millisecond)
	}
	tail, _ := os.ReadFile(b.dir + "/dockerd.log")
	return fmt.Errorf("its engine did not answer: %s", tail[max(0, len(tail)-400):])
}

func dockerClient() string {
	if _, err := os.Stat("/usr/bin/docker"); err == nil {
		return "/usr/bin/docker" // of the same package as dockerd
	}
	return "docker"
}

func (b *bench) dockerDo(args ...string) error {
	cmd := exec.Command(dockerClient(), args...)
	cmd.Env = b.dockerEnv
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker %q: %w\n%s", args, err, out)
	}
	return nil
}

func (b *bench) dockerRows() []*row {
	docker := func(name, base string, args ...string) *row {
		return &row{name: name, base: base, argv: append([]string{dockerClient()}, args...), env: b.dockerEnv}
	}
	return []*row{
		docker("docker run --rm --network none", "runc run", "run", "--rm", "--network", "none", "--name", "bench", "bench", "true"),
		docker("docker run --rm", "runc run", "run", "--rm", "--name", "benchb", "bench", "true"),
		docker("docker run --rm -p", "runc run", "run", "--rm", "--name", "benchp", "-p", "18081:80", "bench", "true"),
		docker("docker exec", "runc exec", "exec", "idle", "true"),
	}
}

func (b *bench) end() {
	for _, f := range slices.Backward(b.started) {
		f()
	}
	if b.docker != nil {
		b.dockerDo("rm", "-f", "idle")
		b.docker.Process.Signal(syscall.SIGTERM)
		b.docker.Wait()
	}
}

// host is what a run may not leave behind.
func (b *bench) host() (all []string) {
	links, _ := netlink.LinkList()
	for _, l := range links {
		if l.Attrs().Name != "docker0" {
			all = append(all, "link "+l.Attrs().Name)
		}
	}
	if out, err := exec.Command("nft", "list", "tables").Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "keg") {
				all = append(all, "nft "+strings.TrimSpace(line))
			}
		}
	}
	filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, "keg") {
			all = append(all, "cgroup "+p)
		}
		return nil
	})
	for _, m := range b.monitors() {
		all = append(all, "monitor "+m)
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, b.dir+"/ro") || strings.Contains(line, b.dir+"/run") {
			all = append(all, "mount "+line)
		}
	}
	slices.Sort(all)
	return all
}

// monitors lists the pids of this engine's monitors.
func (b *bench) monitors() (pids []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		c, _ := os.ReadFile(p)
		if (bytes.HasPrefix(c, []byte("keg-monitor")) || bytes.HasPrefix(c, []byte("keg-keeper"))) && bytes.Contains(c, []byte(b.dir)) {
			pids = append(pids, strings.Split(p, "/")[2])
		}
	}
	return pids
}

// memory prints what an idle container costs, and that nothing runs without one.
func (b *bench) memory() error {
	for _, pid := range b.monitors() {
		rollup, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			return err
		}
		status, _ := os.ReadFile("/proc/" + pid + "/status")
		for line := range strings.Lines(string(rollup) + string(status)) {
			if strings.HasPrefix(line, "Pss:") || strings.HasPrefix(line, "Threads:") {
				fmt.Println("idle monitor", strings.Join(strings.Fields(line), " "))
			}
		}
	}
	for _, f := range slices.Backward(b.started) { // the idle containers
		f()
	}
	b.started = nil
	time.Sleep(2 * time.Second)
	if left := b.monitors(); len(left) > 0 {
		return errors.New("processes without a container: " + strings.Join(left, " "))
	}
	fmt.Println("Processes when nothing runs: 0.")
	return nil
}
