package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
)

// Login checks the credentials with the registry ("docker.io" for Docker Hub) and saves them as
// Docker does; it returns Docker's sentence. Logout forgets them; fault.NotModified when there
// was nothing to forget.
func (c *Client) Login(ctx context.Context, registry string, cr Credentials) (string, error) {
	registry = canonical(registry)
	home, pin, err := c.check(ctx, registry, &cr)
	if err != nil {
		return "", err
	}
	if err := c.save(ctx, registry, cr); err != nil {
		return "", err
	}
	if err := c.pinRealm(registry, pin); err != nil {
		return "", err
	}
	c.forgetTokens(home)
	return "Login Succeeded", nil
}

// Check is Login without saving anything. It returns what to use from now on: an identity
// token in place of the password when the registry gives one.
func (c *Client) Check(ctx context.Context, registry string, cr Credentials) (Credentials, error) {
	_, _, err := c.check(ctx, canonical(registry), &cr)
	return cr, err
}

func (c *Client) check(ctx context.Context, registry string, cr *Credentials) (host, pin string, err error) {
	home, err := c.home(image.Reference{Registry: registry, Repository: "x"})
	if err != nil {
		return "", "", err
	}
	ep := newEndpoint(c, home.host, home.insecure) // knows no older account
	ep.auth.asked, ep.auth.creds = true, *cr
	if pin, err = c.checkLogin(ctx, ep, cr); err != nil {
		return "", "", loginError(registry, ep, err)
	}
	return home.host, pin, nil
}

// checkLogin asks for /v2/ and answers its challenge. Who logs in has named this registry, so
// the token service that it names is confirmed by the same act; realm is what to remember.
// cr is changed to an identity token when the service gives one.
func (c *Client) checkLogin(ctx context.Context, ep *endpoint, cr *Credentials) (realm string, err error) {
	ping := call{method: http.MethodGet, path: "/v2/", want: []int{http.StatusOK, http.StatusUnauthorized}}
	target, root, err := ep.target(ctx, ping)
	if err != nil {
		return "", err
	}
	resp, err := ep.follow(ctx, ping, target, "", root)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return "", nil // open to all
	}
	if resp.StatusCode != http.StatusUnauthorized || !sameOrigin(resp.Request.URL, root) {
		return "", fault.Unavailablef("registry %s answers with status %d where a login is checked", ep.name(), resp.StatusCode)
	}
	a := &ep.auth
	a.challenge = pick(parseChallenges(resp.Header.Values("WWW-Authenticate")))
	var auth string
	switch a.challenge.scheme {
	case "basic":
		auth = basicAuth(*cr)
	case "bearer":
		u, err := a.realm(ctx, ep)
		if err != nil {
			return "", err
		}
		if !c.trusts(ep, u) {
			realm = u.Scheme + "://" + u.Host
			c.confirm(ep.host, realm)
			defer c.unconfirm(ep.host)
		}
		t, refresh, err := a.fetch(ctx, ep, nil, *cr, true)
		if err != nil {
			return "", err
		}
		if refresh != "" && cr.IdentityToken == "" {
			cr.IdentityToken, cr.Password = refresh, ""
		}
		auth = "Bearer " + t.value
	default:
		return "", fault.Unsupportedf("registry %s asks for a login in a way that is not known here", ep.name())
	}
	resp, err = ep.follow(ctx, ping, target, auth, root)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", newRefusal(ep, resp)
	}
	return realm, resp.Body.Close()
}

func loginError(registry string, ep *endpoint, err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	if r.denied() {
		where := "https://" + ep.dialHost() + "/v2/"
		return fault.Errorf(fault.Unauthorized, "login attempt to %s failed: unauthorized: incorrect username or password (%w)", where, r)
	}
	return r.other("log in to " + registry)
}

// Logout forgets the credentials.
func (c *Client) Logout(ctx context.Context, registry string) error {
	registry = canonical(registry)
	found, err := c.forget(ctx, registry)
	if err != nil {
		return err
	}
	if err := c.pinRealm(registry, ""); err != nil {
		return err
	}
	c.forgetTokens(registry)
	if !found {
		return fault.Errorf(fault.NotModified, "Not logged in to %s", registry)
	}
	return nil
}

// canonical is the registry's name in references, of what people type.
func canonical(registry string) string {
	h := bareHost(registry)
	switch h {
	case "", "index.docker.io", "registry-1.docker.io":
		return image.DefaultRegistry
	}
	return h
}

// ---- realms: which token service a login has confirmed for a registry, where that is not
// plain from their names. A file of ours beside config.json, since Docker drops what it
// does not know.

const realmsFile = "keg-realms.json"

func (c *Client) readRealms() map[string]string {
	realms := map[string]string{}
	if dir := c.cfg.dir(); dir != "" {
		if b, err := os.ReadFile(filepath.Join(dir, realmsFile)); err == nil {
			_ = json.Unmarshal(b, &realms) // a file that cannot be read confirms nothing
		}
	}
	return realms
}

func (c *Client) pinnedRealm(registry string) string {
	c.mu.Lock()
	realm, ok := c.confirmed[registry]
	c.mu.Unlock()
	if ok {
		return realm
	}
	return c.readRealms()[registry]
}

func (c *Client) confirm(registry, realm string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.confirmed == nil {
		c.confirmed = map[string]string{}
	}
	c.confirmed[registry] = realm
}

func (c *Client) unconfirm(registry string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.confirmed, registry)
}

// pinRealm remembers a realm, or with "" forgets it.
func (c *Client) pinRealm(registry, realm string) error {
	realms := c.readRealms()
	if realms[registry] == realm {
		return nil
	}
	if realm == "" {
		delete(realms, registry)
	} else {
		realms[registry] = realm
	}
	dir := c.cfg.dir()
	if dir == "" {
		return nil
	}
	return disk.PutJSON(filepath.Join(dir, realmsFile), realms)
}
