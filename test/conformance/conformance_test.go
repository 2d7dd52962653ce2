// Package conformance runs OCI's conformance program against the registry server. It is a
// module of its own, so that keg does not depend on that program:
//
//	cd test/conformance && go test .
package conformance

import (
	"encoding/xml"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keg/internal/registry"
	"keg/internal/store"
)

func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("long: runs OCI's conformance program")
	}
	program := filepath.Join(t.TempDir(), "conformance")
	if out, err := exec.Command("go", "build", "-o", program, "github.com/opencontainers/distribution-spec/conformance").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for name, tc := range map[string]struct {
		opt registry.ServerOptions
		env []string
	}{
		"default with delete": {registry.ServerOptions{Delete: true}, nil},
		"everything": {registry.ServerOptions{Delete: true, Sparse: true}, []string{
			"OCI_VERSION=dev", "OCI_DATA_SPARSE=true", "OCI_API_BLOBS_UPLOAD_CANCEL=true",
			"OCI_API_MANIFESTS_TAG_PARAM=true", "OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := store.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			srv := httptest.NewServer(registry.NewServer(s.Repositories("localhost"), tc.opt))
			defer srv.Close()
			figures, out, err := conform(t, program, strings.TrimPrefix(srv.URL, "http://"), tc.env)
			t.Log("keg: " + figures)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			// The same of Debian's docker-registry, for comparison; how it fares is no matter of ours.
			if host := debian(t); host != "" {
				figures, _, _ := conform(t, program, host, tc.env)
				t.Log("docker-registry: " + figures)
			}
		})
	}
}

// conform runs the program against the registry at host.
func conform(t *testing.T, program, host string, env []string) (figures string, out []byte, err error) {
	t.Helper()
	results := t.TempDir()
	cmd := exec.Command(program)
	cmd.Dir = results
	cmd.Env = append(append(os.Environ(), env...), "OCI_REGISTRY="+host, "OCI_TLS=disabled", "OCI_RESULTS_DIR="+results)
	out, err = cmd.CombinedOutput()
	return count(t, filepath.Join(results, "junit.xml")), out, err
}

// debian starts Debian's docker-registry with delete switched on; "" when it is not installed.
func debian(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		return ""
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %s}\n", dir, host)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", config)
	cmd.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 200 {
		if c, err := net.Dial("tcp", host); err == nil {
			c.Close()
			return host
		}
		time.Sleep(20 * time.Millisecond) // another program's start cannot be waited for
	}
	t.Fatal("docker-registry does not listen")
	return ""
}

// count reads the figures of the report.
func count(t *testing.T, file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var suites struct {
		Tests    string `xml:"tests,attr"`
		Failures string `xml:"failures,attr"`
		Errors   string `xml:"errors,attr"`
		Skipped  string `xml:"skipped,attr"`
		Suites   []struct {
			Tests    string `xml:"tests,attr"`
			Failures string `xml:"failures,attr"`
			Errors   string `xml:"errors,attr"`
			Skipped  string `xml:"skipped,attr"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &suites); err != nil {
		t.Fatal(err)
	}
	s := "tests " + suites.Tests + ", failures " + suites.Failures + ", errors " + suites.Errors
	for _, x := range suites.Suites {
		s += "; suite: tests " + x.Tests + ", failures " + x.Failures + ", errors " + x.Errors + ", skipped " + x.Skipped
	}
	return s
}
