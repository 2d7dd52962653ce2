package network

// Networks as written down: create, find, list, remove.

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"

	"keg/internal/disk"
	"keg/internal/fault"
)

// The options of Docker's bridge driver that mean something here.
const (
	optBridge  = "com.docker.network.bridge.name"
	optDefault = "com.docker.network.bridge.default_bridge"
	optICC     = "com.docker.network.bridge.enable_icc"
	optMasq    = "com.docker.network.bridge.enable_ip_masquerade"
	optHostIP  = "com.docker.network.bridge.host_binding_ipv4"
	optMTU     = "com.docker.network.driver.mtu"
	optMode4   = "com.docker.network.bridge.gateway_mode_ipv4"
	optMode6   = "com.docker.network.bridge.gateway_mode_ipv6"
)

// optIfname is an option of an endpoint: what its interface is called inside.
const optIfname = "com.docker.network.endpoint.ifname"

const recordVersion = 1

// A record is network.json. Link is the bridge's name on the host: it holds bits of the
// network's random id, so that engines side by side never meet. Auto4 says that keg
// chose the subnet, and may choose another before the bridge comes up.
type record struct {
	Version int
	Network network.Network
	Link    string
	Auto4   bool
	MTU     int `json:",omitempty"` // where the options name none: that of the way out
}

func (r *record) predefined() bool { return predefined(r.Network.Name) }
func predefined(name string) bool  { return name == "bridge" || name == "host" || name == "none" }

// userDefined networks answer names.
func (r *record) userDefined() bool { return r.Network.Driver == "bridge" && !r.predefined() }

// config returns the address plan of one family.
func (r *record) config(six bool) (network.IPAMConfig, bool) {
	for _, c := range r.Network.IPAM.Config {
		if c.Subnet.Addr().Is6() == six {
			return c, true
		}
	}
	return network.IPAMConfig{}, false
}

func (r *record) option(key string, def bool) bool {
	if v, err := strconv.ParseBool(r.Network.Options[key]); err == nil {
		return v
	}
	return def
}

func (r *record) mtu() int {
	if n, err := strconv.Atoi(r.Network.Options[optMTU]); err == nil {
		return n
	}
	return r.MTU
}

func (s *Store) create(ctx context.Context, o CreateOptions) (Network, error) {
	r, err := newRecord(o)
	if err != nil {
		return Network{}, err
	}
	l, err := s.lock(ctx)
	if err != nil {
		return Network{}, err
	}
	defer l.Unlock()
	all, err := s.records()
	if err != nil {
		return Network{}, err
	}
	for _, other := range all {
		if other.Network.Name == o.Name {
			return Network{}, fault.Conflictf("network with name %s already exists", o.Name)
		}
		if r.Network.Options[optBridge] != "" && other.Link == r.Link {
			return Network{}, fault.Deniedf("cannot create network %s (%s): conflicts with network %s (%s): networks have same bridge name",
				r.Network.ID, r.Link, other.Network.ID, other.Link)
		}
	}
	if o.ConfigFrom != "" {
		from, err := configNetwork(all, o.ConfigFrom)
		if err != nil {
			return Network{}, err
		}
		r.configure(from)
		o.IPAM.Config = from.IPAM.Config
	}
	if o.ConfigOnly {
		r.Network.IPAM.Config = o.IPAM.Config
		return r.inspect(nil), s.putRecord(r)
	}
	if err := r.giveSubnets(o.IPAM.Config, all); err != nil {
		return Network{}, err
	}
	return r.inspect(nil), s.putRecord(r)
}

func newRecord(o CreateOptions) (*record, error) {
	if predefined(o.Name) {
		return nil, fault.Deniedf("operation is not permitted on predefined %s network ", o.Name)
	}
	if err := validName(o.Name); err != nil {
		return nil, err
	}
	switch {
	case o.ConfigOnly && o.ConfigFrom != "":
		return nil, fault.Deniedf("a configuration network cannot depend on another configuration network")
	case o.ConfigFrom != "" && (len(o.IPAM.Config)+len(o.Options)+len(o.Labels) > 0 || o.IPv6 || o.Internal):
		return nil, fault.Deniedf("user specified configurations are not supported if the network depends on a configuration network")
	case o.ConfigOnly:
		o.Driver = "null" // it is never brought up
	case o.Driver == "":
		o.Driver = "bridge"
	}
	switch o.Driver {
	case "bridge":
	case "null":
		if o.ConfigOnly {
			break
		}
		fallthrough
	case "host":
		return nil, fault.Deniedf("only one instance of %q network is allowed", o.Driver)
	default:
		return nil, fault.NotFoundf("could not find plugin %s in v1 plugin registry: plugin not found; keg has the drivers bridge, host and null", o.Driver)
	}
	if d := o.IPAM.Driver; d != "" && d != "default" {
		return nil, fault.NotFoundf("could not find plugin %s in v1 plugin registry: plugin not found; keg has the IPAM driver \"default\"", d)
	}
	if err := validateIPAM(o.IPAM.Config, o.IPv6); err != nil {
		return nil, err
	}
	if err := validateOptions(o.Options); err != nil {
		return nil, err
	}
	r := &record{Version: recordVersion, MTU: uplinkMTU(), Network: network.Network{
		Name: o.Name, ID: newID(), Created: time.Now(), Scope: "local", Driver: o.Driver,
		EnableIPv4: true, EnableIPv6: o.IPv6, Internal: o.Internal, Attachable: o.Attachable,
		IPAM:    network.IPAM{Driver: "default", Options: o.IPAM.Options},
		Options: maps.Clone(o.Options), Labels: maps.Clone(o.Labels),
		ConfigOnly: o.ConfigOnly, ConfigFrom: network.ConfigReference{Network: o.ConfigFrom},
	}}
	if r.Network.Options == nil {
		r.Network.Options = map[string]string{}
	}
	if r.Network.Labels == nil {
		r.Network.Labels = map[string]string{}
	}
	if !o.ConfigOnly {
		r.Link = cmp.Or(r.Network.Options[optBridge], "br-"+r.Network.ID[:12])
	}
	return r, nil
}

// configNetwork finds the configuration network that another one depends on.
func configNetwork(all []*record, name string) (*network.Network, error) {
	i := slices.IndexFunc(all, func(r *record) bool { return r.Network.Name == name || r.Network.ID == name })
	switch {
	case i < 0:
		return nil, fault.NotFoundf("configuration network %q does not exist", name)
	case !all[i].Network.ConfigOnly:
		return nil, fault.Deniedf("network %q is not a configuration network", name)
	}
	return &all[i].Network, nil
}

// configure takes over the settings of a configuration network.
func (r *record) configure(from *network.Network) {
	n := &r.Network
	n.ConfigFrom.Network = from.Name
	n.EnableIPv6, n.Internal, n.IPAM.Options = from.EnableIPv6, from.Internal, from.IPAM.Options
	n.Options, n.Labels = maps.Clone(from.Options), maps.Clone(from.Labels)
	r.Link = cmp.Or(n.Options[optBridge], r.Link)
}

// notUsable refuses a network that is only the configuration of others.
func (r *record) notUsable() error {
	if r.Network.ConfigOnly {
		return fault.Deniedf("cannot create endpoint on configuration-only network %s", r.Network.Name)
	}
	return nil
}

// validName keeps what would not be one plain file name, or not one word, out of the records.
func validName(name string) error {
	if strings.TrimSpace(name) == "" {
		return fault.Invalidf("invalid name: name is empty")
	}
	ok := func(i int, c byte) bool {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		return alnum || i > 0 && (c == '_' || c == '.' || c == '-')
	}
	for i := range len(name) {
		if !ok(i, name[i]) {
			return fault.Invalidf("invalid network name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
		}
	}
	if len(name) > 128 {
		return fault.Invalidf("invalid network name: %d characters, at most 128 are allowed", len(name))
	}
	return nil
}

func validateOptions(o map[string]string) error {
	for _, k := range []string{optDefault, optICC, optMasq} {
		if v, ok := o[k]; ok {
			if _, err := strconv.ParseBool(v); err != nil {
				return fault.Invalidf("driver-opt %q is not a valid bool: %q", k, v)
			}
		}
	}
	if v, ok := o[optMTU]; ok {
		if n, err := strconv.Atoi(v); err != nil || n < 68 || n > 65535 {
			return fault.Invalidf("driver-opt %q is not a valid MTU: %q", optMTU, v)
		}
	}
	if v, ok := o[optHostIP]; ok {
		if a, err := netip.ParseAddr(v); err != nil || !a.Is4() {
			return fault.Invalidf("driver-opt %q is not an IPv4 address: %q", optHostIP, v)
		}
	}
	if v := o[optBridge]; len(v) > 15 || strings.ContainsAny(v, "/ \t\n:") || v == "." || v == ".." {
		return fault.Invalidf("driver-opt %q is not a valid link name: %q (at most 15 characters)", optBridge, v)
	}
	for _, k := range []string{optMode4, optMode6} {
		if v := o[k]; v != "" && v != "nat" {
			return fault.Unsupportedf("driver-opt %q: mode %q is not supported; keg reaches containers by \"nat\"", k, v)
		}
	}
	return nil
}

// giveSubnets completes the address plan: subnets where none were asked for, gateways.
func (r *record) giveSubnets(asked []network.IPAMConfig, others []*record) error {
	var taken []netip.Prefix
	for _, o := range others {
		if o.Network.ConfigOnly {
			continue // it stands on no link
		}
		for _, c := range o.Network.IPAM.Config {
			taken = append(taken, c.Subnet)
		}
	}
	for _, c := range asked {
		if overlapsAny(c.Subnet, taken) {
			return fault.Deniedf("invalid pool request: Pool overlaps with other one on this address space")
		}
		r.Network.IPAM.Config = append(r.Network.IPAM.Config, c)
	}
	if _, ok := r.config(false); !ok {
		sub, err := chooseSubnet(r.Link, taken)
		if err != nil {
			return err
		}
		r.Auto4 = true
		r.Network.IPAM.Config = append([]network.IPAMConfig{{Subnet: sub}}, r.Network.IPAM.Config...)
	}
	if _, ok := r.config(true); !ok && r.Network.EnableIPv6 {
		r.Network.IPAM.Config = append(r.Network.IPAM.Config, network.IPAMConfig{Subnet: randomULA()})
	}
	for i, c := range r.Network.IPAM.Config {
		if !c.Gateway.IsValid() {
			r.Network.IPAM.Config[i].Gateway = defaultGateway(c)
		}
	}
	return nil
}

// putRecord writes network.json; a field that a newer keg wrote is kept.
func (s *Store) putRecord(r *record) error {
	if err := os.MkdirAll(s.leaseDir(r.Network.Name), 0o700); err != nil {
		return err
	}
	var all map[string]json.RawMessage
	if err := disk.GetJSON(s.netFile(r.Network.Name), &all); err != nil || all == nil {
		return disk.PutJSON(s.netFile(r.Network.Name), r)
	}
	b, err := json.Marshal(r)
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		return err
	}
	return disk.PutJSON(s.netFile(r.Network.Name), all)
}

func (s *Store) getRecord(name string) (*record, error) {
	r := new(record)
	if err := disk.GetJSON(s.netFile(name), r); err != nil {
		return nil, err
	}
	if r.Version > recordVersion {
		return nil, fault.Unsupportedf("network %s was written by a newer keg (record version %d)", name, r.Version)
	}
	return r, nil
}

// byID finds what has ref as its whole id; nil when nothing has.
func (s *Store) byID(ref string) (*record, error) {
	if len(ref) != 64 || strings.Trim(ref, "0123456789abcdef") != "" {
		return nil, nil
	}
	all, err := s.records()
	for _, r := range all {
		if r.Network.ID == ref {
			return r, nil
		}
	}
	return nil, err
}

// find resolves name, full id or unique id prefix, in Docker's order.
func (s *Store) find(ctx context.Context, ref string) (*record, error) {
	if ref == "default" {
		ref = "bridge"
	}
	if r, err := s.byID(ref); r != nil || err != nil {
		return r, err // the id of a network is not another network's name
	}
	if validName(ref) == nil {
		r, err := s.getRecord(ref)
		if err == nil || !fault.Is(err, fault.NotFound) {
			return r, err
		}
	}
	if err := s.ensurePredefined(ctx); err != nil {
		return nil, err
	}
	all, err := s.records()
	if err != nil {
		return nil, err
	}
	var hit []*record
	for _, r := range all {
		if r.Network.Name == ref || r.Network.ID == ref {
			return r, nil
		}
		if ref != "" && strings.HasPrefix(r.Network.ID, ref) {
			hit = append(hit, r)
		}
	}
	switch len(hit) {
	case 0:
		return nil, fault.NotFoundf("network %s not found", ref)
	case 1:
		return hit[0], nil
	}
	return nil, fault.Invalidf("network %s is ambiguous (%d matches found based on ID prefix)", ref, len(hit))
}

// records reads all records, sorted by name.
func (s *Store) records() ([]*record, error) {
	ents, err := os.ReadDir(s.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var all []*record
	for _, e := range ents {
		r, err := s.getRecord(e.Name())
		if fault.Is(err, fault.NotFound) {
			continue // half made or half removed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// ensurePredefined writes the three networks that always exist, once.
func (s *Store) ensurePredefined(ctx context.Context) error {
	if _, err := os.Stat(s.netFile("none")); err == nil {
		return nil
	}
	l, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	all, err := s.records()
	if err != nil {
		return err
	}
	have := func(name string) bool {
		return slices.ContainsFunc(all, func(r *record) bool { return r.Network.Name == name })
	}
	if !have("bridge") {
		r := predefinedRecord("bridge", "bridge")
		r.Network.EnableIPv4 = true
		r.Network.IPAM.Driver = "default"
		r.Link = "keg-" + r.Network.ID[:8]
		r.Network.Options = map[string]string{
			optDefault: "true", optICC: "true", optMasq: "true", optHostIP: "0.0.0.0",
			optBridge: r.Link, optMTU: strconv.Itoa(uplinkMTU()),
		}
		if err := r.giveSubnets(nil, all); err != nil {
			return err
		}
		if err := s.putRecord(r); err != nil {
			return err
		}
	}
	for _, p := range [][2]string{{"host", "host"}, {"none", "null"}} {
		if !have(p[0]) {
			if err := s.putRecord(predefinedRecord(p[0], p[1])); err != nil {
				return err
			}
		}
	}
	return nil
}

func predefinedRecord(name, driver string) *record {
	return &record{Version: recordVersion, Network: network.Network{
		Name: name, ID: newID(), Created: time.Now(), Scope: "local", Driver: driver, EnableIPv4: true,
		IPAM:    network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Options: map[string]string{}, Labels: map[string]string{},
	}}
}

func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// inspect is the record as the API shows it, with who is attached.
func (r *record) inspect(leases []*lease) Network {
	n := Network{Network: r.Network, Containers: map[string]network.EndpointResource{}}
	c4, _ := r.config(false)
	c6, _ := r.config(true)
	for _, l := range leases {
		if l.Leaving {
			continue
		}
		e := network.EndpointResource{Name: l.Name, EndpointID: l.EndpointID, MacAddress: l.MAC}
		if l.IP4.IsValid() {
			e.IPv4Address = netip.PrefixFrom(l.IP4, c4.Subnet.Bits())
		}
		if l.IP6.IsValid() {
			e.IPv6Address = netip.PrefixFrom(l.IP6, c6.Subnet.Bits())
		}
		n.Containers[l.ID] = e
	}
	return n
}

// Get finds by name, id or unique id prefix; "bridge", "host" and "none" always exist.
// Containers lists who is attached now. fault.NotFound: "network x not found".
func (s *Store) Get(name string) (Network, error) {
	r, err := s.find(context.Background(), name)
	if err != nil {
		return Network{}, err
	}
	leases, err := s.leases(r.Network.Name)
	return r.inspect(leases), err
}

// List returns all, the three predefined ones included, sorted by name.
func (s *Store) List() ([]Network, error) {
	if err := s.ensurePredefined(context.Background()); err != nil {
		return nil, err
	}
	all, err := s.records()
	if err != nil {
		return nil, err
	}
	out := make([]Network, 0, len(all))
	for _, r := range all {
		leases, err := s.leases(r.Network.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, r.inspect(leases))
	}
	return out, nil
}

func (s *Store) remove(ctx context.Context, name string) error {
	r, err := s.find(ctx, name)
	if err != nil {
		return err
	}
	if r.predefined() {
		return fault.Deniedf("%s is a pre-defined network and cannot be removed", r.Network.Name)
	}
	return s.wait(ctx, func(last bool) (bool, error) { return s.tryRemove(ctx, r, last) })
}

// dependents refuses to remove a configuration that other networks name.
func (s *Store) dependents(r *record) error {
	if !r.Network.ConfigOnly {
		return nil
	}
	all, err := s.records()
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Network.ConfigFrom.Network == r.Network.Name {
			return fault.Deniedf("configuration network %q is in use by network %s", r.Network.Name, o.Network.Name)
		}
	}
	return nil
}

func (s *Store) tryRemove(ctx context.Context, r *record, last bool) (bool, error) {
	l, err := s.lock(ctx)
	if err != nil {
		return false, err
	}
	defer l.Unlock()
	if err := s.dependents(r); err != nil {
		return false, err
	}
	leases, err := s.reapLeases(r.Network.Name)
	if err != nil {
		return false, err
	}
	if len(leases) > 0 {
		if leaving := !slices.ContainsFunc(leases, func(l *lease) bool { return !l.Leaving }); leaving && !last {
			return false, nil
		}
		return false, fault.Deniedf("error while removing network: network %s has active endpoints (%s)", r.Network.Name, endpointList(leases))
	}
	if err := s.down(r.Network.Name); err != nil {
		return false, err
	}
	// The record goes first: without it the rest is garbage, not half a network.
	if err := os.Remove(s.netFile(r.Network.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	return true, os.RemoveAll(s.netDir(r.Network.Name))
}

func endpointList(leases []*lease) string {
	var out []string
	for _, l := range leases {
		out = append(out, fmt.Sprintf("name:%q id:%q", l.Name, l.EndpointID[:min(12, len(l.EndpointID))]))
	}
	return strings.Join(out, ", ")
}

// wait polls try until it is done, fails, or the patience for owners that have exited ends.
func (s *Store) wait(ctx context.Context, try func(last bool) (bool, error)) error {
	end := time.Now().Add(s.patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		last := time.Now().After(end)
		if done, err := try(last); done || err != nil || last {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}
