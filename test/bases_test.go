package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The base images of the scripts are made from programs that Debian packages installed
// here, pushed to Debian's docker-registry on loopback, which stands in for docker.io.

var hub struct {
	once sync.Once
	err  error
	addr string // host:port of the registry
	conf string // registries.conf that sends docker.io there
	dir  string
	cmd  *exec.Cmd
}

// bases starts the registry once and returns the path of the registries.conf.
func bases(t *testing.T) string {
	t.Helper()
	hub.once.Do(func() { hub.err = startBases() })
	if hub.err != nil {
		t.Fatalf("make base images: %v (scripts/install-test-deps installs what they need)", hub.err)
	}
	return hub.conf
}

func stopBases() {
	if hub.cmd != nil {
		hub.cmd.Process.Kill()
		hub.cmd.Wait()
	}
	if hub.dir != "" {
		os.RemoveAll(hub.dir)
	}
	os.RemoveAll(bin)
}

func startBases() (err error) {
	if hub.dir, err = os.MkdirTemp("", "keg-hub-"); err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	hub.addr = addr
	config := filepath.Join(hub.dir, "config.yml")
	os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n",
		filepath.Join(hub.dir, "data"), addr), 0o600)
	hub.cmd = exec.Command("docker-registry", "serve", config)
	hub.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := hub.cmd.Start(); err != nil {
		hub.cmd = nil
		return err
	}
	if err := answers("http://" + addr + "/v2/"); err != nil {
		return err
	}
	hub.conf = filepath.Join(hub.dir, "registries.conf")
	conf := fmt.Sprintf("[[registry]]\nprefix = \"docker.io\"\nlocation = \"%s\"\ninsecure = true\n", addr)
	if err := os.WriteFile(hub.conf, []byte(conf), 0o644); err != nil {
		return err
	}
	for _, b := range []func() (string, v1.Image, error){busyboxImage, alpineImage, helloImage, nginxImage, registryImage} {
		ref, img, err := b()
		if err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
		dst, err := name.ParseReference(addr+"/library/"+ref, name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(dst, img); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func answers(url string) (err error) {
	for range 100 {
		var resp *http.Response
		if resp, err = http.Get(url); err == nil {
			resp.Body.Close()
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// tree is a root file system by path.
type tree map[string]node

type node struct {
	mode int64 // with tar's type: 0 is a regular file
	kind byte
	link string
	data []byte
}

func (t tree) dir(p string, mode int64) { t[p] = node{mode: mode, kind: tar.TypeDir} }
func (t tree) file(p, text string)      { t[p] = node{mode: 0o644, kind: tar.TypeReg, data: []byte(text)} }
func (t tree) link(p, to string)        { t[p] = node{mode: 0o777, kind: tar.TypeSymlink, link: to} }

// program copies an installed program to p and its shared libraries to their places.
func (t tree) program(p, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t[p] = node{mode: 0o755, kind: tar.TypeReg, data: b}
	out, err := exec.Command("ldd", from).CombinedOutput()
	if err != nil {
		return nil // static
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		lib := f[0]
		if len(f) > 2 && f[1] == "=>" {
			lib = f[2]
		}
		if !strings.HasPrefix(lib, "/") {
			continue
		}
		b, err := os.ReadFile(lib)
		if err != nil {
			return err
		}
		t[strings.TrimPrefix(lib, "/")] = node{mode: 0o755, kind: tar.TypeReg, data: b}
	}
	return nil
}

// tar packs the tree, with the directories on the way.
func (t tree) tar() ([]byte, error) {
	for p := range t { // parents
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			if _, ok := t[d]; !ok {
				t.dir(d, 0o755)
			}
		}
	}
	paths := make([]string, 0, len(t))
	for p := range t {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range paths {
		n := t[p]
		h := &tar.Header{Name: p, Mode: n.mode, Typeflag: n.kind, Linkname: n.link, Size: int64(len(n.data)), ModTime: time.Unix(1700000000, 0)}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		w.Write(n.data)
	}
	err := w.Close()
	return b.Bytes(), err
}

// image makes a one-layer image, gzip-compressed as registries usually hold them.
func (t tree) image(ref string, edit func(*v1.Config)) (string, v1.Image, error) {
	b, err := t.tar()
	if err != nil {
		return ref, nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
	if err != nil {
		return ref, nil, err
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: "ADD rootfs.tar / # buildkit", Created: v1.Time{Time: time.Unix(1700000000, 0)}}})
	if err != nil {
		return ref, nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return ref, nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Created = v1.Time{Time: time.Unix(1700000000, 0)}
	cf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	edit(&cf.Config)
	img, err = mutate.ConfigFile(img, cf)
	return ref, img, err
}

func busyboxTree() (tree, error) {
	t := tree{}
	if err := t.program("bin/busybox", "/bin/busybox"); err != nil {
		return nil, err
	}
	out, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	for applet := range strings.FieldsSeq(string(out)) {
		if applet != "busybox" {
			t.link("bin/"+applet, "busybox")
		}
	}
	for _, d := range []string{"dev", "proc", "sys", "usr/bin", "usr/sbin", "var/run", "home"} {
		t.dir(d, 0o755)
	}
	t.dir("tmp", 0o1777)
	t.dir("root", 0o700)
	t.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/usr/sbin:/bin/false\nwww-data:x:33:33::/var/www:/bin/false\nnobody:x:65534:65534::/:/bin/false\n")
	t.file("etc/group", "root:x:0:\ndaemon:x:1:\ntty:x:5:\naudio:x:29:www-data\nwww-data:x:33:\nnogroup:x:65534:\n")
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil, err
	}
	t.file("etc/os-release", string(release))
	return t, nil
}

func busyboxImage() (string, v1.Image, error) { return shellImage("busybox:latest") }
func alpineImage() (string, v1.Image, error)  { return shellImage("alpine:latest") }

func shellImage(ref string) (string, v1.Image, error) {
	t, err := busyboxTree()
	if err != nil {
		return ref, nil, err
	}
	return t.image(ref, func(c *v1.Config) { c.Cmd = []string{"sh"} })
}

func helloImage() (string, v1.Image, error) {
	const ref = "hello-world:latest"
	t := tree{}
	if err := t.program("bin/busybox", "/bin/busybox"); err != nil {
		return ref, nil, err
	}
	t.file("hello.txt", "\nHello from Docker!\nThis message shows that your installation appears to be working correctly.\n\n")
	return t.image(ref, func(c *v1.Config) { c.Cmd = []string{"/bin/busybox", "cat", "/hello.txt"} })
}

const nginxConf = `worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr warn;
events { worker_connections 64; }
http {
	include mime.types;
	access_log /dev/stdout;
	server { listen 80; root /usr/share/nginx/html; index index.html; }
}
`

func nginxImage() (string, v1.Image, error) {
	const ref = "nginx:1.27-alpine"
	t, err := busyboxTree()
	if err != nil {
		return ref, nil, err
	}
	if err := t.program("usr/sbin/nginx", "/usr/sbin/nginx"); err != nil {
		return ref, nil, err
	}
	mime, err := os.ReadFile("/etc/nginx/mime.types")
	if err != nil {
		return ref, nil, err
	}
	t.file("etc/nginx/mime.types", string(mime))
	t.file("etc/nginx/nginx.conf", nginxConf)
	t.file("usr/share/nginx/html/index.html", "Welcome to nginx!\n")
	for _, d := range []string{"run", "var/log/nginx", "var/lib/nginx", "usr/share/nginx/modules-available"} {
		t.dir(d, 0o755)
	}
	return t.image(ref, func(c *v1.Config) {
		c.Cmd = []string{"nginx", "-g", "daemon off; user www-data;"}
		c.ExposedPorts = map[string]struct{}{"80/tcp": {}}
		c.StopSignal = "SIGQUIT"
	})
}

func registryImage() (string, v1.Image, error) {
	const ref = "registry:2"
	t, err := busyboxTree()
	if err != nil {
		return ref, nil, err
	}
	if err := t.program("bin/registry", "/usr/bin/docker-registry"); err != nil {
		return ref, nil, err
	}
	t.file("etc/docker/registry/config.yml", "version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib/registry}, delete: {enabled: true}}\nhttp: {addr: ':5000'}\n")
	t.dir("var/lib/registry", 0o755)
	return t.image(ref, func(c *v1.Config) {
		c.Entrypoint = []string{"/bin/registry"}
		c.Cmd = []string{"serve", "/etc/docker/registry/config.yml"}
		c.ExposedPorts = map[string]struct{}{"5000/tcp": {}}
		c.Volumes = map[string]struct{}{"/var/lib/registry": {}}
	})
}
