// Package network makes bridges, veth pairs, addresses, published ports and names for
// containers: one nftables table of our own, records as files.
//
//	root: networks/<name>/{network.json,names,leases/<ip>}   what should be, who has which address
//	run:  network/{lock,state.json,owners/<id>}              what this boot's kernel was told
//
// Everything under run describes live things of this boot; whoever finds a dead owner
// there can take back what it left (Clean). Changes to both trees are made under one
// lock, held for well under a millisecond except while a bridge comes or goes.
package network

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/network"

	"keg/internal/disk"
	"keg/internal/linux"
)

// Network is Docker's record of a network (name, id, driver, IPAM, labels, options).
type Network = network.Inspect

// Store owns networks/ below its root and network/ below its run directory.
type Store struct {
	root, run string
	engineRun string // the engine's run directory, which knows the user's own namespace
	// linger is how long a bridge stays after its last use, so that runs in a loop
	// do not make it anew each time.
	linger time.Duration
	// grace is how long a namespace may outlive its container before it loses its links.
	grace time.Duration
	// patience bounds every wait for a resource whose owner has exited.
	patience time.Duration
}

// Open uses root (records) and run (what dies with the boot). It touches nothing.
func Open(root, run string) *Store {
	return &Store{
		root:      filepath.Join(root, "networks"),
		run:       filepath.Join(run, "network"),
		engineRun: run,
		linger:    time.Second,
		grace:     500 * time.Millisecond,
		patience:  5 * time.Second,
	}
}

// CreateOptions are those of docker network create.
type CreateOptions struct {
	Name                       string
	Driver                     string // "" or "bridge"
	Internal, IPv6, Attachable bool
	IPAM                       network.IPAM
	Options, Labels            map[string]string

	// ConfigOnly makes a network that only holds settings for others; ConfigFrom names one, whose
	// settings this network takes instead of its own.
	ConfigOnly bool
	ConfigFrom string
}

// Endpoint asks for a place on one network.
type Endpoint struct {
	Network  string                   // name, id or unique id prefix
	Settings network.EndpointSettings // aliases, static addresses, MAC
}

// Request is what a starting container needs.
type Request struct {
	ID, Name, Hostname   string
	Domainname           string
	Endpoints            []Endpoint      // none: loopback only
	Publish              network.PortMap // container port -> host bindings; "" or "0" picks a port
	ExtraHosts           []string        // host:ip or host=ip; the ip may be "host-gateway"
	DNS, Search, Options []string
	PID                  int // not used by Attach; for Connect
	NetNS                int // the namespace to furnish, which the caller closes; 0: a new one
}

// Paths. Only these methods know where a file is.

func (s *Store) netDir(name string) string        { return filepath.Join(s.root, name) }
func (s *Store) netFile(name string) string       { return filepath.Join(s.root, name, "network.json") }
func (s *Store) namesFile(name string) string     { return filepath.Join(s.root, name, "names") }
func (s *Store) leaseDir(name string) string      { return filepath.Join(s.root, name, "leases") }
func (s *Store) leaseFile(name, ip string) string { return filepath.Join(s.root, name, "leases", ip) }
func (s *Store) stateFile() string                { return filepath.Join(s.run, "state.json") }
func (s *Store) ownerDir() string                 { return filepath.Join(s.run, "owners") }
func (s *Store) ownerFile(id string) string       { return filepath.Join(s.run, "owners", id) }
func (s *Store) lockFile() string                 { return filepath.Join(s.run, "lock") }
func (s *Store) lingerFile() string               { return filepath.Join(s.run, "linger") }

// lock serialises every change of the two trees, of the bridges and of the nftables table.
func (s *Store) lock(ctx context.Context) (*disk.Lock, error) {
	l, err := disk.LockFile(ctx, s.lockFile())
	if os.IsNotExist(err) {
		if err = os.MkdirAll(s.ownerDir(), 0o700); err == nil {
			l, err = disk.LockFile(ctx, s.lockFile())
		}
	}
	return l, err
}

// bootID is read once: it cannot change under a living process.
var bootID = sync.OnceValue(func() string {
	id, _ := linux.BootID()
	return id
})
