package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// startDebianRegistry runs Debian's docker-registry (distribution 2.8) on a free port, or another distribution that
// KEG_TEST_DISTRIBUTION names.
func startDebianRegistry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath(cmp.Or(os.Getenv("KEG_TEST_DISTRIBUTION"), "docker-registry"))
	if err != nil {
		t.Skip("needs docker-registry: apt-get install docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	writeFile(t, config, fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %s}\n", dir, host))
	cmd := exec.Command(program, "serve", config)
	cmd.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 200 {
		if c, err := net.Dial("tcp", host); err == nil {
			c.Close()
			return host
		}
		time.Sleep(20 * time.Millisecond) // another program's start cannot be waited for
	}
	t.Fatal("docker-registry does not listen")
	return ""
}

// Our client must see the same at Debian's registry as at ours.
func TestClientSeesTheSameAtDebiansRegistry(t *testing.T) {
	ours, _ := startRegistry(t, ServerOptions{Delete: true})
	img := newImage(t, image.Host(), []byte("layer one"), bytes.Repeat([]byte("two "), 1<<18))
	type seen struct {
		Desc              image.Descriptor
		Tags              []string
		Has, Mounted, Not bool
		Tail              digest.Digest
		Kinds             []fault.Kind
		Words             []string
	}
	look := func(host string) (s seen) {
		c := testClient(t)
		ref := parse(t, host+"/team/web:1.0")
		other := parse(t, host+"/other:1")
		img.push(t, c, ref)
		r, err := c.Fetch(t.Context(), ref, image.Host(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Desc = r.Desc
		if s.Tags, err = c.Tags(t.Context(), ref); err != nil {
			t.Error(err)
		}
		big := r.Manifest.Layers[1]
		b, off, err := readBlob(t, c, ref, big, 12345)
		if err != nil || off != 12345 {
			t.Error(off, err)
		}
		s.Tail = digest.FromBytes(b)
		s.Has, _ = c.HasBlob(t.Context(), ref, big.Digest)
		s.Not, _ = c.HasBlob(t.Context(), other, big.Digest)
		if s.Mounted, err = c.MountBlob(t.Context(), other, big.Digest, "team/web"); err != nil {
			t.Error(err)
		}
		_, err1 := c.Resolve(t.Context(), parse(t, host+"/team/web:none"))
		_, err2 := c.Resolve(t.Context(), parse(t, host+"/none:none"))
		_, err3 := c.PushManifest(t.Context(), parse(t, host+"/empty:1"), image.MediaManifest, img.manifest)
		_, err4 := c.Tags(t.Context(), parse(t, host+"/none:1"))
		err5 := c.PushBlob(t.Context(), other, descriptor("x", []byte("abc")), opener([]byte("abd")), nil)
		for _, err := range []error{err1, err2, err4, err5} {
			s.Words = append(s.Words, strings.ReplaceAll(fmt.Sprint(err), host, "HOST"))
		}
		for _, err := range []error{err1, err2, err4, err5} {
			s.Kinds = append(s.Kinds, fault.KindOf(err))
		}
		if err3 == nil {
			t.Error("a manifest without its blobs was taken")
		}
		return s
	}
	a, b := look(startDebianRegistry(t)), look(ours)
	if x, y := marshal(t, a), marshal(t, b); !bytes.Equal(x, y) {
		t.Errorf("Debian's: %s\nours:     %s", x, y)
	}
}

// Debian's registry knows no referrers: the client keeps the list that stands in for them.
func TestReferrersAtDebiansRegistry(t *testing.T) {
	host := startDebianRegistry(t)
	c := testClient(t)
	ref := parse(t, host+"/x:1")
	subject := newImage(t, image.Host(), []byte("layer")).push(t, c, ref)
	config := []byte("{}")
	empty := descriptor("application/vnd.oci.empty.v1+json", config)
	if err := c.PushBlob(t.Context(), ref, empty, opener(config), nil); err != nil {
		t.Fatal(err)
	}
	var want []digest.Digest
	for _, kind := range []string{"a/b", "c/d", "a/b"} { // the last one is there already
		doc := marshal(t, map[string]any{"schemaVersion": 2, "mediaType": image.MediaManifest, "artifactType": kind, "subject": subject, "config": empty, "layers": []any{}})
		d, err := c.PushManifest(t.Context(), image.Reference{Registry: host, Repository: "x", Digest: digest.FromBytes(doc)}, image.MediaManifest, doc)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, d)
	}
	got, err := c.Referrers(t.Context(), ref, subject.Digest)
	if err != nil || len(got) != 2 || got[0].Digest != want[0] || got[0].ArtifactType != "a/b" || got[1].Digest != want[1] {
		t.Errorf("%+v %v", got, err)
	}
}

// skopeo pushes to our server and pulls from it, and what it sees is what our client sees.
func TestSkopeoWithOurServer(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo: apt-get install skopeo")
	}
	host := htpasswdRegistry(t)
	dir := t.TempDir()
	run := func(args ...string) []byte {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, skopeo, append([]string{"--insecure-policy", "--tmpdir", dir}, args...)...)
		cmd.Env = []string{"HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "PATH=/usr/bin:/bin", "CONTAINERS_REGISTRIES_CONF=/dev/null"}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("skopeo %v: %v: %s", args, err, &stderr)
		}
		return out
	}
	const creds = "alice:pass:word"
	img := newImage(t, image.Host(), gzipOf(t, "layer"))
	img.m.Layers[0].MediaType = image.MediaLayerGzip
	img.manifest = marshal(t, img.m)
	c := testClient(t)
	saveAuth(t, c.cfg.DockerConfig, host, "alice", "pass:word")
	ref := parse(t, host+"/from/keg:1")
	pushed := img.push(t, c, ref)

	var inspect struct {
		Digest   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(run("inspect", "--tls-verify=false", "--creds", creds, "docker://"+ref.String()), &inspect); err != nil {
		t.Fatal(err)
	}
	if inspect.Digest != string(pushed.Digest) || !slices.Equal(inspect.RepoTags, []string{"1"}) || len(inspect.Layers) != 1 {
		t.Errorf("skopeo sees %+v", inspect)
	}
	// There and back, as OCI and as Docker's schema 2.
	for _, format := range []string{"oci", "v2s2"} {
		back := parse(t, host+"/from/skopeo-"+format+":1")
		run("copy", "--format", format, "--src-tls-verify=false", "--dest-tls-verify=false", "--src-creds", creds, "--dest-creds", creds,
			"docker://"+ref.String(), "docker://"+back.String())
		r, err := c.Fetch(t.Context(), back, image.Host(), nil)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		b, _, err := readBlob(t, c, back, r.Manifest.Layers[0], 0)
		if err != nil || !bytes.Equal(b, img.layers[0]) {
			t.Errorf("%s: %v", format, err)
		}
		if want := map[string]string{"oci": image.MediaManifest, "v2s2": image.MediaDockerManifest}[format]; r.Desc.MediaType != want {
			t.Errorf("%s: %s", format, r.Desc.MediaType)
		}
	}
	var tags struct{ Tags []string }
	if err := json.Unmarshal(run("list-tags", "--tls-verify=false", "--creds", creds, "docker://"+host+"/from/keg"), &tags); err != nil || !slices.Equal(tags.Tags, []string{"1"}) {
		t.Error(tags, err)
	}
	run("delete", "--tls-verify=false", "--creds", creds, "docker://"+ref.String())
	if _, err := c.Resolve(t.Context(), ref); !fault.Is(err, fault.NotFound) {
		t.Errorf("deleted: %v", err)
	}
}

// A credential file that skopeo wrote is one that we read.
func TestSkopeoLoginIsOurs(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo: apt-get install skopeo")
	}
	host := htpasswdRegistry(t)
	c := testClient(t)
	file := filepath.Join(c.cfg.DockerConfig, "config.json")
	cmd := exec.Command(skopeo, "login", "--tls-verify=false", "--authfile", file, "-u", "alice", "-p", "pass:word", host)
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=/usr/bin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if cr, err := c.Stored(t.Context(), host); err != nil || cr != (Credentials{Username: "alice", Password: "pass:word"}) {
		t.Errorf("%#v, %v", cr, err)
	}
	if err := c.Logout(t.Context(), host); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(file); strings.Contains(string(b), host) {
		t.Errorf("%s", b)
	}
	resp, err := http.Get("http://" + host + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Error(resp.Status)
	}
}
