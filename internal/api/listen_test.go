package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"keg/test/private"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	_, a.cert, a.key = a.issue(t, "ca", nil)
	return a
}

// issue makes a certificate; without a parent one that signs others.
func (a *authority) issue(t *testing.T, name string, usage []x509.ExtKeyUsage) (tls.Certificate, *x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	c := &x509.Certificate{SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: usage, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	} else {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, cert, key
}

func (a *authority) file(t *testing.T, dir, name string, c tls.Certificate) (cert, key string) {
	t.Helper()
	write := func(p, kind string, der []byte) string {
		p = filepath.Join(dir, p)
		if err := os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	der, err := x509.MarshalECPrivateKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return write(name+".pem", "CERTIFICATE", c.Certificate[0]), write(name+"-key.pem", "EC PRIVATE KEY", der)
}

// TestTCPNeedsMutualTLS: row AP1 of the threats. Who has no certificate of the server's authority is
// nobody; and there is no way to listen without.
func TestTCPNeedsMutualTLS(t *testing.T) {
	if os.Geteuid() == 0 { // in a network namespace of its own
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			t.Skipf("needs ip(8): %v: %s", err, out)
		}
	}
	dir := t.TempDir()
	ca, foreign := newAuthority(t), newAuthority(t)
	srv, _, _ := ca.issue(t, "server", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth})
	var o ListenOptions
	o.TLS.Cert, o.TLS.Key = ca.file(t, dir, "server", srv)
	o.TLS.CA, _ = ca.file(t, dir, "ca", tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key})
	for _, half := range []TLS{{}, {Cert: o.TLS.Cert, Key: o.TLS.Key}, {CA: o.TLS.CA}} {
		for _, addr := range []string{"tcp://127.0.0.1:0", "tcp://0.0.0.0:0", "tcp://[::]:0"} {
			if lns, err := Listen(addr, ListenOptions{TLS: half}); err == nil {
				lns[0].Close()
				t.Errorf("%s with %+v is served", addr, half)
			}
		}
	}
	lns, err := Listen("tcp://127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- New(newFake(), Options{Version: "1"}).Serve(ctx, lns...) }()
	defer func() { cancel(); <-done }()
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	ping := func(c *tls.Config) (int, error) {
		c.RootCAs = pool
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}, Timeout: 10 * time.Second}
		scheme := "https"
		if c.ServerName == "plain" {
			scheme = "http"
		}
		resp, err := client.Get(scheme + "://" + lns[0].Addr().String() + "/_ping")
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	user, _, _ := ca.issue(t, "user", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
	other, _, _ := foreign.issue(t, "user", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
	wrong, _, _ := ca.issue(t, "user", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth})
	if code, err := ping(&tls.Config{Certificates: []tls.Certificate{user}}); code != 200 {
		t.Errorf("with a certificate: %d, %v", code, err)
	}
	for what, c := range map[string]*tls.Config{"no certificate": {}, "another authority": {Certificates: []tls.Certificate{other}},
		"not for clients": {Certificates: []tls.Certificate{wrong}}, "old protocol": {Certificates: []tls.Certificate{user}, MaxVersion: tls.VersionTLS11}} {
		if code, err := ping(c); err == nil {
			t.Errorf("%s: %d", what, code)
		}
	}
	if code, err := ping(&tls.Config{ServerName: "plain"}); err == nil && code == 200 {
		t.Error("served without TLS")
	}
}

// TestSocketIsForItsGroup: row AP1, the other half.
func TestSocketIsForItsGroup(t *testing.T) {
	if sock := os.Getenv("KEG_TEST_CONNECT"); sock != "" {
		c, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: changes users")
	}
	dir, err := os.MkdirTemp("", "keg") // others may look into it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(filepath.Join(dir, "s"), ListenOptions{Group: "no-such-group"}); err == nil || !strings.Contains(err.Error(), "groupadd") {
		t.Errorf("no such group: %v", err)
	}
	lns, err := Listen(filepath.Join(dir, "s"), ListenOptions{Group: "4242"})
	if err != nil {
		t.Fatal(err)
	}
	defer lns[0].Close()
	connect := func(gid uint32) bool {
		c := exec.Command("/proc/self/exe", "-test.run", "^TestSocketIsForItsGroup$")
		c.Env = append(os.Environ(), "KEG_TEST_CONNECT="+filepath.Join(dir, "s"), private.Env+"=1")
		c.Dir = "/"
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: gid}}
		out, err := c.CombinedOutput()
		if err != nil && !strings.Contains(string(out), "permission denied") {
			t.Errorf("group %d: %s, %v", gid, out, err)
		}
		return err == nil
	}
	if !connect(4242) {
		t.Error("a member of the group cannot connect")
	}
	if connect(65534) {
		t.Error("anybody can connect")
	}
}

// TestActivation starts this test program again with sockets of systemd's kind.
func TestActivation(t *testing.T) {
	if sock := os.Getenv("KEG_TEST_ACTIVATED"); sock != "" {
		env := map[string]string{"LISTEN_FDS": os.Getenv("LISTEN_FDS"), "LISTEN_PID": itoa(os.Getpid())}
		lns, err := Listen("fd://", ListenOptions{Env: env})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := New(newFake(), Options{Version: "1"}).Serve(ctx, lns...); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := t.TempDir()
	sock := filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := exec.Command(os.Args[0], "-test.run", "^TestActivation$")
	c.Env = append(os.Environ(), "KEG_TEST_ACTIVATED="+sock, "LISTEN_FDS=1")
	c.ExtraFiles = []*os.File{f}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", sock) }}, Timeout: 10 * time.Second}
	started := make(chan error, 1)
	go func() { started <- c.Run() }()
	resp, err := client.Get("http://docker/_ping") // waits in the socket until the server is there
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("%v, %v", resp, err)
	}
	if err := <-started; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(sock); err != nil {
		t.Errorf("the socket is systemd's, and went: %v", err)
	}
	// TCP sockets from outside have no TLS of ours.
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if f, err = tcp.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c = exec.Command(os.Args[0], "-test.run", "^TestActivation$")
	c.Env, c.ExtraFiles = append(os.Environ(), "KEG_TEST_ACTIVATED=tcp", "LISTEN_FDS=1"), []*os.File{f}
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "is no Unix socket") {
		t.Errorf("a TCP socket was taken: %s, %v", out, err)
	}
}
