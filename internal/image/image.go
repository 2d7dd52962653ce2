// Package image holds the values of an image: references, descriptors, manifests,
// configs, platforms. It does no I/O; all packages may import it.
package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"keg/internal/fault"
)

// The OCI image-spec's types under their usual names.
type (
	Descriptor = ocispec.Descriptor
	Manifest   = ocispec.Manifest
	Index      = ocispec.Index
	Platform   = ocispec.Platform
	History    = ocispec.History
	// Config is the image config with Docker's extensions (HEALTHCHECK, ONBUILD, SHELL).
	Config = dockerspec.DockerOCIImage
)

// Media types that appear in manifests. Docker's schema 2 is accepted beside OCI's.
const (
	MediaManifest       = ocispec.MediaTypeImageManifest
	MediaIndex          = ocispec.MediaTypeImageIndex
	MediaConfig         = ocispec.MediaTypeImageConfig
	MediaLayer          = ocispec.MediaTypeImageLayer
	MediaLayerGzip      = ocispec.MediaTypeImageLayerGzip
	MediaLayerZstd      = ocispec.MediaTypeImageLayerZstd
	MediaDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaDockerConfig   = "application/vnd.docker.container.image.v1+json"
	MediaDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	MediaDockerLayerTar = "application/vnd.docker.image.rootfs.diff.tar"
	MediaDockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// Limits on documents that come from outside (security.md IM7).
const (
	MaxManifest = 4 << 20
	MaxConfig   = 8 << 20
)

// IsIndex and IsManifest tell the two kinds of document that a name may point at.
func IsIndex(mediaType string) bool { return mediaType == MediaIndex || mediaType == MediaDockerList }
func IsManifest(mediaType string) bool {
	return mediaType == MediaManifest || mediaType == MediaDockerManifest
}

// Compression of a layer blob, as its media type tells.
type Compression string

const (
	Uncompressed Compression = ""
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
)

// LayerCompression returns how a layer of this media type is compressed; unknown
// types are fault.Unsupported.
func LayerCompression(mediaType string) (Compression, error) {
	switch mediaType {
	case MediaLayer, MediaDockerLayerTar:
		return Uncompressed, nil
	case MediaLayerGzip, MediaDockerLayer:
		return Gzip, nil
	case MediaLayerZstd:
		return Zstd, nil
	}
	return "", fault.Unsupportedf("layer media type %q is not supported", mediaType)
}

// ParseConfig decodes an image config, strictly enough for use: it must be one JSON
// object whose root file system is a list of layers with valid diffIDs.
func ParseConfig(b []byte) (*Config, error) {
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fault.Invalidf("parse image config: %w", err)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, fault.Invalidf("parse image config: diff id %q: %w", d, err)
		}
	}
	return &c, nil
}

// ParseManifest decodes a manifest and checks its digests, sizes and media type.
func ParseManifest(b []byte) (*Manifest, error) {
	var m struct {
		Manifest
		Manifests json.RawMessage `json:"manifests"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fault.Invalidf("parse manifest: %w", err)
	}
	if err := checkDocument(b); err != nil {
		return nil, fault.Invalidf("parse manifest: %w", err)
	}
	// A document that is a manifest and an index at once is ambiguous (CVE-2021-41190).
	if m.Manifests != nil || m.FSLayers != nil {
		return nil, fault.Invalidf("parse manifest: document is ambiguous: it has fields of more than one type")
	}
	if m.MediaType != "" && !IsManifest(m.MediaType) {
		return nil, fault.Invalidf("parse manifest: media type %q is not a manifest", m.MediaType)
	}
	for _, d := range append([]Descriptor{m.Config}, m.Layers...) {
		if err := checkDescriptor(d); err != nil {
			return nil, fault.Invalidf("parse manifest: %w", err)
		}
	}
	return &m.Manifest, nil
}

// ParseIndex decodes an index and checks its descriptors.
func ParseIndex(b []byte) (*Index, error) {
	var x struct {
		Index
		Layers json.RawMessage `json:"layers"`
		Config json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return nil, fault.Invalidf("parse index: %w", err)
	}
	if err := checkDocument(b); err != nil {
		return nil, fault.Invalidf("parse index: %w", err)
	}
	if x.Layers != nil || x.Config != nil {
		return nil, fault.Invalidf("parse index: document is ambiguous: it has fields of more than one type")
	}
	if x.MediaType != "" && !IsIndex(x.MediaType) {
		return nil, fault.Invalidf("parse index: media type %q is not an index", x.MediaType)
	}
	for _, d := range x.Manifests {
		if err := checkDescriptor(d); err != nil {
			return nil, fault.Invalidf("parse index: %w", err)
		}
	}
	return &x.Index, nil
}

func checkDescriptor(d Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("descriptor %s has negative size %d", d.Digest, d.Size)
	}
	return nil
}

// ChainIDs returns the chain id of each layer in a stack of diffIDs, bottom first
// (image-spec config.md "Layer ChainID").
func ChainIDs(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(slices.Clone(diffIDs))
}

// ChainID returns the chain id of the whole stack; "" for an empty one.
func ChainID(diffIDs []digest.Digest) digest.Digest { return identity.ChainID(diffIDs) }

// ShortID returns the 12 hex digits that people see for a digest or a plain id.
func ShortID(id string) string {
	if _, h, ok := strings.Cut(id, ":"); ok {
		id = h
	}
	return id[:min(12, len(id))]
}
