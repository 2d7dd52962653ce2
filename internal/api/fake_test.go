package api

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"

	"keg/internal/engine"
	"keg/internal/event"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/monitor"
	"keg/internal/registry"
)

// fake is an engine with one container; what it does not have panics, which the server
// must survive.
type fake struct {
	Engine
	mu      sync.Mutex
	calls   []string
	running bool
	tty     bool
	stdio   *monitor.Stdio
	exit    chan int
	fail    error
	account registry.Account
	created engine.CreateOptions
}

func newFake() *fake { return &fake{exit: make(chan int, 4)} }

func (f *fake) called(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, s)
}

func (f *fake) Inspect(_ context.Context, ref string, _ bool) (container.InspectResponse, error) {
	if ref != "web" && ref != "cafe" {
		return container.InspectResponse{}, fault.NotFoundf("No such container: %s", ref)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return container.InspectResponse{ID: "cafe", State: &container.State{Running: f.running}, HostConfig: &container.HostConfig{},
		ImageManifestDescriptor: &image.Descriptor{}, Config: &container.Config{OpenStdin: true, Tty: f.tty}}, nil
}

func (f *fake) Create(_ context.Context, o engine.CreateOptions) (engine.Created, error) {
	f.created = o
	f.called("create " + o.Name + " " + o.Config.Image + " " + o.Pull)
	return engine.Created{ID: "cafe"}, f.fail
}

type fakeSession struct{ f *fake }

func (s fakeSession) Wait(context.Context) (monitor.Exit, error) {
	code := <-s.f.exit
	s.f.mu.Lock()
	s.f.running = false
	s.f.mu.Unlock()
	return monitor.Exit{Code: code}, nil
}
func (s fakeSession) Close() error { return nil }

func (f *fake) Begin(_ context.Context, _ string, attach *monitor.Stdio) (engine.Session, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	f.mu.Lock()
	f.running, f.stdio = true, attach
	f.mu.Unlock()
	if attach != nil {
		go f.program(*attach)
	}
	return fakeSession{f}, nil
}

// program says hello on both streams, repeats its input and ends with it.
func (f *fake) program(s monitor.Stdio) {
	io.WriteString(s.Out, "hello")
	if s.Err != nil {
		io.WriteString(s.Err, "oops")
	}
	if s.In != nil {
		io.Copy(s.Out, s.In)
	}
	f.exit <- 3
}

func (f *fake) Wait(ctx context.Context, _ string, _ container.WaitCondition) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func (f *fake) Kill(_ context.Context, ref, sig string) error {
	f.called("kill " + ref + " " + sig)
	return f.fail
}

func (f *fake) Containers(_ context.Context, o engine.ListOptions) ([]container.Summary, error) {
	b, _ := json.Marshal(o)
	f.called("list " + string(b))
	row := container.Summary{Health: &container.HealthSummary{Status: "none"}}
	row.HostConfig.Annotations = map[string]string{"a": "b"}
	return []container.Summary{row}, f.fail
}

func (f *fake) InspectImage(_ context.Context, ref string) (dimage.InspectResponse, error) {
	f.called("image " + ref)
	return dimage.InspectResponse{ID: "sha256:1", Size: 5, Os: "linux", Architecture: "amd64", Descriptor: &image.Descriptor{},
		Config: &dockerspec.DockerOCIImageConfig{}}, f.fail
}

func (f *fake) Images(context.Context, engine.ImageListOptions) ([]dimage.Summary, error) {
	return []dimage.Summary{{ID: "sha256:1", Manifests: []dimage.ManifestSummary{{ID: "sha256:2"}}}}, f.fail
}

func (f *fake) Attestations(context.Context, string, engine.AttestationOptions) ([]dimage.AttestationStatement, error) {
	return nil, f.fail
}

func (f *fake) InspectNetwork(context.Context, string) (network.Inspect, error) {
	return network.Inspect{Status: &network.Status{}}, f.fail
}

func (f *fake) DiskDetail(context.Context) (engine.DiskDetail, error) {
	return engine.DiskDetail{Volumes: []volume.Volume{{Name: "v"}}}, f.fail
}

func (f *fake) Info(context.Context) (engine.Info, error) { return engine.Info{}, f.fail }

func (f *fake) DiskUsage(context.Context) ([]engine.Usage, error) {
	return []engine.Usage{{Size: 7}, {}, {Total: 1}, {}}, f.fail
}

func (f *fake) CheckLogin(_ context.Context, host string, cr registry.Credentials) (registry.Credentials, error) {
	f.called("login " + host + " " + cr.Username)
	return cr, f.fail
}

func (f *fake) Events(ctx context.Context, since, _ time.Time, follow bool, _ engine.Filter, yield func(event.Message) error) error {
	if !follow {
		return nil
	}
	if err := yield(event.Message{Type: "container", Action: "die", Actor: actor("cafe")}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// serve starts a server over f on a Unix socket and returns a client and a dialler.
func serve(t *testing.T, f *fake) (*http.Client, func() net.Conn) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	lns, err := Listen("unix://"+sock, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	s := New(f, Options{Version: "1", As: func(as ...registry.Account) Engine { f.account = as[0]; return f }})
	go func() { done <- s.Serve(ctx, lns...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	dial := func() net.Conn {
		c, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", sock) }}}, dial
}

// ask answers one request without a network.
func ask(f *fake, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://docker"+target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	func() {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			}
		}()
		New(f, Options{Version: "1"}).ServeHTTP(w, r)
	}()
	return w
}

// upgrade sends a request for a stream and returns the connection after the header.
func upgrade(t *testing.T, c net.Conn, target, body string) *bufio.Reader {
	t.Helper()
	q := "POST " + target + " HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
	if body != "" {
		q += "Content-Type: application/json\r\n"
	}
	if _, err := io.WriteString(c, q+"Content-Length: "+itoa(len(body))+"\r\n\r\n"+body); err != nil {
		t.Fatal(err)
	}
	b := bufio.NewReader(c)
	line, err := b.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 101") {
		t.Fatalf("no upgrade: %q, %v", line, err)
	}
	for line != "\r\n" {
		if line, err = b.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func escape(s string) string { return url.PathEscape(s) }

func timeoutContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 50*time.Millisecond)
}
