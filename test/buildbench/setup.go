package main

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// bench holds what was prepared for one run.
type bench struct {
	dir        string
	mb, rounds int
	dockerd    *exec.Cmd
	changes    int
}

// startDocker starts Debian's engine with directories and a socket of its own.
func (b *bench) startDocker() (*engine, error) {
	sock := "unix://" + b.dir + "/docker.sock"
	log, err := os.Create(b.dir + "/dockerd.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	b.dockerd = exec.Command("dockerd", "-H", sock, "--data-root", b.dir+"/docker", "--exec-root", b.dir+"/dockerexec",
		"--pidfile", b.dir+"/docker.pid", "--storage-driver", "overlay2")
	b.dockerd.Stdout, b.dockerd.Stderr = log, log
	b.dockerd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := b.dockerd.Start(); err != nil {
		b.dockerd = nil
		return nil, err
	}
	client := "/usr/bin/docker" // of the same package as dockerd
	if _, err := os.Stat(client); err != nil {
		client = "docker"
	}
	e := &engine{name: "docker", argv: []string{client}, env: append(os.Environ(), "DOCKER_HOST="+sock, "DOCKER_BUILDKIT=1")}
	for range 300 {
		if e.run("version") == nil {
			return e, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	said, _ := os.ReadFile(b.dir + "/dockerd.log")
	return nil, fmt.Errorf("the engine of Docker did not answer: %s", said[max(0, len(said)-400):])
}

func (b *bench) end() {
	if b.dockerd == nil {
		return
	}
	b.dockerd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(20*time.Second, func() { b.dockerd.Process.Kill() })
	b.dockerd.Wait()
	kill.Stop()
}

// context writes a build context and returns its path.
func (b *bench) context(name string, files map[string]string) (string, error) {
	dir := filepath.Join(b.dir, "contexts", name)
	for p, data := range files {
		p = filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

const baseFile = `FROM scratch
ADD rootfs.tar /
ENV PATH=/usr/local/go/bin:/usr/bin:/bin CGO_ENABLED=0 GO111MODULE=off GOFLAGS=-trimpath
RUN cd /tmp && echo 'package main; import "os"; func main() { os.Exit(0) }' > m.go && go build -o m m.go && rm m m.go
CMD ["sh"]
`

// prepare gives both engines the base image "busy": busybox, Go's compiler with its library
// compiled, Node and Python as they are installed here.
func (b *bench) prepare(engines ...*engine) error {
	root := filepath.Join(b.dir, "contexts/base")
	script := `set -e
mkdir -p "$1/r" && cd "$1/r"
mkdir -p bin dev proc sys etc tmp root usr/bin usr/lib usr/local
cp /bin/busybox bin/ && for a in $(/bin/busybox --list); do [ "$a" = busybox ] || ln -s busybox bin/$a; done
echo root:x:0:0::/root:/bin/sh > etc/passwd
copy() { cp -L "$1" usr/bin/ && ldd "$1" | grep -o '/[^ )]*' | while read l; do mkdir -p ".$(dirname $l)"; cp -L "$l" ".$l"; done; }
copy /usr/bin/node; copy /usr/bin/python3
[ ! -d /usr/share/nodejs ] || { mkdir -p usr/share; cp -a /usr/share/nodejs usr/share/ || true; }
v=$(basename $(readlink -f /usr/bin/python3)); mkdir -p usr/lib/$v; cp -a /usr/lib/$v/*.py /usr/lib/$v/encodings /usr/lib/$v/collections /usr/lib/$v/json /usr/lib/$v/re /usr/lib/$v/importlib usr/lib/$v/
g=$(go env GOROOT); mkdir -p usr/local/go/pkg/tool/linux_amd64; cp -a $g/bin $g/src $g/VERSION $g/go.env usr/local/go/; cp -a $g/pkg/include usr/local/go/pkg/
for t in compile link asm; do cp $g/pkg/tool/linux_amd64/$t usr/local/go/pkg/tool/linux_amd64/; done
cd .. && tar -C r -cf rootfs.tar . && rm -r r`
	cmd := exec.Command("sh", "-c", script, "sh", root)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the base: %w\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(root, "Dockerfile"), []byte(baseFile), 0o644); err != nil {
		return err
	}
	for _, e := range engines {
		if err := e.run("build", "-q", "-t", "busy", root); err != nil {
			return err
		}
	}
	return nil
}

// tars writes n archives of mb MiB each, of files that do not compress.
func (b *bench) tars(dir string, n, mb int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	rnd := rand.NewChaCha8([32]byte{1})
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("t%d.tar", i)))
		if err != nil {
			return err
		}
		buffered := bufio.NewWriterSize(f, 1<<20)
		w := tar.NewWriter(buffered)
		const each = 2 << 20
		for j := range mb / 2 {
			w.WriteHeader(&tar.Header{Name: fmt.Sprintf("t%d/d%d/f%d", i, j/50, j), Mode: 0o644, Size: each, ModTime: time.Unix(1577934245, 0)})
			if _, err := io.CopyN(w, rnd, each); err != nil {
				return err
			}
		}
		if err := w.Close(); err != nil {
			return err
		}
		if err := buffered.Flush(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
