// Package network makes bridges, veth pairs, addresses, published ports and names for
// containers: one nftables table of our own, records as files.
//
//	networks/<name>/{network.json,names,leases/<ip>}
package network

import (
	"context"

	"github.com/moby/moby/api/types/network"
)

// Network is Docker's record of a network (name, id, driver, IPAM, labels, options).
type Network = network.Inspect

// Store owns networks/ below its root.
type Store struct{ root, run string }

// Open uses root (records) and run (what dies with the boot).
func Open(root, run string) *Store { return &Store{root, run} }

// CreateOptions are those of docker network create.
type CreateOptions struct {
	Name                       string
	Driver                     string // "" or "bridge"
	Internal, IPv6, Attachable bool
	IPAM                       network.IPAM
	Options, Labels            map[string]string
}

// Create picks a free subnet when none is asked for. fault.Conflict: "network with name x already exists".
func (s *Store) Create(ctx context.Context, o CreateOptions) (Network, error) { panic("unwritten") }

// Get finds by name, id or unique id prefix; "bridge", "host" and "none" always exist.
// fault.NotFound: "network x not found".
func (s *Store) Get(name string) (Network, error) { panic("unwritten") }

// List returns all, the three predefined ones included.
func (s *Store) List() ([]Network, error) { panic("unwritten") }

// Remove refuses predefined networks (Denied) and those with active endpoints (Denied,
// Docker's words).
func (s *Store) Remove(ctx context.Context, name string) error { panic("unwritten") }

// Endpoint asks for a place on one network.
type Endpoint struct {
	Network  string
	Settings network.EndpointSettings // aliases, static addresses, MAC
}

// Request is what a starting container needs.
type Request struct {
	ID, Name, Hostname   string
	Endpoints            []Endpoint      // none: loopback only
	Publish              network.PortMap // container port -> host bindings; "" or "0" picks a port
	ExtraHosts           []string        // host:ip
	DNS, Search, Options []string
	PID                  int // not used by Attach; for Connect
}

// Attachment is what was made. The monitor keeps it until the container ended.
type Attachment struct {
	NetNS         int // descriptor of the namespace
	Endpoints     map[string]*network.EndpointSettings
	Ports         network.PortMap // with the ports that were picked
	Hosts, Resolv []byte          // contents of /etc/hosts and /etc/resolv.conf
}

// Attach makes the namespace with all endpoints, publishes ports and starts answering DNS. It runs
// beside the mounts. A taken port is fault.Conflict and names the owner.
func (s *Store) Attach(ctx context.Context, r Request) (*Attachment, error) { panic("unwritten") }

// Release takes ports, names, rules and addresses back; the namespace dies by itself.
// It may take milliseconds: call it after the exit code was reported.
func (a *Attachment) Release() error { panic("unwritten") }

// Clean releases what a dead monitor left for container id.
func (s *Store) Clean(id string) error { panic("unwritten") }
