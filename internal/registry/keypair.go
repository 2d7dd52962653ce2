// The server's certificate, read again when its files change, so that renewing it needs no
// restart.

package registry

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// keyPair is a certificate and its key in PEM files.
type keyPair struct {
	certFile, keyFile string
	trouble           func(error) // told once for each change that could not be read

	mu      sync.Mutex
	looked  time.Time
	stamp   string
	current *tls.Certificate
}

// lookEach bounds how often handshakes look at the files.
const lookEach = time.Second

func newKeyPair(certFile, keyFile string, trouble func(error)) (*keyPair, error) {
	k := &keyPair{certFile: certFile, keyFile: keyFile, trouble: trouble}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("read TLS certificate: %w", err)
	}
	k.current, k.stamp, k.looked = &cert, k.stampNow(), time.Now()
	return k, nil
}

func (k *keyPair) stampNow() (s string) {
	for _, f := range []string{k.certFile, k.keyFile} {
		if st, err := os.Stat(f); err == nil {
			s += fmt.Sprint(st.ModTime().UnixNano(), st.Size(), ";")
		}
	}
	return s
}

// get is tls.Config.GetCertificate. A pair that does not fit (files are replaced one after
// the other) leaves the old one in use.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.looked) < lookEach {
		return k.current, nil
	}
	k.looked = time.Now()
	stamp := k.stampNow()
	if stamp == k.stamp {
		return k.current, nil
	}
	k.stamp = stamp
	cert, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err != nil {
		k.trouble(fmt.Errorf("keep the old TLS certificate: %w", err))
		return k.current, nil
	}
	k.current = &cert
	return k.current, nil
}

func (k *keyPair) config() *tls.Config {
	return &tls.Config{GetCertificate: k.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
}
