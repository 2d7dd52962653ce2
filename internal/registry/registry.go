// Package registry speaks OCI distribution, both ends: a client that pulls and pushes,
// and a server. Storage is an interface here; the engine and the command line plug
// the store in.
//
// Client: client.go (what callers use), endpoint.go (where a name's registry is, and over what it
// is spoken to), request.go (one request: log in, wait, try again), token.go and credentials.go
// (who we are), mirrors.go and certs.go (what the host's files say), download.go and
// upload.go (bytes), failure.go (words).
//
// Server: storage.go (what it stands on), server.go (routes, access), one file for each resource, serve.go.
package registry
