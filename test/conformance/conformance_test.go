// Package conformance runs OCI's conformance program against the registry server. It is a
// module of its own, so that keg does not depend on that program:
//
//	cd test/conformance && go test .
package conformance

import (
	"encoding/xml"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
			results := t.TempDir()
			cmd := exec.Command(program)
			cmd.Dir = results
			cmd.Env = append(append(os.Environ(), tc.env...), "OCI_REGISTRY="+strings.TrimPrefix(srv.URL, "http://"),
				"OCI_TLS=disabled", "OCI_RESULTS_DIR="+results)
			out, err := cmd.CombinedOutput()
			t.Log(count(t, filepath.Join(results, "junit.xml")))
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
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
