package engine

import (
	"os"
	"strings"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/fault"
)

// checkNetMode refuses what has no meaning in a network that is another's, in Docker's words.
func checkNetMode(c *container.Config, h *container.HostConfig) error {
	mode := h.NetworkMode
	if mode.IsContainer() && mode.ConnectedContainer() == "" {
		return fault.Invalidf(`invalid container format container:<name|id>`)
	}
	joined := mode.IsContainer()
	for _, x := range []struct {
		bad bool
		why string
	}{
		{joined && c.Hostname != "", "hostname and the network mode"},
		{mode.IsHost() && len(h.Links) > 0, "host type networking can't be used with links. This would result in undefined behavior"},
		{joined && len(h.Links) > 0, "container type network can't be used with links. This would result in undefined behavior"},
		{joined && len(h.DNS) > 0, "dns and the network mode"},
		{joined && len(h.ExtraHosts) > 0, "custom host-to-IP mapping and the network mode"},
		{joined && (len(h.PortBindings) > 0 || h.PublishAllPorts), "port publishing and the container type network mode"},
		{joined && len(c.ExposedPorts) > 0, "port exposing and the container type network mode"},
	} {
		if x.bad {
			return fault.Invalidf("conflicting options: %s", x.why)
		}
	}
	return nil
}

// joinNetMode names the container whose namespaces are joined by its id, which a rename does not
// change, and takes over its host name; in the host's network the name is the host's.
func (e *Engine) joinNetMode(r *ctr.Record) error {
	h := r.Host
	if h.NetworkMode.IsHost() && r.Config.Hostname == "" {
		r.Config.Hostname, _ = os.Hostname()
	}
	if h.NetworkMode.IsContainer() {
		other, err := e.containers.Find(h.NetworkMode.ConnectedContainer())
		if err != nil {
			return err
		}
		h.NetworkMode = container.NetworkMode("container:" + other.ID)
		r.Config.Hostname, r.Config.Domainname = other.Config.Hostname, other.Config.Domainname
	}
	if h.PidMode.IsContainer() {
		other, err := e.containers.Find(h.PidMode.Container())
		if err != nil {
			return fault.As(fault.Invalid, err)
		}
		h.PidMode = container.PidMode("container:" + other.ID)
	}
	if h.IpcMode.IsContainer() {
		other, err := e.containers.Find(h.IpcMode.Container())
		if err != nil {
			return fault.As(fault.Invalid, err)
		}
		h.IpcMode = container.IpcMode("container:" + other.ID)
	}
	return e.checkLinks(h)
}

// checkLinks: what a legacy link names must exist.
func (e *Engine) checkLinks(h *container.HostConfig) error {
	if mode := h.NetworkMode; mode != "" && !mode.IsBridge() && !mode.IsDefault() {
		return nil
	}
	for _, l := range h.Links {
		if _, err := e.containers.Find(linkTarget(l)); err != nil {
			return fault.Invalidf("could not get container for %s: %w", linkTarget(l), err)
		}
	}
	return nil
}

func linkTarget(link string) string {
	name, _, _ := strings.Cut(link, ":")
	return strings.TrimPrefix(name, "/")
}
