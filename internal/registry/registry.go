// Package registry speaks OCI distribution, both ends: a client that pulls and pushes,
// and a server. Storage is an interface here; the engine and the command line plug
// the store in.
package registry

import (
	"context"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
)

// Config is what a client knows of the world. The zero value reads ~/.docker/config.json,
// /etc/containers/registries.conf, /etc/docker/certs.d and the proxy environment given.
type Config struct {
	DockerConfig string            // directory; "" = ~/.docker
	Env          map[string]string // HTTP_PROXY and friends, HOME, PATH for credential helpers
	UserAgent    string
	Insecure     []string // registries allowed over plain HTTP beside loopback
}

// Client talks to registries.
type Client struct{ cfg Config }

// NewClient makes a client; files are read when first needed.
func NewClient(c Config) *Client { return &Client{c} }

// Resolve returns the descriptor that ref points at, by HEAD, else GET. A missing image is
// fault.NotFound, or Denied with the registry's answer and whether logging in could help.
func (c *Client) Resolve(ctx context.Context, ref image.Reference) (image.Descriptor, error) {
	panic("unwritten")
}

// Manifest fetches and verifies the document d of ref's repository.
func (c *Client) Manifest(ctx context.Context, ref image.Reference, d image.Descriptor) ([]byte, error) {
	panic("unwritten")
}

// Blob opens a blob at offset. The reader retries and resumes by Range by itself; the bytes are not
// verified here but by the writer they go to. got is the real offset (0 when the
// server does not do ranges).
func (c *Client) Blob(ctx context.Context, ref image.Reference, d image.Descriptor, offset int64) (r io.ReadCloser, got int64, err error) {
	panic("unwritten")
}

// HasBlob asks whether the repository has the blob.
func (c *Client) HasBlob(ctx context.Context, ref image.Reference, d digest.Digest) (bool, error) {
	panic("unwritten")
}

// MountBlob tries a cross-repository mount from another repository of the same registry.
func (c *Client) MountBlob(ctx context.Context, ref image.Reference, d digest.Digest, from string) (bool, error) {
	panic("unwritten")
}

// PushBlob uploads; open is called again for a retry.
func (c *Client) PushBlob(ctx context.Context, ref image.Reference, d image.Descriptor, open func() (io.ReadCloser, error), progress func(int64)) error {
	panic("unwritten")
}

// PushManifest puts the document under ref (tag, or its digest).
func (c *Client) PushManifest(ctx context.Context, ref image.Reference, mediaType string, doc []byte) (digest.Digest, error) {
	panic("unwritten")
}

// Tags lists the tags of a repository.
func (c *Client) Tags(ctx context.Context, ref image.Reference) ([]string, error) { panic("unwritten") }

// Credentials of one registry.
type Credentials struct{ Username, Password, IdentityToken string }

// Login checks the credentials with the registry ("docker.io" for Docker Hub) and saves them as
// Docker does; it returns the sentence of the server, if any. Logout forgets them.
func (c *Client) Login(ctx context.Context, registry string, cr Credentials) (string, error) {
	panic("unwritten")
}
func (c *Client) Logout(ctx context.Context, registry string) error { panic("unwritten") }

// Stored returns what is saved for a registry.
func (c *Client) Stored(ctx context.Context, registry string) (Credentials, error) {
	panic("unwritten")
}

// ServerOptions configure a server; the zero value is open to all on plain HTTP.
type ServerOptions struct {
	Htpasswd string
	ReadOnly bool
	Delete   bool
	Log      io.Writer
}

// NewServer returns the handler of a registry over a directory of its own.
func NewServer(s Storage, o ServerOptions) http.Handler { panic("unwritten") }

// Storage is what the server needs from a store. (The owner of this package shapes it.)
type Storage interface{}
