package network

// Names: networks/<name>/names, what the DNS of a user-defined network answers. One
// line an endpoint and address, like /etc/hosts:
//
//	172.18.0.2 <endpoint id> web alias 0123456789ab
//
// The first name is the one that a reverse look-up gives. Whoever has exited is absent.

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"

	"keg/internal/disk"
)

// addNames and dropNames rewrite the file; the caller holds the lock.
func (s *Store) addNames(l *lease) error {
	var b strings.Builder
	for _, a := range l.addrs() {
		b.WriteString(a.String() + " " + l.EndpointID)
		for _, n := range l.DNSNames {
			b.WriteString(" " + n)
		}
		b.WriteByte('\n')
	}
	return s.editNames(l, b.String())
}

func (s *Store) dropNames(l *lease) error { return s.editNames(l, "") }

func (s *Store) editNames(l *lease, add string) error {
	old, err := os.ReadFile(s.namesFile(l.Network))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	kept := withoutEndpoint(string(old), l.EndpointID)
	if kept+add == string(old) {
		return nil
	}
	return disk.PutVolatile(s.namesFile(l.Network), []byte(kept+add), 0o600)
}

func withoutEndpoint(text, id string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 2 && f[1] != id {
			b.WriteString(line)
		}
	}
	return b.String()
}

// A nameTable is the file, parsed. Names are in lower case.
type nameTable struct {
	byName map[string][]netip.Addr
	byAddr map[netip.Addr]string
}

func parseNames(text string) nameTable {
	t := nameTable{map[string][]netip.Addr{}, map[netip.Addr]string{}}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		t.byAddr[a] = f[2]
		for _, n := range f[2:] {
			n = strings.ToLower(n)
			t.byName[n] = append(t.byName[n], a)
		}
	}
	return t
}

// A nameFile reads the table again only when the file was replaced. It keeps the file
// it read open, so that the kernel cannot give the inode's number to the next one.
type nameFile struct {
	path  string
	mu    sync.Mutex
	f     *os.File
	table nameTable
}

func (n *nameFile) load() nameTable {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, err := os.Stat(n.path)
	if err != nil {
		return nameTable{}
	}
	if n.f != nil {
		if st, err := n.f.Stat(); err == nil && os.SameFile(st, now) {
			return n.table
		}
	}
	f, err := os.Open(n.path)
	if err != nil {
		return nameTable{}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nameTable{}
	}
	n.closeLocked()
	n.f, n.table = f, parseNames(string(b))
	return n.table
}

func (n *nameFile) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closeLocked()
}

func (n *nameFile) closeLocked() {
	if n.f != nil {
		n.f.Close()
		n.f = nil
	}
}
