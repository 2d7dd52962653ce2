// Values of flags: Docker's types, with Docker's names in help and Docker's errors.

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"keg/internal/engine"
)

// listValue appends every occurrence of its flag, checked and perhaps rewritten.
type listValue struct {
	values *[]string
	check  func(string) (string, error)
}

func newList(p *[]string, check func(string) (string, error)) *listValue {
	return &listValue{p, check}
}

func (l *listValue) Type() string { return "list" }
func (l *listValue) String() string {
	if len(*l.values) == 0 {
		return ""
	}
	return fmt.Sprint(*l.values)
}

func (l *listValue) Set(s string) (err error) {
	if l.check != nil {
		if s, err = l.check(s); err != nil {
			return err
		}
	}
	*l.values = append(*l.values, s)
	return nil
}

// mapValue collects key=value.
type mapValue struct {
	values *map[string]string
	check  func(string) (string, error)
}

func newMap(p *map[string]string, check func(string) (string, error)) *mapValue {
	*p = map[string]string{}
	return &mapValue{p, check}
}

func (m *mapValue) Type() string   { return "map" }
func (m *mapValue) String() string { return fmt.Sprint(*m.values) }

func (m *mapValue) Set(s string) (err error) {
	if m.check != nil {
		if s, err = m.check(s); err != nil {
			return err
		}
	}
	k, v, _ := strings.Cut(s, "=")
	(*m.values)[k] = v
	return nil
}

// bytesValue is a size with a unit: 512m, 1g. With unlimited, -1 is allowed.
type bytesValue struct {
	p         *int64
	unlimited bool
}

func (b *bytesValue) Type() string { return "bytes" }
func (b *bytesValue) String() string {
	if b.p == nil || *b.p == 0 {
		return "0"
	}
	return units.BytesSize(float64(*b.p))
}

func (b *bytesValue) Set(s string) (err error) {
	if b.unlimited && s == "-1" {
		*b.p = -1
		return nil
	}
	*b.p, err = units.RAMInBytes(s)
	return err
}

// cpusValue is a number of CPUs in units of 1e-9.
type cpusValue struct{ p *int64 }

func (c *cpusValue) Type() string { return "decimal" }
func (c *cpusValue) String() string {
	if c.p == nil || *c.p == 0 {
		return ""
	}
	return big.NewRat(*c.p, 1e9).FloatString(3)
}

func (c *cpusValue) Set(s string) error {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return fmt.Errorf("failed to parse %v as a rational number", s)
	}
	r.Mul(r, big.NewRat(1e9, 1))
	if !r.IsInt() {
		return errors.New("value is too precise")
	}
	*c.p = r.Num().Int64()
	return nil
}

// ulimitValue keeps the last limit of each name.
type ulimitValue struct{ m map[string]*container.Ulimit }

func (u *ulimitValue) Type() string { return "ulimit" }
func (u *ulimitValue) String() string {
	out := []string{}
	for _, l := range u.list() {
		out = append(out, l.String())
	}
	return fmt.Sprint(out)
}

func (u *ulimitValue) Set(s string) error {
	l, err := units.ParseUlimit(s)
	if err != nil {
		return err
	}
	if u.m == nil {
		u.m = map[string]*container.Ulimit{}
	}
	u.m[l.Name] = l
	return nil
}

func (u *ulimitValue) list() []*container.Ulimit {
	return slices.SortedFunc(maps.Values(u.m), func(a, b *container.Ulimit) int { return strings.Compare(a.Name, b.Name) })
}

// umaskValue is octal; nil when not given.
type umaskValue struct{ p **uint32 }

func (u *umaskValue) Type() string { return "umask" }
func (u *umaskValue) String() string {
	if u.p == nil || *u.p == nil {
		return ""
	}
	return fmt.Sprintf("%#04o", **u.p)
}

func (u *umaskValue) Set(s string) error {
	v, err := strconv.ParseUint(s, 8, 32)
	if err != nil {
		return err
	}
	m := uint32(v)
	*u.p = &m
	return nil
}

// filterValue is --filter name=value, repeated.
type filterValue struct{ f engine.Filter }

func (f *filterValue) Type() string { return "filter" }
func (f *filterValue) String() string {
	if f == nil || len(f.f) == 0 {
		return ""
	}
	b, _ := json.Marshal(f.f)
	return string(b)
}

func (f *filterValue) Set(s string) error {
	if s == "" {
		return nil
	}
	name, v, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("bad format of filter (expected name=value)")
	}
	name, v = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(v)
	if f.f == nil {
		f.f = engine.Filter{}
	}
	if !slices.Contains(f.f[name], v) {
		f.f[name] = append(f.f[name], v)
	}
	return nil
}

func checkIP(s string) (string, error) {
	if ip := net.ParseIP(strings.TrimSpace(s)); ip != nil {
		return ip.String(), nil
	}
	return "", fmt.Errorf("IP address is not correctly formatted: %s", s)
}

func checkDNSSearch(s string) (string, error) {
	if s = strings.Trim(s, " "); s == "." {
		return s, nil
	}
	bad := fmt.Errorf("%s is not a valid domain", s)
	s = strings.TrimSuffix(strings.TrimSpace(s), ".")
	if !strings.ContainsFunc(s, letter) || len(s) >= 255 {
		return "", bad
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' ||
			strings.ContainsFunc(part, func(r rune) bool { return !letter(r) && (r < '0' || r > '9') && r != '-' }) {
			return "", bad
		}
	}
	return s, nil
}

func letter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }

func checkLabel(s string) (string, error) {
	key, _, _ := strings.Cut(s, "=")
	key = strings.TrimLeft(key, " \t")
	if key == "" {
		return "", fmt.Errorf("invalid label '%s': empty name", s)
	}
	if strings.ContainsAny(key, " \t") {
		return "", fmt.Errorf("label '%s' contains whitespaces", key)
	}
	return s, nil
}

func checkSysctl(s string) (string, error) {
	k, _, ok := strings.Cut(s, "=")
	if ok {
		switch {
		case strings.HasPrefix(k, "net."), strings.HasPrefix(k, "fs.mqueue."):
			return s, nil
		}
		switch k {
		case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
			"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
			return s, nil
		}
	}
	return "", fmt.Errorf("sysctl '%s' is not allowed", s)
}

func checkAttach(s string) (string, error) {
	switch l := strings.ToLower(s); l {
	case "stdin", "stdout", "stderr":
		return l, nil
	}
	return s, errors.New("valid streams are STDIN, STDOUT and STDERR")
}

func checkLink(s string) (string, error) {
	if s == "" {
		return "", errors.New("empty string specified for links")
	}
	if strings.Count(s, ":") > 1 {
		return "", errors.New("bad format for links: " + s)
	}
	return s, nil
}

func checkExtraHost(s string) (string, error) {
	host, ip, ok := strings.Cut(s, "=")
	if !ok {
		host, ip, ok = strings.Cut(s, ":")
	}
	if !ok || host == "" || strings.Contains(host, ":") {
		return "", fmt.Errorf("bad format for add-host: %q", s)
	}
	if ip != "host-gateway" {
		if len(ip) > 2 && ip[0] == '[' && ip[len(ip)-1] == ']' {
			ip = ip[1 : len(ip)-1]
		}
		if net.ParseIP(ip) == nil {
			return "", fmt.Errorf("invalid IP address in add-host: %q", ip)
		}
	}
	return host + ":" + ip, nil
}

// checkDeviceRule accepts "TYPE MAJOR:MINOR ACCESS" of the devices cgroup.
func checkDeviceRule(s string) (string, error) {
	number := func(n string) bool { return n == "*" || n != "" && strings.Trim(n, "0123456789") == "" }
	if f := strings.Split(s, " "); len(f) == 3 && len(f[0]) == 1 && strings.Contains("acb", f[0]) {
		major, minor, ok := strings.Cut(f[1], ":")
		if ok && number(major) && number(minor) && f[2] != "" && len(f[2]) <= 3 && strings.Trim(f[2], "rwm") == "" {
			return s, nil
		}
	}
	return s, fmt.Errorf("invalid device cgroup format '%s'", s)
}

// keyValues turns k=v strings into a map; a later one wins.
func keyValues(ss []string) map[string]string {
	m := make(map[string]string, len(ss))
	for _, s := range ss {
		k, v, _ := strings.Cut(s, "=")
		m[k] = v
	}
	return m
}
