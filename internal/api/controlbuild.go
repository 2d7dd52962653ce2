package api

// The build behind a reference: attributes of a frontend become options of the builder, the exporters of Control/Solve its
// outputs.

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"keg/internal/buildcontrol"
	"keg/internal/builder"
	"keg/internal/buildsession"
	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/grpc"
	"keg/internal/image"
)

// reference is what LLBBridge/Solve gives: a build that is made when somebody needs it.
type reference struct {
	id    string
	solve *solve
	front *buildcontrol.Frontend
}

func (c *control) reference(v *solve, f *buildcontrol.Frontend) (*reference, error) {
	if f.Definition != nil {
		return nil, errLLB()
	}
	switch {
	case f.Name == "dockerfile.v0":
	case f.Name == "gateway.v0" && dockersFrontend(f.Attrs["source"]):
	case f.Name == "gateway.v0":
		return nil, fault.Unsupportedf("the frontend %s is not supported: keg builds Dockerfiles itself", f.Attrs["source"])
	default:
		return nil, fault.NotFoundf("failed to find frontend: %s", f.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.references) >= maxReferences {
		return nil, fault.Unavailablef("the client has %d references; it has to connect anew", maxReferences)
	}
	r := &reference{rand.Text(), v, f}
	c.references[r.id] = r
	return r, nil
}

// dockersFrontend: keg's own does what that image would do.
func dockersFrontend(source string) bool {
	ref, err := image.ParseReference(source)
	return err == nil && ref.Registry == image.DefaultRegistry && (ref.Repository == "docker/dockerfile" || ref.Repository == "docker/dockerfile-upstream")
}

func (c *control) frontend(st *grpc.Stream, b []byte) ([]byte, error) {
	f, err := buildcontrol.ParseFrontend(b)
	if err != nil {
		return nil, err
	}
	v, err := c.named(st)
	if err != nil {
		return nil, err
	}
	r, err := c.reference(v, f)
	if err != nil {
		return nil, err
	}
	return buildcontrol.Result{Ref: r.id}.Encode(), nil
}

// export makes the build and delivers it.
func (c *control) export(ctx context.Context, v *solve, r *reference) ([]byte, error) {
	dir, remove, err := makeScratch(c.s.o.Scratch)
	if err != nil {
		return nil, err
	}
	defer remove()
	b := &controlBuild{s: c.s, solve: v, attrs: r.front.Attrs, dir: dir, trace: newTrace(v.Ref, func(t buildsession.Trace) { v.feed.put(ctx, t) })}
	built, err := b.run(ctx)
	if err != nil {
		return nil, statusOfBuild(err)
	}
	response, err := b.response(built)
	return buildcontrol.Solved(response), err
}

// controlBuild is a build under way.
type controlBuild struct {
	s     *Server
	solve *solve
	attrs map[string]string
	dir   string
	trace *trace
}

func (b *controlBuild) run(ctx context.Context) (*engine.Built, error) {
	session, err := b.s.sessions.get(ctx, b.solve.Session)
	if err != nil {
		return nil, err
	}
	q := engine.BuildRequest{}
	if q.Options, err = b.options(); err != nil {
		return nil, err
	}
	if q.Outputs, err = b.outputs(); err != nil {
		return nil, err
	}
	q.NoImage = len(q.Outputs) == 0
	q.Caller = caller{session}
	if err := b.contexts(ctx, session, &q.Options); err != nil {
		return nil, err
	}
	e := b.s.engine
	if b.s.o.Asking != nil {
		e = b.s.o.Asking(caller{session}.account)
	}
	return e.BuildTo(ctx, q, b.trace.event)
}

// contexts has the client send the Dockerfile and the context.
func (b *controlBuild) contexts(ctx context.Context, session *buildsession.Session, o *builder.Options) (err error) {
	from := sources{definition: orElse(b.attrs["dockerfilekey"], "dockerfile"), context: orElse(b.attrs["contextkey"], "context")}
	if from.definitionOf, err = b.sessionOf(ctx, from.definition, session); err != nil {
		return err
	}
	if from.contextOf, err = b.sessionOf(ctx, from.context, session); err != nil {
		return err
	}
	return fetchSession(ctx, from, b.dir, orElse(b.attrs["filename"], "Dockerfile"), o, b.trace)
}

// sessionOf is the session that has a directory: bake has one for what several builds share.
func (b *controlBuild) sessionOf(ctx context.Context, dir string, own *buildsession.Session) (*buildsession.Session, error) {
	id := b.attrs["local-sessionid:"+dir]
	if id == "" || id == own.ID {
		return own, nil
	}
	return b.s.sessions.get(ctx, id)
}

func orElse(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

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
func (b *controlBuild) options() (o builder.Options, err error) {
	a := b.attrs
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
	for _, name := range b.solve.Entitlements {
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
	if v := a["platform"]; v != "" {
		p, err := image.ParsePlatform(v)
		if err != nil {
			return o, fault.Invalidf("failed to parse target platform %s: %w", v, err)
		}
		o.Platform = &p
	}
	return o, nil
}

// extraHosts reads host=ip,host=ip.
func extraHosts(list string) (hosts []string, err error) {
	for pair := range strings.SplitSeq(list, ",") {
		if pair == "" {
			continue
		}
		name, ip, ok := strings.Cut(strings.Trim(pair, `"`), "=")
		if !ok {
			return nil, fault.Invalidf("failed to parse additional hosts: invalid key-value pair %s", pair)
		}
		hosts = append(hosts, name+":"+ip)
	}
	return hosts, nil
}

func ulimits(list string) (us []builder.Ulimit, err error) {
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		// One value of two parts is quoted: "nofile=1:2" has no comma, so that a list needs no more than this.
		u, err := units.ParseUlimit(strings.Trim(s, `"`))
		if err != nil {
			return nil, fault.Invalidf("failed to parse ulimit: %w", err)
		}
		us = append(us, builder.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return us, nil
}

// outputs are the exporters.
func (b *controlBuild) outputs() (outs []engine.Output, err error) {
	for _, x := range b.solve.Exporters {
		o := engine.Output{}
		switch x.Type {
		case "moby", "image":
			o.Type = engine.OutputImage
		default:
			return nil, fault.Unsupportedf("exporter %q could not be found", x.Type)
		}
		for name := range strings.SplitSeq(x.Attrs["name"], ",") {
			if name == "" {
				continue
			}
			ref, err := image.ParseReference(name)
			if err != nil {
				return nil, fault.Invalidf("invalid tag %q: %w", name, err)
			}
			o.Names = append(o.Names, ref)
		}
		if v := x.Attrs["push"]; v != "" {
			if o.Push, err = strconv.ParseBool(v); err != nil {
				return nil, fault.Invalidf("non-bool value specified for push")
			}
		}
		outs = append(outs, o)
	}
	return outs, nil
}

// response is what buildx writes to --metadata-file and --iidfile. An image is known by its id, as in docker images; what a
// registry has by its digest there.
func (b *controlBuild) response(r *engine.Built) (map[string]string, error) {
	if r.ConfigID == "" {
		return nil, nil
	}
	desc, err := json.Marshal(r.Manifest)
	if err != nil {
		return nil, err
	}
	id := r.ConfigID
	m := map[string]string{"containerimage.digest": id.String(), "containerimage.config.digest": id.String(),
		"containerimage.descriptor": base64.StdEncoding.EncodeToString(desc)}
	for _, name := range slices.Sorted(maps.Keys(r.Pushed)) {
		m["containerimage.digest"] = r.Pushed[name].String()
	}
	var names []string
	for _, x := range b.solve.Exporters {
		if n := x.Attrs["name"]; n != "" {
			for name := range strings.SplitSeq(n, ",") {
				if ref, err := image.ParseReference(name); err == nil {
					names = append(names, ref.String())
				}
			}
		}
	}
	if len(names) > 0 {
		m["image.name"] = strings.Join(names, ",")
	}
	return m, nil
}

// statusOfBuild has the place of an error in the Dockerfile with it, which clients show (moby/buildkit solver/errdefs).
func statusOfBuild(err error) error {
	var e *builder.Error
	if !errors.As(err, &e) || e.Line == 0 {
		return err
	}
	type position struct {
		Line int `json:"line"`
	}
	detail, jerr := json.Marshal(map[string]any{
		"info":   map[string]any{"filename": e.File, "data": e.Text, "language": "Dockerfile"},
		"ranges": []any{map[string]any{"start": position{e.Line}, "end": position{e.Last}}},
	})
	if jerr != nil {
		return err
	}
	s := *grpc.StatusOf(err)
	s.Details = append(s.Details, grpc.AppendText(grpc.AppendText(nil, 1, "github.com/moby/buildkit/errdefs.Source+json"), 2, detail))
	return &s
}
