package engine

import (
	"os"
	"testing"

	"keg/internal/monitor"
	"keg/test/private"
)

// TestMain runs the tests in private network and mount namespaces when it may, and is the
// monitor when an engine under test starts one.
func TestMain(m *testing.M) {
	if os.Args[0] == monitor.Argv0 {
		os.Exit(monitor.Main(os.Args[1:]))
	}
	private.Enter()
	os.Exit(m.Run())
}

// needRoot tells tests that need root why they cannot run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and a bridge")
	}
}
