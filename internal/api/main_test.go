package api

import (
	"os"
	"testing"

	"keg/test/private"
)

// TestMain runs the tests in private network and mount namespaces when it may.
func TestMain(m *testing.M) {
	private.Enter()
	os.Exit(m.Run())
}
