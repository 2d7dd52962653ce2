// Destinations and platforms of keg build.

package cli

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"keg/internal/builder"
	"keg/internal/engine"
	"keg/internal/image"
)

// request completes the options with platforms, outputs and attestations.
func (a *app) buildRequest(ctx context.Context, dir string, o *buildFlags) (q engine.BuildRequest, clean func(), err error) {
	q.Options, clean, err = a.buildOptions(ctx, dir, o)
	if err != nil {
		return q, clean, err
	}
	if o.reproducible || o.verify {
		if err := a.fixTime(ctx, &q.Options, o.reproducible); err != nil {
			return q, clean, err
		}
	}
	for _, s := range o.platforms {
		for name := range strings.SplitSeq(s, ",") {
			p, err := image.ParsePlatform(strings.TrimSpace(name))
			if err != nil {
				return q, clean, err
			}
			q.Platforms = append(q.Platforms, p)
		}
	}
	if len(q.Platforms) > 0 {
		q.Platform = &q.Platforms[0]
	}
	for _, s := range o.outputs {
		out, err := a.parseOutput(s)
		if err != nil {
			return q, clean, fmt.Errorf("invalid --output %q: %w", s, err)
		}
		q.Outputs = append(q.Outputs, out)
	}
	if o.load && len(q.Outputs) > 0 && !slices.ContainsFunc(q.Outputs, func(x engine.Output) bool {
		return x.Type == engine.OutputImage || x.Type == engine.OutputRegistry || x.Type == engine.OutputDocker && x.Open == nil
	}) {
		q.Outputs = append(q.Outputs, engine.Output{Type: engine.OutputImage})
	}
	if o.push {
		q.Outputs = pushed(q.Outputs)
	}
	for _, s := range o.cacheFrom {
		c, err := parseCache(s, "src")
		if err != nil {
			return q, clean, fmt.Errorf("invalid --cache-from %q: %w", s, err)
		}
		q.CacheFrom = append(q.CacheFrom, c)
	}
	for _, s := range o.cacheTo {
		c, err := parseCache(s, "dest")
		if err != nil {
			return q, clean, fmt.Errorf("invalid --cache-to %q: %w", s, err)
		}
		q.CacheTo = append(q.CacheTo, c)
	}
	q.Provenance, err = o.attested()
	return q, clean, err
}

// fixTime sets SOURCE_DATE_EPOCH: as the caller has it, else to the commit's time. A comparison of two builds can
// do with the time of now; what is to be the same on another day cannot.
func (a *app) fixTime(ctx context.Context, o *builder.Options, strict bool) error {
	const name = "SOURCE_DATE_EPOCH"
	if _, given := o.Args[name]; given || a.env[name] != "" {
		return nil
	}
	t, ok := builder.CommitTime(ctx, o.Context)
	if !ok && strict {
		return fmt.Errorf("--reproducible needs a time: build in a clean git checkout, or set SOURCE_DATE_EPOCH to seconds since 1970")
	}
	if !ok {
		t = a.now()
	}
	v := strconv.FormatInt(t.Unix(), 10)
	o.Args[name] = &v
	return nil
}

// pushed adds the push that --push asks for.
func pushed(outs []engine.Output) []engine.Output {
	for i := range outs {
		if outs[i].Type == engine.OutputImage || outs[i].Type == engine.OutputRegistry {
			outs[i].Push = true
			return outs
		}
	}
	return append(outs, engine.Output{Type: engine.OutputRegistry, Push: true})
}

// parseOutput reads type=TYPE[,KEY=VALUE...], or a directory, or "-" for a tar on stdout.
func (a *app) parseOutput(s string) (out engine.Output, err error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return out, err
	}
	if len(fields) == 1 && !strings.HasPrefix(s, "type=") {
		if s == "-" {
			return engine.Output{Type: engine.OutputTar, Open: a.stdoutFile}, nil
		}
		return engine.Output{Type: engine.OutputLocal, Dir: absolute(s)}, nil
	}
	dest, packed := "", true
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return out, fmt.Errorf("%q is not KEY=VALUE", f)
		}
		switch k = strings.ToLower(strings.TrimSpace(k)); k {
		case "type":
			out.Type = v
		case "dest":
			dest = v
		case "name":
			for name := range strings.SplitSeq(v, ",") {
				ref, err := image.ParseReference(name)
				if err != nil {
					return out, err
				}
				out.Names = append(out.Names, ref)
			}
		case "push":
			out.Push, err = strconv.ParseBool(v)
		case "tar":
			packed, err = strconv.ParseBool(v)
		case "platform-split":
			var split bool
			split, err = strconv.ParseBool(v)
			out.Merge = !split
		case "compression":
			if out.Compression = image.Compression(v); v != "gzip" && v != "zstd" {
				err = fmt.Errorf("unknown compression %q: want gzip or zstd", v)
			}
		case "oci-mediatypes", "unpack", "store", "force-compression", "compression-level", "rewrite-timestamp", "buildinfo": // as keg does anyway
		default:
			return out, fmt.Errorf("unknown key %q: want type, dest, name, push, tar, compression or platform-split", k)
		}
		if err != nil {
			return out, fmt.Errorf("%s: %w", k, err)
		}
	}
	return out, a.destination(&out, dest, packed)
}

// parseCache reads type=TYPE,KEY=VALUE..., or the name of an image. path is the key of a directory.
func parseCache(s, path string) (c engine.Cache, err error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return c, err
	}
	ref := ""
	if len(fields) == 1 && !strings.Contains(s, "=") {
		c.Type, ref, fields = "registry", s, nil
	}
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		switch strings.ToLower(strings.TrimSpace(k)) {
		case "type":
			c.Type = v
		case "ref":
			ref = v
		case path:
			c.Dir = absolute(v)
		case "mode":
			if c.Max = v == "max"; v != "max" && v != "min" {
				return c, fmt.Errorf("unknown mode %q: want min or max", v)
			}
		case "compression":
			if c.Compression = image.Compression(v); v != "gzip" && v != "zstd" {
				return c, fmt.Errorf("unknown compression %q: want gzip or zstd", v)
			}
		case "ignore-error":
			if c.IgnoreError, err = strconv.ParseBool(v); err != nil {
				return c, fmt.Errorf("ignore-error: %w", err)
			}
		case "oci-mediatypes", "image-manifest", "force-compression", "compression-level", "digest", "tag": // as keg does anyway
		default:
			return c, fmt.Errorf("unknown key %q: want type, ref, %s, mode, compression or ignore-error", k, path)
		}
	}
	if ref != "" {
		if c.Ref, err = image.ParseReference(ref); err != nil {
			return c, err
		}
	}
	return c, complete(c, path, ref)
}

// complete: each type has what it needs.
func complete(c engine.Cache, path, ref string) error {
	switch {
	case c.Type == "inline" && path == "dest", c.Type == "registry" && ref != "", c.Type == "local" && c.Dir != "":
		return nil
	case c.Type == "registry":
		return fmt.Errorf("type=registry needs ref=NAME")
	case c.Type == "local":
		return fmt.Errorf("type=local needs %s=DIRECTORY", path)
	}
	return fmt.Errorf("unknown type %q: want registry, local or inline", c.Type)
}

// destination checks what a type needs.
func (a *app) destination(out *engine.Output, dest string, packed bool) error {
	switch out.Type {
	case engine.OutputImage, engine.OutputRegistry:
		if dest != "" {
			return fmt.Errorf("type=%s has no dest: an image has names", out.Type)
		}
	case engine.OutputLocal:
		if dest == "" {
			return fmt.Errorf("type=local needs dest=DIRECTORY")
		}
		out.Dir = absolute(dest)
	case engine.OutputDocker:
		if dest != "" {
			out.Open = a.fileOrStdout(dest)
		}
	case engine.OutputTar, engine.OutputOCI:
		switch {
		case !packed && out.Type == engine.OutputOCI && dest != "":
			out.Dir = absolute(dest)
		case !packed:
			return fmt.Errorf("tar=false is for type=oci with dest=DIRECTORY")
		default:
			out.Open = a.fileOrStdout(dest)
		}
	default:
		return fmt.Errorf("unknown type %q: want image, registry, local, tar, oci or docker", out.Type)
	}
	return nil
}

func absolute(p string) string {
	abs, err := filepath.Abs(p)
	if err != nil {
		return p
	}
	return abs
}

// fileOrStdout opens the destination of an archive when it is written.
func (a *app) fileOrStdout(dest string) func() (io.WriteCloser, error) {
	if dest == "" || dest == "-" {
		return a.stdoutFile
	}
	return func() (io.WriteCloser, error) {
		if st, err := os.Stat(dest); err == nil && st.IsDir() {
			return nil, fmt.Errorf("destination %s is a directory; name a file", dest)
		}
		return os.Create(dest)
	}
}

// stdoutFile is standard output, when that is no terminal.
func (a *app) stdoutFile() (io.WriteCloser, error) {
	if a.outTTY {
		return nil, fmt.Errorf("dest is required: refusing to write an archive to a terminal")
	}
	return keepOpen{a.out}, nil
}

type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// attested reads --provenance, --sbom and --attest.
func (o *buildFlags) attested() (provenance string, err error) {
	provenance = o.provenance
	sbom := o.sbom
	for _, s := range o.attests {
		p := keyValues(strings.Split(s, ","))
		on := p["disabled"] != "true"
		switch {
		case p["type"] == "provenance" && on:
			provenance = "mode=" + firstOf(p["mode"], "min")
		case p["type"] == "provenance":
			provenance = "false"
		case p["type"] == "sbom" && on:
			sbom = "true"
		case p["type"] == "sbom":
		default:
			return "", fmt.Errorf("invalid --attest %q: want type=provenance", s)
		}
	}
	if sbom != "" && sbom != "false" && sbom != "disabled=true" {
		return "", fmt.Errorf("keg has no SBOM generator: leave --sbom out, and scan the image with a tool of your choice")
	}
	switch provenance {
	case "", "false", "disabled=true":
		return "", nil
	case "true", "mode=min", "min":
		return "min", nil
	case "mode=max", "max":
		return "max", nil
	}
	return "", fmt.Errorf("invalid --provenance %q: want true, false, mode=min or mode=max", o.provenance)
}
