package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"keg/internal/fault"
)

// tlsConfig reads <system>/{docker,containers}/certs.d/<host>: *.crt are authorities
// beside the system's, *.cert with *.key a client certificate. RootCAs is nil
// when there are none.
func tlsConfig(system, host string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, tool := range []string{"docker", "containers"} {
		dir := filepath.Join(system, tool, "certs.d", host)
		ents, err := os.ReadDir(dir)
		if err != nil {
			continue // not there, or not for us
		}
		for _, e := range ents {
			if err := addCertificate(cfg, filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("certificates of registry %s: %w", host, err)
			}
		}
	}
	return cfg, nil
}

func addCertificate(cfg *tls.Config, path string) error {
	switch filepath.Ext(path) {
	case ".crt":
		pem, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if cfg.RootCAs == nil {
			if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
				cfg.RootCAs = x509.NewCertPool()
			}
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return fault.Invalidf("%s has no certificate in PEM form", path)
		}
	case ".cert":
		key := strings.TrimSuffix(path, ".cert") + ".key"
		pair, err := tls.LoadX509KeyPair(path, key)
		if err != nil {
			return fault.Invalidf("client certificate %s: %w", path, err)
		}
		cfg.Certificates = append(cfg.Certificates, pair)
	}
	return nil
}
