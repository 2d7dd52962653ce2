package registry

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"keg/internal/image"
)

// users writes a password file; the password of each is "pw-" and the name.
func users(t *testing.T, names ...string) string {
	t.Helper()
	var b strings.Builder
	for _, n := range names {
		h, err := bcrypt.GenerateFromPassword([]byte("pw-"+n), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(n + ":" + string(h) + "\n")
	}
	file := filepath.Join(t.TempDir(), "users")
	writeFile(t, file, b.String())
	return file
}

func basic(user string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":pw-"+user))
}

// tokenFor asks the token endpoint.
func tokenFor(t *testing.T, h http.Handler, user string, scopes ...string) string {
	t.Helper()
	q := url.Values{"service": {tokenService}, "scope": scopes}
	var header []string
	if user != "" {
		header = []string{basic(user)}
	}
	w := ask(h, "GET", "/token?"+q.Encode(), nil, header...)
	var answer struct {
		Token   string `json:"token"`
		Expires int    `json:"expires_in"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 200 || answer.Token == "" || answer.Expires != 300 {
		t.Fatalf("%d %s %v", w.Code, w.Body, err)
	}
	return answer.Token
}

func TestPatterns(t *testing.T) {
	for _, tc := range []struct {
		pattern, repo string
		want          bool
	}{
		{"**", "a/b/c", true}, {"team/**", "team/a", true}, {"team/**", "team/a/b", true}, {"team/**", "team", false}, {"team/**", "teams/a", false},
		{"team/*", "team/a", true}, {"team/*", "team/a/b", false}, {"*/web/**", "x/web/y", true}, {"*/web/**", "x/y/web/z", false}, {"team/web", "team/web", true}, {"team/web", "team/web2", false}, {"pr-*", "pr-1", true},
	} {
		if got := matchRepo(tc.pattern, tc.repo); got != tc.want {
			t.Errorf("%s %s: %v", tc.pattern, tc.repo, got)
		}
	}
	for _, bad := range []string{"", "/a", "a**", "**/a", "a/**/b", "[", "a[/**"} {
		if checkPattern(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// RS3: users by repositories by verbs, with passwords and with tokens. What is not given is
// refused, what is given works.
func TestRightsMatrix(t *testing.T) {
	m := newMemory()
	open := NewServer(m, ServerOptions{})
	blob := map[string]digest.Digest{}
	for _, repo := range []string{"one", "two"} {
		blob[repo] = uploadTo(t, open, repo, []byte("secret of "+repo))
	}
	rules := []Rule{{"one", []string{"alice"}, Pull | Push | Delete}, {"one", []string{"bob"}, Pull}, {"two", []string{AnyUser}, Pull | Push}}
	h := NewServer(m, ServerOptions{Htpasswd: users(t, "alice", "bob"), Rules: rules, Delete: true, Tokens: &TokenOptions{}})
	allowed := map[string]string{
		"alice one": "pull push delete", "bob one": "pull", "alice two": "pull push", "bob two": "pull push", " one": "", " two": "",
	}
	for _, user := range []string{"alice", "bob", ""} {
		for _, repo := range []string{"one", "two"} {
			for _, token := range []bool{false, true} {
				if token && user == "" {
					continue // nothing is public here
				}
				var auth []string
				if user != "" {
					auth = []string{basic(user)}
				}
				if token {
					auth = []string{"Authorization: Bearer " + tokenFor(t, h, user, "repository:one:pull,push,delete", "repository:two:*")}
				}
				for _, tc := range []struct {
					right, method, path string
				}{
					{"pull", "GET", "/blobs/" + string(blob[repo])}, {"pull", "HEAD", "/blobs/" + string(blob[repo])}, {"pull", "GET", "/tags/list"}, {"pull", "GET", "/referrers/" + string(blob[repo])}, {"pull", "GET", "/manifests/none"},
					{"push", "POST", "/blobs/uploads/"}, {"push", "PUT", "/manifests/x"}, {"push", "PATCH", "/blobs/uploads/" + strings.Repeat("0", 32)}, {"push", "GET", "/blobs/uploads/" + strings.Repeat("0", 32)},
					{"delete", "DELETE", "/manifests/x"}, {"delete", "DELETE", "/blobs/" + string(digest.FromString("x"))},
				} {
					w := ask(h, tc.method, "/v2/"+repo+tc.path, strings.NewReader("{}"), auth...)
					refused := w.Code == 401 || w.Code == 403
					if want := !strings.Contains(allowed[user+" "+repo], tc.right); refused != want {
						t.Errorf("%s (token %v): %s %s%s: %d", user, token, tc.method, repo, tc.path, w.Code)
					}
					if user == "" && w.Code != 401 {
						t.Errorf("nobody: %s %s: %d", tc.method, tc.path, w.Code)
					}
				}
			}
		}
	}
	// A mount reads the other repository: only who may pull there gets it without the bytes.
	rules[0].Who = []string{"carol"}
	h = NewServer(m, ServerOptions{Htpasswd: users(t, "alice", "carol"), Rules: rules})
	for user, want := range map[string]int{"alice": 202, "carol": 201} {
		w := ask(h, "POST", "/v2/two/blobs/uploads/?from=one&mount="+string(blob["one"]), nil, basic(user))
		if w.Code != want {
			t.Errorf("mount by %s: %d", user, w.Code)
		}
	}
	// The catalog lists what may be pulled.
	if w := ask(h, "GET", "/v2/_catalog", nil, basic("alice")); !strings.Contains(w.Body.String(), `["two"]`) {
		t.Errorf("catalog: %s", w.Body)
	}
}

// RS3: tokens that are not ours, not ours any more, or for something else.
func TestForgedTokens(t *testing.T) {
	o := ServerOptions{Htpasswd: users(t, "alice"), Tokens: &TokenOptions{}}
	h := NewServer(newMemory(), o).(*server)
	try := func(token string) int {
		return ask(h, "GET", "/v2/x/tags/list", nil, "Authorization: Bearer "+token).Code
	}
	good := tokenFor(t, h, "alice", "repository:x:pull")
	if got := try(good); got != 404 {
		t.Fatal("the good one:", got)
	}
	parts := strings.Split(good, ".")
	enc := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	other, err := newIssuer(TokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	access := []scope{{"repository", "x", []string{"pull"}}}
	foreign, _ := other.sign("alice", access)
	late := *h.tokens
	late.now = func() time.Time { return time.Now().Add(-time.Hour) }
	expired, _ := late.sign("alice", access)
	early := *h.tokens
	early.now = func() time.Time { return time.Now().Add(time.Hour) }
	future, _ := early.sign("alice", access)
	aud := *h.tokens
	aud.service = "another"
	elsewhere, _ := aud.sign("alice", access)
	gone, _ := h.tokens.sign("mallory", access)
	body := enc(`{"iss":"keg-registry","sub":"alice","aud":"keg-registry","exp":99999999999,"access":[{"type":"repository","name":"x","actions":["pull"]}]}`)
	for name, token := range map[string]string{
		"none": enc(`{"alg":"none"}`) + "." + parts[1] + ".", "none with sum": enc(`{"alg":"none"}`) + "." + parts[1] + "." + parts[2],
		"jwk":      enc(`{"alg":"HS256","typ":"JWT","jwk":{"kty":"oct","k":"AAAA"}}`) + "." + parts[1] + "." + parts[2],
		"x5c":      enc(`{"alg":"RS256","x5c":["AAAA"]}`) + "." + parts[1] + "." + parts[2],
		"new body": parts[0] + "." + body + "." + parts[2], "no sum": parts[0] + "." + parts[1] + ".", "cut": good[:len(good)-2], "empty": "", "dots": "...", "long": good + strings.Repeat("A", 1<<16),
		"foreign": foreign, "expired": expired, "future": future, "another service": elsewhere, "struck off": gone,
	} {
		if got := try(token); got != 401 {
			t.Errorf("%s: %d", name, got)
		}
	}
	// What a token leaves out is refused though the user may.
	w := ask(h, "GET", "/v2/y/tags/list", nil, "Authorization: Bearer "+good)
	if w.Code != 401 || !strings.Contains(w.Header().Get("WWW-Authenticate"), `scope="repository:y:pull",error="insufficient_scope"`) {
		t.Error(w.Code, w.Header())
	}
	for _, bad := range []struct{ method, target, body string }{
		{"POST", "/token", "grant_type=refresh_token"}, {"POST", "/token", "grant_type=password&username=alice&password=no"}, {"GET", "/token", ""},
	} {
		if w := ask(h, bad.method, bad.target, strings.NewReader(bad.body), "Content-Type: application/x-www-form-urlencoded"); w.Code != 400 && w.Code != 401 {
			t.Errorf("%+v: %d %s", bad, w.Code, w.Body)
		}
	}
	w = ask(h, "POST", "/token", strings.NewReader("grant_type=password&username=alice&password=pw-alice&scope=repository:x:pull"), "Content-Type: application/x-www-form-urlencoded")
	if w.Code != 200 || !strings.Contains(w.Body.String(), "access_token") {
		t.Error(w.Code, w.Body)
	}
}

func TestTokenKeyIsKeptAndKeptSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	a, err := newIssuer(TokenOptions{Key: file})
	if err != nil {
		t.Fatal(err)
	}
	b, err := newIssuer(TokenOptions{Key: file})
	if err != nil {
		t.Fatal(err)
	}
	token, _ := a.sign("x", nil)
	if _, ok := b.verify(token); !ok {
		t.Error("a server with the same key does not know the token")
	}
	os.Chmod(file, 0o644)
	if err := (ServerOptions{Tokens: &TokenOptions{Key: file}}).Check(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Error(err)
	}
	os.Chmod(file, 0o600)
	writeFile(t, file, "short")
	if _, err := newIssuer(TokenOptions{Key: file}); err == nil {
		t.Error("a short key was taken")
	}
}

// "Public pull, authenticated push" as one line, for our own client and for skopeo.
func TestPublicPullAuthenticatedPush(t *testing.T) {
	set, err := parseSettings("f", filepath.Dir(users(t)), "")
	if err != nil || set.Options.Tokens != nil {
		t.Fatal(err)
	}
	file := users(t, "alice")
	set, err = parseSettings("f", "/", "htpasswd "+file+"\nallow ** anyone pull users push\n")
	if err != nil {
		t.Fatal(err)
	}
	host := startServer(t, NewServer(newMemory(), set.Options))
	ref := parse(t, host+"/team/web:1")
	img := newImage(t, image.Host(), gzipOf(t, "layer"))
	img.m.Layers[0].MediaType = image.MediaLayerGzip
	img.manifest = marshal(t, img.m)
	nobody := testClient(t)
	if err := nobody.PushBlob(t.Context(), ref, img.m.Config, opener(img.config), nil); err == nil {
		t.Error("nobody may push")
	}
	alice := testClient(t)
	saveAuth(t, alice.cfg.DockerConfig, host, "alice", "pw-alice")
	img.push(t, alice, ref)
	if _, err := nobody.Fetch(t.Context(), ref, image.Host(), nil); err != nil {
		t.Error("pull without a name:", err)
	}
	resp, err := http.Get("http://" + host + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 401 || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), `Bearer realm="http://`+host+`/token"`) {
		t.Error(resp.Status, resp.Header)
	}
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo: apt-get install skopeo")
	}
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), skopeo, append([]string{"--insecure-policy", "--tmpdir", dir}, args...)...)
		cmd.Env = []string{"HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "PATH=/usr/bin:/bin", "CONTAINERS_REGISTRIES_CONF=/dev/null"}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("inspect", "--tls-verify=false", "docker://"+ref.String()); err != nil {
		t.Error(out)
	}
	to := "docker://" + host + "/team/copy:1"
	if out, err := run("copy", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+ref.String(), to); err == nil || !strings.Contains(out, "unauthorized") && !strings.Contains(out, "authentication required") {
		t.Error("skopeo pushed without a name:", out)
	}
	if out, err := run("copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--dest-creds", "alice:pw-alice", "docker://"+ref.String(), to); err != nil {
		t.Error(out)
	}
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/users", "alice:"+nobody+"\n")
	writeFile(t, dir+"/good", `# a registry
listen 127.0.0.1:5000
dir "my registry"   # beside this file
htpasswd users
allow ** anyone pull users push
allow team/** alice all
immutable ** v*
quota team/** 10GiB
keep team/** last=10 age=30d pulled=14d tags=pr-*,tmp
collect every=1m
upstream hub/ docker.io fresh=5m
metrics on
`)
	s, err := ReadSettings(dir + "/good")
	if err != nil {
		t.Fatal(err)
	}
	o := s.Options
	if s.Addr != "127.0.0.1:5000" || s.Dir != dir+"/my registry" || o.Htpasswd != dir+"/users" || len(o.Rules) != 3 || o.Tokens == nil || !o.Delete || !o.Metrics ||
		o.Quotas[0].Bytes != 10<<30 || o.Keep[0].Age != 30*24*time.Hour || o.Collect.Every != time.Minute || o.Upstreams[0] != (Upstream{"hub/", "docker.io", 5 * time.Minute}) || o.Rules[2].Rights != Pull|Push|Delete {
		t.Errorf("%+v", s)
	}
	writeFile(t, dir+"/bad", "listen 5000\nnonsense x\n\nallow ** anyone fly\nquota a lots\nkeep a last=x\ntls a b\nlisten :1\ndir \"x\nupstream Hub docker.io\ncollect every=soon\nhtpasswd none\n")
	_, err = ReadSettings(dir + "/bad")
	for _, line := range []string{"1", "2", "4", "5", "6", "7", "8", "9", "10", "11", "12"} {
		if err == nil || !strings.Contains(err.Error(), dir+"/bad:"+line+": ") {
			t.Errorf("line %s: %v", line, err)
		}
	}
	if strings.Contains(err.Error(), "/bad:3:") {
		t.Error(err)
	}
	for _, text := range []string{"allow ** users pull", "tokens", "allow ** anyone", "allow ** anyone pull users", "allow x** anyone pull", "connections 0", "delete yes", "keep a tags=x", "immutable"} {
		if _, err := parseSettings("f", dir, text); err == nil || !strings.Contains(err.Error(), "f:1: ") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("allow ** anyone pull\nkeep x last=1\n\"a\\n\" b")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSettings("f", "/nonexistent", text)
		for _, r := range s.Options.Rules {
			if err == nil && (checkPattern(r.Repos) != nil || r.Rights == 0) {
				t.Errorf("%+v", r)
			}
		}
	})
}

func TestWellbeing(t *testing.T) {
	m := newMemory()
	h := NewServer(m, ServerOptions{Metrics: true, Htpasswd: users(t, "alice")}).(*server)
	for _, p := range []string{"/healthz", "/readyz"} {
		if w := ask(h, "GET", p, nil); w.Code != 200 || w.Body.String() != "ok\n" {
			t.Error(p, w.Code, w.Body)
		}
	}
	ask(h, "POST", "/v2/x/blobs/uploads/?digest="+string(digest.FromString("abc")), strings.NewReader("abc"), basic("alice"))
	ask(h, "EVIL", "/v2/x/tags/list", nil)
	w := ask(h, "GET", "/metrics", nil)
	for _, want := range []string{"\nkeg_registry_requests_total{resource=\"uploads\",method=\"POST\",status=\"201\"} 1\n", "\nkeg_registry_received_bytes_total 3\n", "method=\"other\"", "request_seconds_bucket{resource=\"uploads\",le=\"+Inf\"} 1\n", "# TYPE keg_registry_request_seconds histogram\n"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %q in\n%s", want, w.Body)
		}
	}
	if strings.Contains(w.Body.String(), "EVIL") {
		t.Error("a client's word became a label")
	}
	h.leaving.Store(true)
	if w := ask(h, "GET", "/readyz", nil); w.Code != 503 {
		t.Error(w.Code)
	}
	if w := ask(h, "GET", "/healthz", nil); w.Code != 200 {
		t.Error(w.Code)
	}
	if w := ask(NewServer(m, ServerOptions{}), "GET", "/metrics", nil); w.Code != 404 {
		t.Error("figures for everybody:", w.Code)
	}
	var log bytes.Buffer
	if w := ask(NewServer(nil, ServerOptions{Log: &log}), "GET", "/healthz", nil); w.Code != 200 {
		t.Error(w.Code)
	}
}
