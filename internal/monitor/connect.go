package monitor

// Networks of a container that runs: coming, going, legacy links, a new name.

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	dnetwork "github.com/moby/moby/api/types/network"

	"keg/internal/fault"
	"keg/internal/network"
)

// Connect adds an endpoint; the record names it already. It returns what inspect shows of it.
func (c *Conn) Connect(ctx context.Context, e network.Endpoint) (*dnetwork.EndpointSettings, error) {
	var s dnetwork.EndpointSettings
	err := c.call(ctx, request{Op: "connect", Endpoint: &e}, &s)
	return &s, err
}

// Disconnect takes the container off a network.
func (c *Conn) Disconnect(ctx context.Context, name string) error {
	return c.call(ctx, request{Op: "disconnect", Endpoint: &network.Endpoint{Network: name}}, nil)
}

// Renamed tells the monitor that the record has another name now.
func (c *Conn) Renamed(ctx context.Context) error { return c.call(ctx, request{Op: "rename"}, nil) }

// connectTime bounds one change of a running container's networks.
const connectTime = 20 * time.Second

func (m *monitor) connect(e *network.Endpoint) (*dnetwork.EndpointSettings, error) {
	r, err := m.attachable(e)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	s, err := r.net.Connect(ctx, *e)
	if err != nil {
		return nil, err
	}
	return s, m.networksChanged(r)
}

func (m *monitor) disconnect(e *network.Endpoint) error {
	r, err := m.attachable(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	if err := r.net.Disconnect(ctx, e.Network); err != nil {
		return err
	}
	return m.networksChanged(r)
}

func (m *monitor) attachable(e *network.Endpoint) (*run, error) {
	r, err := m.running()
	if err != nil {
		return nil, err
	}
	if e == nil || e.Network == "" {
		return nil, fault.Invalidf("no network is named")
	}
	if r.net == nil {
		return nil, fault.Deniedf("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	return r, nil
}

// networksChanged writes the state and the container's own files anew. They are bound as
// they are: the same files with other contents.
func (m *monitor) networksChanged(r *run) error {
	rec, err := m.containers.Get(m.id)
	if err != nil {
		return err
	}
	dir := m.roots.dir(m.id)
	for name, data := range map[string][]byte{"hosts": r.net.Hosts, "resolv.conf": r.net.Resolv} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rec = rec
	if m.run != r {
		return nil // it ended meanwhile
	}
	m.st.Networks, m.st.Ports = maps.Clone(r.net.Endpoints), maps.Clone(r.net.Ports)
	return m.containers.PutState(m.id, &m.st, true)
}

// renamed takes over the record's new name: events and names on networks follow it.
func (m *monitor) renamed() error {
	rec, err := m.containers.Get(m.id)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.rec = rec
	r := m.run
	m.mu.Unlock()
	if r == nil || r.net == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	return r.net.Rename(ctx, rec.Name)
}

// addLinks resolves the legacy links of the default bridge: host names of containers that
// run now. On other networks links are names that the resolver knows.
func (m *monitor) addLinks(q *network.Request) error {
	if mode := m.rec.Host.NetworkMode; !mode.IsBridge() && !mode.IsDefault() {
		return nil
	}
	for _, l := range m.rec.Host.Links {
		name, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = name
		}
		name, alias = strings.TrimPrefix(name, "/"), alias[strings.LastIndexByte(alias, '/')+1:]
		other, err := m.containers.Find(name)
		if err != nil {
			return err
		}
		st, err := m.containers.State(other.ID)
		if err != nil {
			return err
		}
		on, err := m.containers.Running(other.ID)
		if err != nil {
			return err
		}
		if !on || st.Pid == 0 {
			return fault.Conflictf("Cannot link to a non running container: /%s AS /%s/%s", other.Name, m.rec.Name, alias)
		}
		e := st.Networks[dnetwork.NetworkBridge]
		if e == nil || !e.IPAddress.IsValid() {
			return fault.Invalidf("Cannot link to /%s, as it does not belong to the default network", other.Name)
		}
		names := alias // one line in the hosts file, as Docker has it
		for _, n := range []string{other.Config.Hostname, other.Name} {
			if n != "" && n != alias && n != q.Hostname {
				names += " " + n
			}
		}
		q.ExtraHosts = append(q.ExtraHosts, names+":"+e.IPAddress.String())
	}
	return nil
}
