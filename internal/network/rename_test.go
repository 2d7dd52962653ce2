package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/network"
)

func TestLinksAreThisContainersAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	os.WriteFile(file, []byte("10.0.0.2 e1 db\n"), 0o600)
	with := resolver{networks: []dnsNetwork{{name: "mine", names: &nameFile{path: file}, links: linksOf(network.EndpointSettings{Links: []string{"/DB:store", "db"}})}}}
	without := resolver{networks: []dnsNetwork{{name: "mine", names: &nameFile{path: file}}}}
	want := netip.MustParseAddr("10.0.0.2")
	for _, name := range []string{"store.", "Store", "db", "store.mine", "db.mine"} {
		if got, ok := with.lookup(name); !ok || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got, ok := without.lookup("store"); ok {
		t.Errorf("a link of another container is answered: %v", got)
	}
}
