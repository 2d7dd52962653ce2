// Where credentials are kept: config.json as Docker writes it, and its credential helpers.

package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/weakness"
)

// Credentials of one registry.
type Credentials struct{ Username, Password, IdentityToken string }

// Ask tells the account at a registry ("docker.io" for Docker Hub); empty credentials: none.
type Ask func(ctx context.Context, registry string) (Credentials, error)

// String hides the secrets, wherever credentials are printed by accident.
// Account is who somebody is at one registry; no other one learns of it.
type Account struct {
	Registry string
	Credentials
}

func (c Credentials) String() string   { return fmt.Sprintf("{%s ***}", c.Username) }
func (c Credentials) GoString() string { return c.String() }

// hubKey is Docker Hub's name in config.json.
const hubKey = "https://index.docker.io/v1/"

func configKey(registry string) string {
	if registry == image.DefaultRegistry || registry == "" {
		return hubKey
	}
	return registry
}

// dockerConfig is config.json; what we do not know in it is kept.
type dockerConfig struct {
	path        string
	fields      map[string]json.RawMessage
	auths       map[string]map[string]json.RawMessage
	credsStore  string
	credHelpers map[string]string
}

// dir is "" when there is neither a configured directory nor a home.
func (c Config) dir() string {
	switch {
	case c.DockerConfig != "":
		return c.DockerConfig
	case c.Env["DOCKER_CONFIG"] != "":
		return c.Env["DOCKER_CONFIG"]
	case c.Env["HOME"] != "":
		return filepath.Join(c.Env["HOME"], ".docker")
	}
	return ""
}

func readDockerConfig(c Config) (*dockerConfig, error) {
	d := &dockerConfig{fields: map[string]json.RawMessage{}, auths: map[string]map[string]json.RawMessage{}}
	dir := c.dir()
	if dir == "" {
		return d, nil
	}
	d.path = filepath.Join(dir, "config.json")
	b, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || err == nil && len(bytes.TrimSpace(b)) == 0 {
		return d, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	err = json.Unmarshal(b, &d.fields)
	for field, v := range map[string]any{"auths": &d.auths, "credsStore": &d.credsStore, "credHelpers": &d.credHelpers} {
		if raw, ok := d.fields[field]; ok && err == nil {
			err = json.Unmarshal(raw, v)
		}
	}
	if err != nil {
		return nil, fault.Invalidf("%s is not a config file of Docker's: %w", d.path, err)
	}
	if d.fields == nil {
		d.fields = map[string]json.RawMessage{}
	}
	if d.auths == nil {
		d.auths = map[string]map[string]json.RawMessage{}
	}
	return d, nil
}

// keysFor lists the keys of auths that mean a registry: tools have written it with and
// without a scheme and a path. The exact one comes first.
func (d *dockerConfig) keysFor(registry string) (keys []string) {
	want := configKey(registry)
	for k := range d.auths {
		if k == want || want != hubKey && bareHost(k) == registry ||
			want == hubKey && slices.Contains([]string{"docker.io", "index.docker.io", "registry-1.docker.io"}, bareHost(k)) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		if (a == want) != (b == want) {
			if a == want {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return keys
}

// bareHost is "r.example:5000" of "https://r.example:5000/v1/".
func bareHost(key string) string {
	_, rest, ok := strings.Cut(key, "://")
	if !ok {
		rest = key
	}
	host, path, _ := strings.Cut(rest, "/")
	if !ok && path != "" && path != "v1/" && path != "v2/" {
		return key // an account of one repository, for other tools
	}
	return host
}

// helper is the credential helper for a registry, "" for the file itself.
func (d *dockerConfig) helper(registry string) string {
	for _, k := range []string{registry, configKey(registry)} {
		if h := d.credHelpers[k]; h != "" {
			return h
		}
	}
	return d.credsStore
}

// Stored returns what is saved for a registry; the zero value when nothing is.
func (c *Client) Stored(ctx context.Context, registry string) (Credentials, error) {
	for _, a := range c.cfg.Accounts {
		if canonical(a.Registry) == canonical(registry) {
			return a.Credentials, nil
		}
	}
	if c.cfg.Ask != nil {
		if cr, err := c.cfg.Ask(ctx, canonical(registry)); err != nil || cr != (Credentials{}) {
			return cr, err
		}
	}
	d, err := readDockerConfig(c.cfg)
	if err != nil {
		return Credentials{}, err
	}
	if h := d.helper(registry); h != "" {
		cr, err := c.askHelper(ctx, h, configKey(registry))
		if err != nil || cr != (Credentials{}) {
			return cr, err
		}
	}
	for _, k := range d.keysFor(registry) {
		cr, err := decodeAuth(d.auths[k])
		if err != nil {
			return Credentials{}, fault.Invalidf("%s: account of %s: %w", d.path, k, err)
		}
		if cr != (Credentials{}) {
			return cr, nil
		}
	}
	return Credentials{}, nil
}

func decodeAuth(entry map[string]json.RawMessage) (cr Credentials, err error) {
	var auth string
	for field, v := range map[string]*string{"auth": &auth, "username": &cr.Username, "password": &cr.Password, "identitytoken": &cr.IdentityToken} {
		if raw, ok := entry[field]; ok {
			if err := json.Unmarshal(raw, v); err != nil {
				return cr, err
			}
		}
	}
	if auth != "" {
		plain, err := base64.StdEncoding.DecodeString(auth)
		if err != nil {
			return cr, errors.New("auth is not base64") // whose own error would quote it
		}
		user, password, ok := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		if !ok {
			return cr, errors.New("auth has no password")
		}
		cr.Username, cr.Password = user, password
	}
	return cr, nil
}

// save writes credentials as Docker does: to the helper when there is one, else to the file.
func (c *Client) save(ctx context.Context, registry string, cr Credentials) error {
	return c.editConfig(ctx, func(d *dockerConfig) error {
		key := configKey(registry)
		for _, k := range d.keysFor(registry) {
			delete(d.auths, k)
		}
		d.auths[key] = map[string]json.RawMessage{}
		if h := d.helper(registry); h != "" {
			return c.tellHelper(ctx, h, key, cr)
		}
		auth := base64.StdEncoding.EncodeToString([]byte(cr.Username + ":" + cr.Password))
		if cr.IdentityToken != "" {
			auth = base64.StdEncoding.EncodeToString([]byte(cr.Username + ":"))
			d.auths[key]["identitytoken"] = quote(cr.IdentityToken)
		}
		d.auths[key]["auth"] = quote(auth)
		return nil
	})
}

// forget removes what is saved; false when nothing was.
func (c *Client) forget(ctx context.Context, registry string) (found bool, err error) {
	err = c.editConfig(ctx, func(d *dockerConfig) error {
		for _, k := range d.keysFor(registry) {
			found = true
			delete(d.auths, k)
		}
		h := d.helper(registry)
		if h == "" {
			return nil
		}
		if cr, err := c.askHelper(ctx, h, configKey(registry)); err != nil || cr == (Credentials{}) {
			return err
		}
		found = true
		_, err := c.runHelper(ctx, h, "erase", configKey(registry))
		return err
	})
	return found, err
}

// editConfig rewrites config.json, 0600, one process at a time.
func (c *Client) editConfig(ctx context.Context, edit func(*dockerConfig) error) error {
	dir := c.cfg.dir()
	if dir == "" {
		return fault.Unavailablef("credentials have no place: neither HOME nor DOCKER_CONFIG is set")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, err := disk.LockFile(ctx, filepath.Join(dir, ".config.json.lock"))
	if err != nil {
		return err
	}
	defer lock.Unlock()
	d, err := readDockerConfig(c.cfg)
	if err != nil {
		return err
	}
	before, _ := json.Marshal(d.auths)
	if err := edit(d); err != nil {
		return err
	}
	after, err := json.Marshal(d.auths)
	if err != nil || bytes.Equal(before, after) {
		return err
	}
	d.fields["auths"] = after
	b, err := json.MarshalIndent(d.fields, "", "\t")
	if err != nil {
		return err
	}
	path := d.path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // people link it to their dotfiles
	}
	return disk.Put(path, b, 0o600)
}

func quote(s string) json.RawMessage {
	b, _ := json.Marshal(s)
	return b
}

// ---- credential helpers (docker/docker-credential-helpers): "docker-credential-<name> get|
// store|erase", JSON on standard input and output, so nothing secret is an argument.

const helperTime = 30 * time.Second

// tokenUser is the user name that marks a secret as an identity token.
const tokenUser = "<token>"

type helperRecord struct {
	ServerURL string
	Username  string
	Secret    string
}

func (c *Client) askHelper(ctx context.Context, name, key string) (Credentials, error) {
	out, err := c.runHelper(ctx, name, "get", key)
	if err != nil {
		if strings.Contains(err.Error(), "credentials not found") {
			return Credentials{}, nil
		}
		return Credentials{}, err
	}
	var r helperRecord
	if err := json.Unmarshal(out, &r); err != nil {
		return Credentials{}, fault.Unavailablef("credential helper docker-credential-%s: answer is not JSON", name)
	}
	if r.Username == tokenUser {
		return Credentials{IdentityToken: r.Secret}, nil
	}
	return Credentials{Username: r.Username, Password: r.Secret}, nil
}

func (c *Client) tellHelper(ctx context.Context, name, key string, cr Credentials) error {
	r := helperRecord{key, cr.Username, cr.Password}
	if cr.IdentityToken != "" {
		r.Username, r.Secret = tokenUser, cr.IdentityToken
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = c.runHelper(ctx, name, "store", string(b))
	return err
}

func (c *Client) runHelper(ctx context.Context, name, verb, input string) ([]byte, error) {
	program, err := c.findHelper(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, verb)
	cmd.Stdin = strings.NewReader(input)
	for k, v := range c.cfg.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would be our own
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		// Helpers tell what is wrong on standard output.
		said := printable(stdout.String() + " " + stderr.String())
		return nil, fault.Unavailablef("credential helper %s %s: %w: %s", program, verb, err, said)
	}
	return stdout.Bytes(), nil
}

// findHelper looks only in absolute directories of PATH: the current directory is anybody's
// (security.md RC5).
func (c *Client) findHelper(name string) (string, error) {
	if name == "" || strings.ContainsAny(name, "/\\\x00") || name[0] == '.' {
		return "", fault.Invalidf("credential helper %q is not the name of a program", name)
	}
	program := "docker-credential-" + name
	for _, dir := range filepath.SplitList(c.cfg.Env["PATH"]) {
		if weakness.Of("RC5") {
			dir, _ = filepath.Abs(dir)
		}
		if !filepath.IsAbs(dir) {
			continue
		}
		p := filepath.Join(dir, program)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fault.Unavailablef("credential helper %s is not in PATH", program)
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}
