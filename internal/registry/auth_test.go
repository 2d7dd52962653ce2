package registry

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"keg/internal/fault"
	"keg/internal/image"
)

// recorder writes down what secrets a server was sent.
type recorder struct {
	mu      sync.Mutex
	secrets []string
	paths   []string
}

func (rec *recorder) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec.mu.Lock()
		rec.paths = append(rec.paths, r.Method+" "+r.URL.Path)
		if a := r.Header.Get("Authorization"); a != "" {
			rec.secrets = append(rec.secrets, a)
		}
		if r.Method == "POST" && r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" {
			r.ParseForm()
			rec.secrets = append(rec.secrets, "refresh "+r.PostForm.Get("refresh_token"))
		}
		rec.mu.Unlock()
		h.ServeHTTP(w, r)
	})
}

// tlsServer listens on an address of its own, with a certificate that authority signs.
func tlsServer(t *testing.T, addr string, h http.Handler) (host string, ca []byte) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	l, err := net.Listen("tcp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	s.Listener.Close()
	s.Listener = l
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return l.Addr().String(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// bearerRegistry is a registry that wants a token of realm() before all else.
type bearerRegistry struct {
	h     http.Handler
	realm func() string
	token string
}

func (b *bearerRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") == "Bearer "+b.token {
		b.h.ServeHTTP(w, r)
		return
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="reg",scope="repository:other:push"`, b.realm()))
	w.WriteHeader(http.StatusUnauthorized)
	io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
}

func saveAuth(t *testing.T, dir, host, user, password string) {
	t.Helper()
	b, _ := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}}})
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTokenOnlyAfter401AndOnlyOnce(t *testing.T) {
	var asked []url.Values
	var basics []string
	tokens := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query())
		basics = append(basics, r.Header.Get("Authorization"))
		io.WriteString(w, `{"token":"T","expires_in":300}`)
	}))
	var rec recorder
	host := startServer(t, rec.wrap(&bearerRegistry{NewServer(newMemory(), ServerOptions{}), func() string { return "http://" + tokens + "/token" }, "T"}))
	c := testClient(t)
	saveAuth(t, c.cfg.DockerConfig, host, "bob", "secret")
	ref := parse(t, host+"/team/x:1")
	newImage(t, image.Host(), []byte("layer")).push(t, c, ref)
	if _, err := c.Fetch(t.Context(), ref, image.Host(), nil); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 2 { // one to push, one to pull
		t.Errorf("asked for a token %d times: %v", len(asked), asked)
	}
	if got := asked[0]["scope"]; !slices.Equal(got, []string{"repository:team/x:pull,push"}) || asked[0].Get("service") != "reg" || asked[0].Get("account") != "bob" {
		t.Errorf("asked for %v", asked[0])
	}
	if want := "Basic " + base64.StdEncoding.EncodeToString([]byte("bob:secret")); basics[0] != want {
		t.Errorf("sent %q", basics[0])
	}
	if slices.Contains(rec.secrets, basics[0]) || len(rec.secrets) == 0 {
		t.Errorf("the registry itself got %v", rec.secrets)
	}
}

// RC1: a registry, or who stands in for it, names a token service at another site.
func TestPasswordDoesNotGoToAnotherSite(t *testing.T) {
	var evil recorder
	evilHost, _ := tlsServer(t, "127.0.0.2", evil.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"token":"T"}`)
	})))
	m := newMemory()
	host, _ := tlsServer(t, "127.0.0.1", &bearerRegistry{NewServer(m, ServerOptions{}), func() string { return "https://" + evilHost + "/token" }, "T"})
	ref := parse(t, host+"/x:1")
	for name, entry := range map[string]string{
		"password":       `{"auth":"` + base64.StdEncoding.EncodeToString([]byte("bob:secret")) + `"}`,
		"identity token": `{"auth":"` + base64.StdEncoding.EncodeToString([]byte("bob:")) + `","identitytoken":"secret"}`,
	} {
		c := testClient(t)
		os.WriteFile(filepath.Join(c.cfg.DockerConfig, "config.json"), []byte(`{"auths":{"`+host+`":`+entry+`}}`), 0o600)
		c.Resolve(t.Context(), ref) // anonymously, which may do
		if len(evil.secrets) != 0 || len(evil.paths) == 0 {
			t.Fatalf("%s: %v went off, asked %v", name, evil.secrets, evil.paths)
		}
	}
	// Who logs in confirms the service: the positive twin.
	c := testClient(t)
	if _, err := c.Login(t.Context(), host, Credentials{Username: "bob", Password: "secret"}); err != nil {
		t.Fatal(err)
	}
	evil.secrets = nil
	c = testClient(t, func(cfg *Config) { cfg.DockerConfig = c.cfg.DockerConfig })
	c.Resolve(t.Context(), ref)
	if len(evil.secrets) != 1 {
		t.Errorf("after a login: %v", evil.secrets)
	}
	if err := c.Logout(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	evil.secrets = nil
	saveAuth(t, c.cfg.DockerConfig, host, "bob", "secret")
	c = testClient(t, func(cfg *Config) { cfg.DockerConfig = c.cfg.DockerConfig })
	c.Resolve(t.Context(), ref)
	if len(evil.secrets) != 0 {
		t.Errorf("a logout forgets nothing: %v", evil.secrets)
	}
}

func TestTrustedRealms(t *testing.T) {
	c := testClient(t)
	for _, tc := range []struct {
		registry, realm string
		ok              bool
	}{
		{"docker.io", "https://auth.docker.io/token", true},
		{"registry.gitlab.com", "https://gitlab.com/jwt/auth", true},
		{"quay.io", "https://quay.io/v2/auth", true},
		{"reg.example.co.uk", "https://auth.example.co.uk/t", true},
		{"reg.example.co.uk", "https://evil.co.uk/t", false},
		{"mine.github.io", "https://evil.github.io/t", false},
		{"docker.io", "https://auth.docker.io.evil.example/token", false},
		{"reg.example", "https://evildocker.example/t", false},
		{"10.0.0.1:5000", "https://10.0.0.1:5001/t", true},
		{"10.0.0.1:5000", "https://10.0.0.2/t", false},
		{"10.0.0.1", "https://11.0.0.1/t", false},
		{"registry", "https://other/t", false},
	} {
		u, _ := url.Parse(tc.realm)
		if got := c.trusts(c.endpoint(tc.registry, false), u); got != tc.ok {
			t.Errorf("%s and %s: %v", tc.registry, tc.realm, got)
		}
	}
}

func TestRealmMustBeHTTPS(t *testing.T) {
	for _, realm := range []string{"http://127.0.0.1:1/token", "ftp://127.0.0.1/", "file:///etc/passwd", "", "//x", "https://user:pw@127.0.0.1/", "https://"} {
		host, _ := tlsServer(t, "127.0.0.1", &bearerRegistry{NewServer(newMemory(), ServerOptions{}), func() string { return realm }, "T"})
		_, err := testClient(t).Resolve(t.Context(), parse(t, host+"/x:1"))
		if !fault.Is(err, fault.Denied) || strings.Contains(err.Error(), "pw@") {
			t.Errorf("%q: %v", realm, err)
		}
	}
}

// RC1 and RC2: nothing secret follows a redirect, a location or a link to another origin.
func TestSecretsStayAtTheirOrigin(t *testing.T) {
	var stranger recorder
	blob := []byte("layer")
	strangerHost, _ := tlsServer(t, "127.0.0.2", stranger.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case "PUT":
			w.WriteHeader(http.StatusCreated)
		case "GET":
			w.Write(blob)
		}
	})))
	var home recorder
	var back string
	homeHost, _ := tlsServer(t, "127.0.0.1", home.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch {
		case r.Method == "POST":
			w.Header().Set("Location", "https://"+strangerHost+"/upload")
			w.WriteHeader(http.StatusAccepted)
		case strings.HasSuffix(r.URL.Path, "/tags/list"):
			w.Header().Set("Link", `<https://`+strangerHost+`/v2/x/tags/list>; rel="next"`)
			if len(r.URL.RawQuery) > 0 || back != "" {
				w.Header().Del("Link")
			}
			back = "done"
			io.WriteString(w, `{"tags":["a"]}`)
		default:
			http.Redirect(w, r, "https://"+strangerHost+"/cdn/"+r.URL.Path, http.StatusTemporaryRedirect)
		}
	})))
	c := testClient(t)
	saveAuth(t, c.cfg.DockerConfig, homeHost, "bob", "secret")
	ref := parse(t, homeHost+"/x:1")
	if b, _, err := readBlob(t, c, ref, descriptor(image.MediaLayer, blob), 0); err != nil || string(b) != "layer" {
		t.Errorf("redirected: %q, %v", b, err)
	}
	if err := c.PushBlob(t.Context(), ref, descriptor(image.MediaLayer, blob), opener(blob), nil); err != nil {
		t.Errorf("located: %v", err)
	}
	if tags, err := c.Tags(t.Context(), ref); err != nil || !slices.Equal(tags, []string{"a"}) {
		t.Error(tags, err)
	}
	if len(stranger.secrets) != 0 || len(stranger.paths) != 2 {
		t.Errorf("the stranger got %v in %v", stranger.secrets, stranger.paths)
	}
	if len(home.secrets) == 0 {
		t.Error("the registry itself got no password")
	}
}

func TestRedirects(t *testing.T) {
	target := ""
	hops := 0
	host, _ := tlsServer(t, "127.0.0.1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hops++
		w.Header().Set("Location", target)
		w.WriteHeader(http.StatusFound)
	}))
	plain := startServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the plain server was asked") }))
	for to, want := range map[string]string{
		"/again":                 "redirects more than 10 times",
		"file:///etc/passwd":     "neither https nor http",
		"gopher://x/":            "neither https nor http",
		"http://" + plain + "/x": "in the clear",
	} {
		target, hops = to, 0
		_, err := testClient(t).Resolve(t.Context(), parse(t, host+"/x:1"))
		if err == nil || !strings.Contains(err.Error(), want) || hops > 3*(maxRedirects+1) {
			t.Errorf("%s: %d hops, %v", to, hops, err)
		}
	}
}

// RC4: no plain HTTP and no unknown certificate, unless told so. Proxies are how a name that
// is not loopback gets to our server here.
func TestNoSilentPlainHTTP(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	plain := startServer(t, NewServer(newMemory(), ServerOptions{}))
	secure, ca := tlsServer(t, "127.0.0.1", NewServer(newMemory(), ServerOptions{}))
	backend := plain
	proxy := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.Method+" "+r.Host)
		to := backend
		mu.Unlock()
		if r.Method != http.MethodConnect {
			r.URL.Host = to
			r.RequestURI = ""
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			w.WriteHeader(resp.StatusCode)
			io.Copy(w, resp.Body)
			return
		}
		up, err := net.Dial("tcp", to)
		if err != nil {
			t.Error(err)
			return
		}
		defer up.Close()
		down, early, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer down.Close()
		io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(up, early)
		io.Copy(down, up)
	}))
	viaProxy := func(c *Config) { c.Env["https_proxy"], c.Env["HTTP_PROXY"] = "http://"+proxy, "http://"+proxy }

	_, err := testClient(t, viaProxy).Resolve(t.Context(), parse(t, "example.com/x:1"))
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "speaks plain HTTP") {
		t.Errorf("plain: %v", err)
	}
	if len(seen) != 1 {
		t.Errorf("tried %d times for what cannot change", len(seen))
	}
	for _, s := range seen {
		if s != "CONNECT example.com:443" {
			t.Errorf("asked for %q", s)
		}
	}
	_, err = testClient(t, viaProxy, func(c *Config) { c.Insecure = []string{"example.com"} }).Resolve(t.Context(), parse(t, "example.com/x:1"))
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("plain and allowed: %v", err)
	}

	mu.Lock()
	backend, seen = secure, nil
	mu.Unlock()
	_, err = testClient(t, viaProxy).Resolve(t.Context(), parse(t, "example.com/x:1"))
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "/etc/docker/certs.d/example.com/ca.crt") {
		t.Errorf("unknown authority: %v", err)
	}
	withCA := func(c *Config) {
		dir := filepath.Join(c.SystemDir, "docker/certs.d/example.com")
		os.MkdirAll(dir, 0o700)
		os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600)
	}
	if _, err = testClient(t, viaProxy, withCA).Resolve(t.Context(), parse(t, "example.com/x:1")); !fault.Is(err, fault.NotFound) {
		t.Errorf("known authority: %v", err)
	}
	mu.Lock()
	seen = nil
	mu.Unlock()
	c := testClient(t, viaProxy, withCA, func(c *Config) { c.Env["NO_PROXY"] = "example.com" })
	u, _ := url.Parse("https://example.com/v2/")
	if p, err := proxyFrom(c.cfg.Env)(u); p != nil || err != nil {
		t.Errorf("NO_PROXY: %v, %v", p, err)
	}
}

func TestBasicAuthAgainstOurServer(t *testing.T) {
	host := htpasswdRegistry(t)
	c := testClient(t)
	ref := parse(t, host+"/x:1")
	img := newImage(t, image.Host(), []byte("layer"))
	_, err := c.Resolve(t.Context(), ref)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "docker login "+host) || !strings.Contains(err.Error(), "without an account") {
		t.Error(err)
	}
	if _, err := c.Login(t.Context(), host, Credentials{Username: "alice", Password: "wrong"}); !fault.Is(err, fault.Unauthorized) || !strings.Contains(err.Error(), "incorrect username or password") {
		t.Error(err)
	}
	if cr, _ := c.Stored(t.Context(), host); cr != (Credentials{}) {
		t.Error("a failed login was saved")
	}
	if said, err := c.Login(t.Context(), host, Credentials{Username: "alice", Password: "pass:word"}); err != nil || said != "Login Succeeded" {
		t.Fatal(said, err)
	}
	img.push(t, c, ref)
	if _, err := c.Fetch(t.Context(), ref, image.Host(), nil); err != nil {
		t.Error(err)
	}
	saveAuth(t, c.cfg.DockerConfig, host, "alice", "changed")
	_, err = testClient(t, func(cfg *Config) { cfg.DockerConfig = c.cfg.DockerConfig }).Resolve(t.Context(), ref)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), `as user "alice"`) {
		t.Error(err)
	}
}

func htpasswdRegistry(t *testing.T) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("pass:word"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	os.WriteFile(file, []byte("# users\nalice:"+string(hash)+"\n"), 0o600)
	host, _ := startRegistry(t, ServerOptions{Htpasswd: file, Delete: true})
	return host
}

func TestLoginGetsAnIdentityToken(t *testing.T) {
	var rec recorder
	tokens := startServer(t, rec.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pw, ok := r.BasicAuth(); ok && (user != "bob" || pw != "secret") {
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"details":"incorrect username or password"}`)
			return
		}
		if r.Method == "POST" {
			r.ParseForm()
			if r.PostForm.Get("refresh_token") != "R" || r.PostForm.Get("grant_type") != "refresh_token" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			io.WriteString(w, `{"access_token":"T"}`)
			return
		}
		io.WriteString(w, `{"token":"T","refresh_token":"R"}`)
	})))
	host := startServer(t, &bearerRegistry{NewServer(newMemory(), ServerOptions{}), func() string { return "http://" + tokens + "/t" }, "T"})
	c := testClient(t)
	if _, err := c.Login(t.Context(), host, Credentials{Username: "bob", Password: "no"}); !fault.Is(err, fault.Unauthorized) {
		t.Error(err)
	}
	if _, err := c.Login(t.Context(), host, Credentials{Username: "bob", Password: "secret"}); err != nil {
		t.Fatal(err)
	}
	cr, err := c.Stored(t.Context(), host)
	if err != nil || cr != (Credentials{Username: "bob", IdentityToken: "R"}) {
		t.Errorf("%#v, %v", cr, err)
	}
	if b, _ := os.ReadFile(filepath.Join(c.cfg.DockerConfig, "config.json")); strings.Contains(string(b), "c2VjcmV0") || strings.Contains(string(b), "secret") {
		t.Errorf("the password was saved beside the token: %s", b)
	}
	rec.secrets = nil
	if _, err := c.Resolve(t.Context(), parse(t, host+"/x:1")); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if !slices.Equal(rec.secrets, []string{"refresh R"}) {
		t.Error(rec.secrets)
	}
}

func TestParseChallenges(t *testing.T) {
	for h, want := range map[string]challenge{
		`Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"`: {"bearer", map[string]string{"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"}},
		`Basic realm="x", Bearer realm="https://a/t"`:                           {"bearer", map[string]string{"realm": "https://a/t"}},
		`bearer Realm=https://a/t`:                                              {"bearer", map[string]string{"realm": "https://a/t"}},
		`Basic realm="a \"quoted\" one"`:                                        {"basic", map[string]string{"realm": `a "quoted" one`}},
		`Basic`:                                                                 {"basic", map[string]string{}},
		`Negotiate, Basic realm = "x"`:                                          {"basic", map[string]string{"realm": "x"}},
		`Digest realm="x"`:                                                      {},
		`="x" ,,, Bearer realm="open`:                                           {"bearer", map[string]string{"realm": "open"}},
		``:                                                                      {},
	} {
		got := pick(parseChallenges([]string{h}))
		if got.scheme != want.scheme || fmt.Sprint(got.params) != fmt.Sprint(want.params) {
			t.Errorf("%s: %v", h, got)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s"`)
	f.Add(`Basic realm="\`)
	f.Fuzz(func(t *testing.T, h string) { parseChallenges([]string{h}) })
}
