package registry

import (
	"cmp"
	"context"
	"sync"
	"time"

	"keg/internal/image"
)

// Config is what a client knows of the world. The zero value reads ~/.docker/config.json,
// /etc/containers/registries.conf, /etc/docker/certs.d and the proxy environment given.
type Config struct {
	DockerConfig string            // directory; "" = $DOCKER_CONFIG, else $HOME/.docker (both of Env), else none
	Env          map[string]string // HTTP_PROXY and friends, HOME, PATH for credential helpers
	UserAgent    string
	Accounts     []Account // to use with their registries in place of saved credentials
	Ask          Ask       // for what Accounts does not have, before saved credentials; nil: nobody
	Insecure     []string  // registries allowed over plain HTTP beside loopback
	SystemDir    string    // "" = /etc

	Backoff time.Duration // before a request is tried again, at first; 0 = a quarter of a second
	Stall   time.Duration // how long nothing may come; 0 = 20 seconds
}

// Client talks to registries. It may be used by many goroutines at once.
type Client struct {
	cfg     Config
	patient patience

	mirrors func() (*mirrorTable, error) // registries.conf, read once

	mu        sync.Mutex
	endpoints map[endpointKey]*endpoint
	confirmed map[string]string // registry -> token service, during a login
}

// patience is how long the client waits, and how often it tries again.
type patience struct {
	attempts int           // of one request, or of a blob without progress
	backoff  time.Duration // before the second attempt; doubles
	longest  time.Duration // that a registry may ask us to wait
	stall    time.Duration // without a header, or without enough bytes of a body
}

// NewClient makes a client; files are read when first needed.
func NewClient(c Config) *Client {
	if c.SystemDir == "" {
		c.SystemDir = "/etc"
	}
	if c.UserAgent == "" {
		c.UserAgent = "keg"
	}
	return &Client{
		cfg:       c,
		patient:   patience{attempts: 6, backoff: cmp.Or(c.Backoff, 250*time.Millisecond), longest: time.Minute, stall: cmp.Or(c.Stall, 20*time.Second)},
		endpoints: map[endpointKey]*endpoint{},
		mirrors:   sync.OnceValues(func() (*mirrorTable, error) { return readMirrors(c) }),
	}
}

// endpointKey: a host that one file trusts to go without TLS is another endpoint where
// nothing says so.
type endpointKey struct {
	host     string
	insecure bool
}

// endpoint returns the one endpoint for a host, so that tokens and connections are shared.
func (c *Client) endpoint(host string, insecure bool) *endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := endpointKey{host, insecure}
	if ep := c.endpoints[key]; ep != nil {
		return ep
	}
	ep := newEndpoint(c, host, insecure)
	c.endpoints[key] = ep
	return ep
}

// forgetTokens makes the next request to a host begin anew, with other credentials.
func (c *Client) forgetTokens(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.endpoints, endpointKey{host, true})
	delete(c.endpoints, endpointKey{host, false})
}

// place is a repository at an endpoint.
type place struct {
	*endpoint
	repo string
}

func (p place) path(rest string) string { return "/v2/" + p.repo + rest }

// home is the registry that a reference names: where pushes go, and where pulls end up
// when no mirror has it.
func (c *Client) home(ref image.Reference) (place, error) {
	places, err := c.places(ref, true)
	if err != nil {
		return place{}, err
	}
	return places[len(places)-1], nil
}

// places lists where ref may be pulled from, mirrors first. pinned tells that it is asked
// for by digest, which some mirrors are limited to.
func (c *Client) places(ref image.Reference, pinned bool) ([]place, error) {
	table, err := c.mirrors()
	if err != nil {
		return nil, err
	}
	locs, err := table.locate(ref.Name(), pinned)
	if err != nil {
		return nil, err
	}
	places := make([]place, len(locs))
	for i, l := range locs {
		places[i] = place{c.endpoint(l.host, l.insecure), l.repo}
	}
	return places, nil
}

// try asks each place until one answers; what the last one, ref's own registry, said is the
// error.
func (c *Client) try(ref image.Reference, pinned bool, ask func(place) error) error {
	places, err := c.places(ref, pinned)
	if err != nil {
		return err
	}
	for _, p := range places {
		if err = ask(p); err == nil {
			return nil
		}
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
