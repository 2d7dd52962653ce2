package api

// Where the server listens: Unix sockets, inherited ones, TCP with mutual TLS only.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

// TLS are the files of mutual TLS; all three are needed for TCP.
type TLS struct{ CA, Cert, Key string }

func (t TLS) complete() bool { return t.CA != "" && t.Cert != "" && t.Key != "" }

// ListenOptions say who may reach a socket.
type ListenOptions struct {
	Group string // of Unix sockets: name or number; "": the server's own
	TLS   TLS
	Env   map[string]string // LISTEN_FDS and LISTEN_PID of socket activation
}

// Listen opens one address: unix:///path, /path, fd://, tcp://host:port.
func Listen(addr string, o ListenOptions) ([]net.Listener, error) {
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok {
		scheme, rest = "unix", addr
	}
	switch scheme {
	case "unix":
		ln, err := listenUnix(rest, o.Group)
		return []net.Listener{ln}, err
	case "fd":
		return inherited(o.Env)
	case "tcp":
		ln, err := listenTCP(rest, o.TLS)
		return []net.Listener{ln}, err
	}
	return nil, fault.Invalidf("cannot listen on %q: want unix:///path, fd:// or tcp://host:port", addr)
}

// listenUnix makes a socket 0660. One that nobody answers on is a dead server's.
func listenUnix(path, group string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, fault.Invalidf("cannot listen on %q: a socket needs an absolute path", path)
	}
	gid := -1
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return nil, err
		}
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	defer dir.Close()
	// By way of the directory, since a socket's path may have 107 bytes only.
	short := linux.FDPath(int(dir.Fd())) + "/" + filepath.Base(path)
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != os.ModeSocket {
			return nil, fault.Conflictf("cannot listen on %s: there is something that is no socket", path)
		}
		c, err := net.DialTimeout("unix", short, time.Second)
		if err == nil {
			c.Close()
			return nil, fault.Conflictf("cannot listen on %s: another server answers there", path)
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// Nobody else may connect before the mode is right; only this call makes files here.
	old := unix.Umask(0o177)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false) // the short path is no longer valid then
	if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o660)); err != nil {
		ln.Close()
		return nil, err
	}
	return &socket{ln, path}, nil
}

// socket takes its file away when it is closed.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if err == nil {
		_ = os.Remove(s.path)
	}
	return err
}

func groupID(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fault.NotFoundf("group %q does not exist; make it with: groupadd %s", name, name)
	}
	return strconv.Atoi(g.Gid)
}

// firstFD is that of sd_listen_fds(3).
const firstFD = 3

// inherited are the sockets of socket activation.
func inherited(env map[string]string) ([]net.Listener, error) {
	n, err := strconv.Atoi(env["LISTEN_FDS"])
	if err != nil || n < 1 || n > 64 || env["LISTEN_PID"] != strconv.Itoa(os.Getpid()) {
		return nil, fault.Invalidf("no sockets were passed to this process: fd:// is for socket activation (LISTEN_FDS)")
	}
	var lns []net.Listener
	for fd := firstFD; fd < firstFD+n; fd++ {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "socket")
		ln, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("use descriptor %d as a socket: %w", fd, err)
		}
		u, ok := ln.(*net.UnixListener)
		if !ok {
			return nil, fault.Deniedf("descriptor %d is no Unix socket: over TCP keg listens itself, with mutual TLS", fd)
		}
		u.SetUnlinkOnClose(false)
		lns = append(lns, ln)
	}
	return lns, nil
}

// listenTCP demands certificates of both sides: who may talk to this API is root here.
func listenTCP(addr string, t TLS) (net.Listener, error) {
	if !t.complete() && weakness.Of("AP1") {
		return net.Listen("tcp", addr)
	}
	if !t.complete() {
		return nil, fault.Deniedf("refusing to listen on tcp://%s without mutual TLS: whoever reaches the API is root on this machine; give --tlscacert, --tlscert and --tlskey, or use ssh:// or the Unix socket", addr)
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fault.Invalidf("read --tlscert %s and --tlskey %s: %w", t.Cert, t.Key, err)
	}
	ca, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fault.Invalidf("read --tlscacert: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fault.Invalidf("--tlscacert %s holds no certificate", t.CA)
	}
	return tls.Listen("tcp", addr, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, NextProtos: []string{"http/1.1"}})
}

// Limits of one connection.
const (
	headerTime = 30 * time.Second // for the header of a request
	idleTime   = 5 * time.Minute
	headerSize = 64 << 10
	farewell   = 3 * time.Second // for requests under way when the server ends
)

// Serve answers on the listeners until ctx ends.
func (s *Server) Serve(ctx context.Context, lns ...net.Listener) error {
	ended := make(chan error, len(lns))
	srv := &http.Server{Handler: s, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: headerSize,
		ErrorLog:  log.New(s.o.Log, "", 0),
		Protocols: new(http.Protocols), ConnContext: s.controls.opened, ConnState: s.controls.changed}
	// gRPC comes without asking first, too: BuildKit's own client does that. Over TLS the client's certificate is asked
	// for by HTTP/1.1, as ever.
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	for _, ln := range lns {
		go func() { ended <- srv.Serve(ln) }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if srv.Shutdown(bye) != nil {
		srv.Close() // streams that go on belong to containers that go on
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
