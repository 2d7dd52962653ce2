package api

// What answers look like in versions that are not the newest: fields that went are added,
// fields that came are left out. docs of the API: "Engine API version history".

import (
	"net/netip"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"keg/internal/event"
)

// containerRows shapes the list of containers.
func containerRows(list []container.Summary, v version) []container.Summary {
	for i := range list {
		c := &list[i]
		if v < 46 {
			c.HostConfig.Annotations = nil
		}
		if v < 48 {
			c.ImageManifestDescriptor = nil
		}
		if v < 52 {
			c.Health = nil
		}
	}
	return list
}

// inspected is an inspect record with the fields that went with version 1.52.
type inspected struct {
	container.InspectResponse
	NetworkSettings *networkSettings
}

type networkSettings struct {
	container.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []struct{}
	SecondaryIPv6Addresses []struct{}
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             network.HardwareAddr
}

// inspectShape shapes the record of one container.
func inspectShape(c container.InspectResponse, v version) any {
	if c.NetworkSettings == nil {
		c.NetworkSettings = &container.NetworkSettings{}
	}
	if c.NetworkSettings.Ports == nil {
		c.NetworkSettings.Ports = network.PortMap{}
	}
	if v < 48 {
		c.ImageManifestDescriptor = nil
	}
	if v >= 52 {
		return c
	}
	l := &networkSettings{NetworkSettings: *c.NetworkSettings}
	if b := c.NetworkSettings.Networks[network.NetworkBridge]; b != nil {
		l.EndpointID, l.MacAddress = b.EndpointID, b.MacAddress
		l.Gateway, l.IPAddress, l.IPPrefixLen = b.Gateway, b.IPAddress, b.IPPrefixLen
		l.IPv6Gateway, l.GlobalIPv6Address, l.GlobalIPv6PrefixLen = b.IPv6Gateway, b.GlobalIPv6Address, b.GlobalIPv6PrefixLen
	}
	return inspected{c, l}
}

// imageSummary adds what went with version 1.44.
type imageSummary struct {
	dimage.Summary
	VirtualSize *int64 `json:",omitempty"`
}

func summaries(list []dimage.Summary, v version) []imageSummary {
	out := make([]imageSummary, len(list))
	for i, sum := range list {
		sum.RepoTags, sum.RepoDigests = some(sum.RepoTags), some(sum.RepoDigests)
		if v < 43 && len(sum.RepoTags) == 0 && len(sum.RepoDigests) == 0 {
			sum.RepoTags, sum.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		if v < 48 {
			sum.Descriptor = nil
		}
		if v < 51 {
			sum.Containers = -1
		}
		out[i].Summary = sum
		if v < 44 {
			out[i].VirtualSize = &sum.Size
		}
	}
	return out
}

// imageInspected adds what went with versions 1.44, 1.45 and 1.52.
type imageInspected struct {
	dimage.InspectResponse
	Config          *imageConfig
	Parent          string
	Comment         string
	DockerVersion   string
	Author          string
	Container       *string           `json:",omitempty"`
	ContainerConfig *container.Config `json:",omitempty"`
	VirtualSize     *int64            `json:",omitempty"`
}

// imageConfig is a config none of whose fields is left out.
type imageConfig struct {
	*dockerspec.DockerOCIImageConfig
	Cmd        []string
	Entrypoint []string
	Env        []string
	Labels     map[string]string
	OnBuild    []string
	User       string
	Volumes    map[string]struct{}
	WorkingDir string
	*noImageConfig
}

// noImageConfig are fields of containers that no image ever had; version 1.50 ended them.
type noImageConfig struct {
	AttachStderr, AttachStdin, AttachStdout bool
	Domainname, Hostname, Image             string
	OpenStdin, StdinOnce, Tty               bool
}

// imageShape shapes the record of one image.
func imageShape(i dimage.InspectResponse, v version) any {
	if v < 48 {
		i.Descriptor = nil
	}
	if v >= 52 {
		return i
	}
	if i.GraphDriver == nil {
		i.GraphDriver = &storage.DriverData{Name: "overlay"}
	}
	res := imageInspected{InspectResponse: i, Comment: i.Comment, Author: i.Author}
	if c := i.Config; c != nil {
		res.Config = &imageConfig{c, c.Cmd, c.Entrypoint, c.Env, c.Labels, c.OnBuild, c.User, c.Volumes, c.WorkingDir, nil}
		if v < 50 {
			res.Config.noImageConfig = &noImageConfig{}
		}
	}
	if v < 45 {
		res.Container, res.ContainerConfig = new(string), &container.Config{}
	}
	if v < 44 {
		res.VirtualSize = &i.Size
	}
	return res
}

// diskUsage is system/df in the shape of versions before 1.52.
type diskUsage struct {
	LayersSize int64
	Images     []imageSummary      `json:",omitzero"`
	Containers []container.Summary `json:",omitzero"`
	Volumes    []volume.Volume     `json:",omitzero"`
	BuildCache []build.CacheRecord `json:",omitzero"`
	Builder    int64               `json:"BuilderSize"`
}

// bothUsages answers who does not say that he knows the new shape.
type bothUsages struct {
	*diskUsage
	*system.DiskUsage
}

// legacyEvent adds what went with version 1.52.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func legacy(m event.Message) legacyEvent {
	e := legacyEvent{Message: m}
	switch m.Type {
	case events.ContainerEventType:
		e.Status, e.ID, e.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	case events.ImageEventType:
		e.Status, e.ID = string(m.Action), m.Actor.ID
	}
	return e
}
