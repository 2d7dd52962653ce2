// An endpoint is one host and how it is spoken to: scheme, certificates, proxy, and the
// tokens it gave us.

package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"keg/internal/image"
	"keg/internal/weakness"
)

type endpoint struct {
	c        *Client
	host     string // as in references: "docker.io", "localhost:5000"
	insecure bool   // plain HTTP or an unknown certificate will do

	connect func() (http.RoundTripper, error) // once

	mu     sync.Mutex // held while the scheme is found out
	scheme string     // "" until known

	auth authState
}

// hubHost is where docker.io's registry answers.
const hubHost = "registry-1.docker.io"

func newEndpoint(c *Client, host string, insecure bool) *endpoint {
	ep := &endpoint{c: c, host: host}
	ep.insecure = insecure || isLoopback(hostname(host)) || slices.Contains(c.cfg.Insecure, host)
	ep.connect = sync.OnceValues(func() (http.RoundTripper, error) { return newTransport(c, host, ep.insecure) })
	return ep
}

// dialHost is the host in URLs.
func (ep *endpoint) dialHost() string {
	if ep.host == image.DefaultRegistry {
		return hubHost
	}
	return ep.host
}

func hostname(hostport string) string {
	u := url.URL{Host: hostport}
	return u.Hostname()
}

// isLoopback takes names literally: what DNS says today is no ground for trust.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func newTransport(c *Client, host string, insecure bool) (http.RoundTripper, error) {
	cfg, err := tlsConfig(c.cfg.SystemDir, host)
	if err != nil {
		return nil, err
	}
	// As Docker does: an insecure registry may show any certificate, unless the host
	// says which one it should be.
	cfg.InsecureSkipVerify = insecure && cfg.RootCAs == nil || weakness.Of("RC4")
	proxy := proxyFrom(c.cfg.Env)
	return &http.Transport{
		Proxy:                  func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:        cfg,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  5 * time.Minute, // of an upload, while the registry hashes
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    16,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // digests are of the bytes on the wire
		MaxResponseHeaderBytes: 256 << 10,
	}, nil
}

// proxyFrom reads the proxy variables of an environment, in either case; loopback is
// never proxied.
func proxyFrom(env map[string]string) func(*url.URL) (*url.URL, error) {
	get := func(name string) string {
		if v := env[name]; v != "" {
			return v
		}
		return env[strings.ToLower(name)]
	}
	cfg := httpproxy.Config{HTTPProxy: get("HTTP_PROXY"), HTTPSProxy: get("HTTPS_PROXY"), NoProxy: get("NO_PROXY")}
	return cfg.ProxyFunc()
}

// base returns the root of the endpoint's URLs. HTTPS it is, unless an insecure registry does
// not speak it.
func (ep *endpoint) base(ctx context.Context) (*url.URL, error) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if ep.scheme == "" {
		scheme := "https"
		if ep.insecure {
			var err error
			if scheme, err = ep.probe(ctx); err != nil {
				return nil, err
			}
		}
		ep.scheme = scheme
	}
	return &url.URL{Scheme: ep.scheme, Host: ep.dialHost()}, nil
}

// probe asks for /v2/ over HTTPS, then over HTTP, without any credential. Any answer
// decides.
func (ep *endpoint) probe(ctx context.Context) (string, error) {
	tr, err := ep.connect()
	if err != nil {
		return "", err
	}
	for _, scheme := range []string{"https", "http"} {
		ctx, cancel := context.WithTimeout(ctx, ep.c.patient.stall)
		defer cancel()
		req, reqErr := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+ep.dialHost()+"/v2/", nil)
		if reqErr != nil {
			return "", reqErr
		}
		req.Header.Set("User-Agent", ep.c.cfg.UserAgent)
		var resp *http.Response
		if resp, err = tr.RoundTrip(req); err == nil {
			resp.Body.Close()
			return scheme, nil
		}
		// A certificate that the host's own CA did not sign is not a reason to whisper in
		// the clear.
		var wrong *tls.CertificateVerificationError
		if errors.As(err, &wrong) {
			break
		}
	}
	return "", &transportError{ep.unreachable(err)}
}

// sameOrigin reports whether a URL may be sent what belongs to base.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && portOf(a) == portOf(b)
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}
