package api

// Attributes of BuildKit's frontend for Dockerfiles, as options of the builder.

import (
	"encoding/csv"
	"net/netip"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"keg/internal/builder"
	"keg/internal/fault"
	"keg/internal/image"
)

// withPrefix are attributes that begin with a prefix, without it.
func withPrefix(attrs map[string]string, prefix string) map[string]string {
	m := map[string]string{}
	for k, v := range attrs {
		if rest, ok := strings.CutPrefix(k, prefix); ok {
			m[rest] = v
		}
	}
	return m
}

// options reads the attributes of the Dockerfile's frontend (moby/buildkit frontend/dockerui/config.go).
func frontendOptions(a map[string]string, entitlements []string) (o builder.Options, err error) {
	o = builder.Options{Target: a["target"], Labels: withPrefix(a, "label:"), Args: map[string]*string{}, Pull: a["image-resolve-mode"] == "pull"}
	for k, v := range withPrefix(a, "build-arg:") {
		o.Args[k] = &v
	}
	if v, ok := a["no-cache"]; ok {
		if o.NoCache = v == ""; !o.NoCache {
			o.NoCacheFilter = strings.Split(v, ",")
		}
	}
	switch o.Network = a["force-network-mode"]; o.Network {
	case "host", "none", "":
	case "sandbox":
		o.Network = ""
	default:
		return o, fault.Invalidf("invalid netmode %s", o.Network)
	}
	for _, name := range entitlements {
		switch name {
		case "security.insecure":
			o.Insecure = true
		case "network.host":
			o.HostNetwork = true
		}
	}
	if o.ExtraHosts, err = extraHosts(a["add-hosts"]); err != nil {
		return o, err
	}
	if o.Ulimits, err = ulimits(a["ulimit"]); err != nil {
		return o, err
	}
	o.Limits.CgroupParent, o.Limits.CpusetCpus, o.Limits.CpusetMems = a["cgroup-parent"], a["cpusetcpus"], a["cpusetmems"]
	for key, p := range map[string]*int64{"shm-size": &o.ShmSize, "memory": &o.Limits.Memory, "memswap": &o.Limits.MemorySwap,
		"cpushares": &o.Limits.CPUShares, "cpuperiod": &o.Limits.CPUPeriod, "cpuquota": &o.Limits.CPUQuota} {
		if v := a[key]; v != "" {
			if *p, err = strconv.ParseInt(v, 10, 64); err != nil {
				return o, fault.Invalidf("invalid %s value: %s", key, v)
			}
		}
	}
	return o, nil
}

// platforms reads a list of them.
func platforms(list string) (ps []image.Platform, err error) {
	for name := range strings.SplitSeq(list, ",") {
		if name == "" {
			continue
		}
		p, err := image.ParsePlatform(name)
		if err != nil {
			return nil, fault.Invalidf("failed to parse target platform %s: %w", name, err)
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// provenance reads what is to be attested: "", "min" or "max". What buildx asks for when its user asks for nothing
// (inline-only) is left out, so that a plain build makes a plain image.
func provenance(attrs map[string]string) (string, error) {
	for kind, v := range withPrefix(attrs, "attest:") {
		switch kind {
		case "provenance":
			fields := map[string]string{"mode": "min"}
			for f := range strings.SplitSeq(v, ",") {
				key, value, _ := strings.Cut(f, "=")
				fields[key] = value
			}
			switch {
			case fields["inline-only"] == "true", fields["disabled"] == "true":
			case fields["mode"] == "min" || fields["mode"] == "max":
				return fields["mode"], nil
			default:
				return "", fault.Invalidf("invalid mode %q of the provenance: want min or max", fields["mode"])
			}
		case "sbom":
			return "", fault.Unsupportedf("keg has no SBOM generator: leave --sbom out, and scan the image with a tool of your choice")
		}
	}
	return "", nil
}

// fieldsOf reads a list in the form of CSV.
func fieldsOf(list string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	return csv.NewReader(strings.NewReader(list)).Read()
}

// extraHosts reads host=ip,host=ip.
func extraHosts(list string) (hosts []string, err error) {
	fields, err := fieldsOf(list)
	if err != nil {
		return nil, fault.Invalidf("failed to parse additional hosts: %w", err)
	}
	for _, f := range fields {
		name, ip, ok := strings.Cut(f, "=")
		if _, err := netip.ParseAddr(ip); !ok || err != nil {
			return nil, fault.Invalidf("failed to parse additional hosts: invalid key-value pair %s", f)
		}
		hosts = append(hosts, name+":"+ip)
	}
	return hosts, nil
}

func ulimits(list string) (us []builder.Ulimit, err error) {
	fields, err := fieldsOf(list)
	if err != nil {
		return nil, fault.Invalidf("failed to parse ulimit: %w", err)
	}
	for _, f := range fields {
		u, err := units.ParseUlimit(f)
		if err != nil {
			return nil, fault.Invalidf("failed to parse ulimit: %w", err)
		}
		us = append(us, builder.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return us, nil
}
