package network

// State of this boot: which bridges are up, what was changed on the host, who owns
// what. All of it below run/network, all of it written under the lock.

import (
	"errors"
	"net/netip"
	"os"

	"keg/internal/disk"
	"keg/internal/fault"
)

// hostState is state.json. Up maps network names to what the rules need to know.
type hostState struct {
	Version int
	Boot    string
	Table   string // our nftables table: keg_<8 hex>, from the default network's id
	Up      map[string]upNetwork
	Forward forwarding
}

// An upNetwork has its bridge on the host.
type upNetwork struct {
	Bridge     string
	V4, V6     netip.Prefix
	Internal   bool   `json:",omitempty"`
	NoICC      bool   `json:",omitempty"`
	Masquerade bool   `json:",omitempty"`
	Firewall   string `json:",omitempty"` // where rules were added to let us pass, "ip filter FORWARD"
	Blocked    string `json:",omitempty"` // where that was refused
}

// forwarding says which sysctls were 0 before keg set them to 1.
type forwarding struct{ V4, V6 bool }

// state reads state.json; that of another boot describes nothing.
func (s *Store) state() (*hostState, error) {
	st := new(hostState)
	err := disk.GetJSON(s.stateFile(), st)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	if st.Boot != bootID() {
		st = &hostState{Version: recordVersion, Boot: bootID()}
	}
	if st.Up == nil {
		st.Up = map[string]upNetwork{}
	}
	return st, nil
}

func (s *Store) putState(st *hostState) error { return disk.PutJSONVolatile(s.stateFile(), st) }

// An owner is what one container holds: enough to give it all back when its monitor died.
type owner struct {
	Version  int
	ID, Name string
	Boot     string
	Leaving  bool   `json:",omitempty"` // exited, about to be released
	NetNS    uint64 // inode of its namespace
	Leases   []*lease
	Ports    []published `json:",omitempty"`
}

func (s *Store) putOwner(o *owner) error {
	err := disk.PutJSONVolatile(s.ownerFile(o.ID), o)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(s.ownerDir(), 0o700); err == nil {
			err = disk.PutJSONVolatile(s.ownerFile(o.ID), o)
		}
	}
	return err
}

// getOwner returns nil when the container holds nothing in this boot.
func (s *Store) getOwner(id string) (*owner, error) {
	o := new(owner)
	if err := disk.GetJSON(s.ownerFile(id), o); err != nil {
		if fault.Is(err, fault.NotFound) {
			return nil, nil
		}
		return nil, err
	}
	if o.Boot != bootID() {
		return nil, nil
	}
	return o, nil
}

// owners returns all of this boot.
func (s *Store) owners() ([]*owner, error) {
	ents, err := os.ReadDir(s.ownerDir())
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var out []*owner
	for _, e := range ents {
		if disk.IsTemp(e.Name()) {
			continue
		}
		if o, err := s.getOwner(e.Name()); err == nil && o != nil {
			out = append(out, o)
		}
	}
	return out, nil
}
