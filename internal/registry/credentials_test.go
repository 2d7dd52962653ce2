package registry

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keg/internal/fault"
)

func writeConfig(t *testing.T, c *Client, text string) string {
	t.Helper()
	p := filepath.Join(c.cfg.DockerConfig, "config.json")
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStoredReadsWhatToolsHaveWritten(t *testing.T) {
	bob := Credentials{Username: "bob", Password: "s:cret"}
	const auth = `{"auth":"Ym9iOnM6Y3JldA=="}`
	for _, tc := range []struct{ registry, config string }{
		{"docker.io", `{"auths":{"https://index.docker.io/v1/":` + auth + `}}`},
		{"docker.io", `{"auths":{"docker.io":` + auth + `}}`},
		{"r.example:5000", `{"auths":{"r.example:5000":` + auth + `}}`},
		{"r.example", `{"auths":{"https://r.example/v1/":` + auth + `}}`},
		{"r.example", `{"auths":{"r.example/team":{"auth":"eDp5"},"http://r.example":` + auth + `}}`},
		{"r.example", `{"auths":{"r.example":{"username":"bob","password":"s:cret"}}}`},
	} {
		c := testClient(t)
		writeConfig(t, c, tc.config)
		if got, err := c.Stored(t.Context(), tc.registry); err != nil || got != bob {
			t.Errorf("%s in %s: %#v, %v", tc.registry, tc.config, got, err)
		}
		if got, err := c.Stored(t.Context(), "other.example"); err != nil || got != (Credentials{}) {
			t.Errorf("other: %#v, %v", got, err)
		}
	}
	for _, broken := range []string{"{", "[]", `{"auths":[]}`, `{"auths":{"r.example":{"auth":"!secret!"}}}`, `{"auths":{"r.example":{"auth":"c2VjcmV0"}}}`} {
		c := testClient(t)
		path := writeConfig(t, c, broken)
		if _, err := c.Stored(t.Context(), "r.example"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", broken, err)
		}
	}
	c := NewClient(Config{SystemDir: t.TempDir()}) // no home: nothing is read
	if got, err := c.Stored(t.Context(), "r.example"); err != nil || got != (Credentials{}) {
		t.Error(got, err)
	}
	if err := c.save(t.Context(), "r.example", bob); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

func TestSaveKeepsWhatItDoesNotKnow(t *testing.T) {
	c := testClient(t)
	real := filepath.Join(t.TempDir(), "dotfiles.json")
	os.WriteFile(real, []byte(`{"auths":{"other.example":{"auth":"eDp5","email":"x@y"}},"currentContext":"far","psFormat":"{{.ID}}"}`), 0o644)
	link := filepath.Join(c.cfg.DockerConfig, "config.json")
	os.Symlink(real, link)
	if err := c.save(t.Context(), "r.example", Credentials{Username: "bob", Password: "pw"}); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	b, _ := os.ReadFile(real)
	if err := json.Unmarshal(b, &got); err != nil || got["currentContext"] != "far" || got["psFormat"] != "{{.ID}}" {
		t.Errorf("%s, %v", b, err)
	}
	if s := fmt.Sprint(got["auths"]); !strings.Contains(s, "x@y") || !strings.Contains(s, "Ym9iOnB3") {
		t.Error(s)
	}
	st, _ := os.Stat(real)
	if l, _ := os.Lstat(link); st.Mode().Perm() != 0o600 || l.Mode()&os.ModeSymlink == 0 {
		t.Error(st.Mode(), l.Mode())
	}
	if err := c.Logout(t.Context(), "https://r.example/v1/"); err != nil {
		t.Error(err)
	}
	if b, _ = os.ReadFile(real); strings.Contains(string(b), "r.example\"") && !strings.Contains(string(b), "other.example") {
		t.Errorf("%s", b)
	}
	if cr, _ := c.Stored(t.Context(), "r.example"); cr != (Credentials{}) {
		t.Error("still logged in")
	}
	if err := c.Logout(t.Context(), "r.example"); !fault.Is(err, fault.NotModified) || err.Error() != "Not logged in to r.example" {
		t.Error(err)
	}
}

// helper is a program that keeps one record in a file and everything it was told in another.
const helper = `#!/bin/sh
dir=$(dirname "$0"); echo "$# $1" >> $dir/calls
case $1 in
store) cat > $dir/record ;;
get) read url; [ -e $dir/record ] && grep -q "$url" $dir/record && cat $dir/record || { echo credentials not found in native keychain; exit 1; } ;;
erase) rm $dir/record ;;
esac
`

func TestCredentialHelpers(t *testing.T) {
	bin := t.TempDir()
	os.WriteFile(filepath.Join(bin, "docker-credential-keep"), []byte(helper), 0o700)
	c := testClient(t, func(c *Config) { c.Env["PATH"] = bin + ":/usr/bin:/bin" })
	config := writeConfig(t, c, `{"credsStore":"keep","credHelpers":{"none.example":"missing"}}`)
	for _, cr := range []Credentials{{Username: "bob", Password: "pw"}, {Username: "bob", IdentityToken: "tok"}} {
		if err := c.save(t.Context(), "docker.io", cr); err != nil {
			t.Fatal(err)
		}
		want := cr
		if cr.IdentityToken != "" {
			want.Username = "" // helpers keep one of the two
		}
		if got, err := c.Stored(t.Context(), "docker.io"); err != nil || got != want {
			t.Errorf("%#v, %v", got, err)
		}
	}
	if got, err := c.Stored(t.Context(), "r.example"); err != nil || got != (Credentials{}) {
		t.Error(got, err)
	}
	if b, _ := os.ReadFile(config); strings.Contains(string(b), "auth\"") {
		t.Errorf("secrets in the file: %s", b)
	}
	if err := c.Logout(t.Context(), "docker.io"); err != nil {
		t.Error(err)
	}
	calls, _ := os.ReadFile(filepath.Join(bin, "calls"))
	for line := range strings.Lines(string(calls)) {
		if !strings.HasPrefix(line, "1 ") {
			t.Errorf("helper was called with %s arguments", line)
		}
	}
	if _, err := c.Stored(t.Context(), "none.example"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "docker-credential-missing is not in PATH") {
		t.Error(err)
	}
}

// RC5: a helper in the current directory, or with a path for a name, is not run.
func TestTrojanHelpersAreNotRun(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	os.WriteFile("docker-credential-x", []byte("#!/bin/sh\ntouch ran\necho '{}'\n"), 0o700)
	for _, path := range []string{"", ".", ":", "./", "bin:."} {
		for _, name := range []string{"x", "../x", "./x", dir + "/x"} {
			c := testClient(t, func(c *Config) { c.Env["PATH"] = path })
			writeConfig(t, c, `{"credsStore":"`+name+`"}`)
			if _, err := c.Stored(t.Context(), "r.example"); err == nil {
				t.Errorf("PATH %q, helper %q: no error", path, name)
			}
		}
	}
	if _, err := os.Stat("ran"); err == nil {
		t.Error("a trojan ran")
	}
}

func TestCredentialsArePrintedWithoutSecrets(t *testing.T) {
	cr := Credentials{"bob", "secret", "secret"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, cr); strings.Contains(s, "secret") {
			t.Errorf("%s: %s", format, s)
		}
	}
}
