package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	dregistry "github.com/moby/moby/api/types/registry"

	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
)

func (s *Server) imageList(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	o := engine.ImageListOptions{All: r.flag("all"), Filter: f, Manifests: r.version >= 47 && r.flag("manifests")}
	if r.version >= 54 && r.flag("identity") && !o.Manifests {
		return fault.Invalidf("conflicting options: identity requires manifests=1")
	}
	if r.version < 41 {
		o.Ref = r.query.Get("filter")
	}
	list, err := s.engine.Images(r.Context(), o)
	return w.ok(summaries(list, r.version), err)
}

func (s *Server) imageInspect(w *reply, r *request) error {
	i, err := s.engine.InspectImage(r.Context(), r.name())
	if err != nil {
		return err
	}
	if r.version >= 49 && r.query.Get("platform") != "" {
		if r.flag("manifests") {
			return fault.Invalidf("conflicting options: manifests and platform options cannot both be set")
		}
		if err := r.providesPlatform(i); err != nil {
			return err
		}
	}
	if r.version >= 48 && r.flag("manifests") {
		if i.Manifests, err = s.manifestsOf(r, i.ID); err != nil {
			return err
		}
	} else {
		// Docker has it where the image store is containerd's, for a sign of that: there the id is this digest, here the config's.
		i.Descriptor = nil
	}
	i.RepoTags, i.RepoDigests = some(i.RepoTags), some(i.RepoDigests)
	return w.json(http.StatusOK, imageShape(i, r.version))
}

// providesPlatform refuses an image that is not for the platform of the query.
func (r *request) providesPlatform(i dimage.InspectResponse) error {
	p, err := r.platform()
	if err != nil || p == nil {
		return err
	}
	have := image.Platform{OS: i.Os, Architecture: i.Architecture, Variant: i.Variant}
	if image.Matches(*p, have) {
		return nil
	}
	return fault.NotFoundf("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
		r.name(), image.FormatPlatform(have), image.FormatPlatform(*p))
}

func (s *Server) manifestsOf(r *request, id string) ([]dimage.ManifestSummary, error) {
	list, err := s.engine.Images(r.Context(), engine.ImageListOptions{All: true, Manifests: true})
	for _, sum := range list {
		if sum.ID == id {
			return sum.Manifests, err
		}
	}
	return nil, err
}

func (s *Server) imageHistory(w *reply, r *request) error {
	if r.version >= 48 && r.query.Get("platform") != "" {
		i, err := s.engine.InspectImage(r.Context(), r.name())
		if err != nil {
			return err
		}
		if err := r.providesPlatform(i); err != nil {
			return err
		}
	}
	h, err := s.engine.History(r.Context(), r.name())
	return w.ok(some(h), err)
}

func (s *Server) imageAttestations(w *reply, r *request) error {
	if len(r.query["platform"]) > 1 {
		return fault.Invalidf("only one platform value is currently supported")
	}
	p, err := r.platform()
	if err != nil {
		return err
	}
	o := engine.AttestationOptions{Platform: p, Statements: r.flag("statement")}
	for _, t := range r.query["type"] {
		if t = strings.TrimSpace(t); t != "" {
			o.Types = append(o.Types, t)
		}
	}
	list, err := s.engine.Attestations(r.Context(), r.name(), o)
	return w.ok(some(list), err)
}

func (s *Server) imageTag(w *reply, r *request) error {
	target := r.query.Get("repo")
	if tag := r.query.Get("tag"); tag != "" {
		target += ":" + tag
	}
	if err := s.engine.Tag(r.Context(), r.name(), target); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *Server) imageDelete(w *reply, r *request) error {
	list, err := s.engine.RemoveImage(r.Context(), r.name(), r.flag("force"))
	return w.ok(some(list), err)
}

func (s *Server) imagePrune(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	all := slices.ContainsFunc(f["dangling"], func(v string) bool { return v == "false" || v == "0" })
	p, err := s.engine.Prune(r.Context(), engine.PruneOptions{Images: true, All: all, Filter: without(f, "dangling")})
	return w.ok(dimage.PruneReport{ImagesDeleted: p.Images, SpaceReclaimed: uint64(p.Reclaimed)}, err)
}

func without(f engine.Filter, key string) engine.Filter {
	out := engine.Filter{}
	for k, v := range f {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// account is the engine for whom a request speaks: X-Registry-Auth, for one registry.
func (s *Server) account(r *request, host string) (Engine, error) {
	h := r.Header.Get(dregistry.AuthHeader)
	if h == "" || s.o.As == nil {
		return s.engine, nil
	}
	var a dregistry.AuthConfig
	b, err := base64.URLEncoding.DecodeString(h)
	if err != nil {
		b, err = base64.RawURLEncoding.DecodeString(h)
	}
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		return nil, fault.Invalidf("invalid %s header: %w", dregistry.AuthHeader, err)
	}
	if a.Username == "" && a.IdentityToken == "" {
		return s.engine, nil
	}
	return s.o.As(registry.Account{Registry: host,
		Credentials: registry.Credentials{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken}}), nil
}

// progress streams messages as lines of JSON. The header goes out with the first one, so
// that an error before it has a status of its own.
type progress struct {
	w  *reply
	mu sync.Mutex
}

func (p *progress) send(m any) {
	b, err := json.Marshal(m)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.w.begun {
		p.w.Header().Set("Content-Type", "application/json")
	}
	_, _ = p.w.Write(append(b, '\r', '\n'))
	p.w.flush()
}

// message is jsonstream.Message with the fields that older clients read.
type message struct {
	jsonstream.Message
	ProgressText string `json:"progress,omitempty"`
	ErrorText    string `json:"error,omitempty"`
}

func (p *progress) pull(e engine.PullEvent) {
	if e.Status == "" {
		return
	}
	m := message{Message: jsonstream.Message{ID: e.ID, Status: e.Status}}
	if e.ID != "" {
		m.Progress = &jsonstream.Progress{Current: e.Current, Total: e.Total}
	}
	p.send(m)
}

func (p *progress) aux(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	raw := json.RawMessage(b)
	p.send(jsonstream.Message{Aux: &raw})
}

// end tells an error in the stream, or as the answer when there is no stream yet.
func (p *progress) end(err error) error {
	if err == nil {
		if !p.w.begun {
			p.w.Header().Set("Content-Type", "application/json")
			p.w.flush()
		}
		return nil
	}
	if !p.w.begun {
		return err
	}
	p.send(message{Message: jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, ErrorText: err.Error()})
	return nil
}

func (s *Server) imageCreate(w *reply, r *request) error {
	from, src := r.query.Get("fromImage"), r.query.Get("fromSrc")
	switch {
	case from != "":
		return s.pull(w, r, from)
	case src != "":
		return s.imageImport(w, r, src)
	}
	return fault.Invalidf("either fromImage or fromSrc must be given")
}

func (s *Server) pull(w *reply, r *request, name string) error {
	ref, err := tagged(name, r.query.Get("tag"))
	if err != nil {
		return err
	}
	p, err := r.platform()
	if err != nil {
		return err
	}
	e, err := s.account(r, ref.Registry)
	if err != nil {
		return err
	}
	out := &progress{w: w}
	_, err = e.Pull(r.Context(), ref, engine.PullOptions{Platform: p, Progress: out.pull})
	return out.end(err)
}

// tagged is a name with a tag or digest that came apart from it.
func tagged(name, tag string) (image.Reference, error) {
	if tag != "" {
		ref, err := image.ParseRepository(name)
		if err != nil {
			return ref, fault.As(fault.Invalid, err)
		}
		sep := ":"
		if strings.Contains(tag, ":") {
			sep = "@"
		}
		name = ref.Name() + sep + tag
	}
	ref, err := image.ParseReference(name)
	return ref, fault.As(fault.Invalid, err)
}

func (s *Server) imageImport(w *reply, r *request, src string) error {
	repo := r.query.Get("repo")
	if tag := r.query.Get("tag"); repo != "" && tag != "" {
		repo += ":" + tag
	}
	p, err := r.platform()
	if err != nil {
		return err
	}
	var in io.Reader = r.Body
	out := &progress{w: w}
	if src != "-" {
		f, err := engine.OpenURL(r.Context(), src)
		if err != nil {
			return err
		}
		defer f.Close()
		out.send(jsonstream.Message{Status: "Downloading from " + src})
		in = f
	}
	id, err := s.engine.Import(r.Context(), in, engine.ImportOptions{Repository: repo, Message: r.query.Get("message"),
		Changes: r.query["changes"], Platform: p, Source: src})
	if err != nil {
		return out.end(err)
	}
	out.send(jsonstream.Message{Status: string(id)})
	return nil
}

func (s *Server) imagePush(w *reply, r *request) error {
	name := r.name()
	if tag := r.query.Get("tag"); tag != "" {
		name += ":" + tag
	}
	ref, err := image.ParseReference(name)
	if err != nil {
		return fault.As(fault.Invalid, err)
	}
	e, err := s.account(r, ref.Registry)
	if err != nil {
		return err
	}
	out := &progress{w: w}
	out.send(jsonstream.Message{Status: fmt.Sprintf("The push refers to repository [%s]", ref.Name())})
	d, err := e.Push(r.Context(), ref, out.pull)
	if err == nil {
		out.send(jsonstream.Message{Status: fmt.Sprintf("%s: digest: %s size: %d", ref.Tag, d.Digest, d.Size)})
		out.aux(auxPush{Tag: ref.Tag, Digest: string(d.Digest), Size: d.Size})
	}
	return out.end(err)
}

// auxPush tells a program what was pushed.
type auxPush struct {
	Tag, Digest string
	Size        int64
}

func (s *Server) imageSave(w *reply, r *request) error {
	names := r.query["names"]
	if n := r.name(); n != "" {
		names = []string{n}
	}
	if len(names) == 0 {
		return fault.Invalidf("no image was named")
	}
	for _, n := range names { // what is wrong is told before the archive begins
		if _, err := s.engine.InspectImage(r.Context(), n); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	p, err := r.platform()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	return s.engine.Save(r.Context(), names, w, engine.SaveOptions{Platform: p})
}

func (s *Server) imageLoad(w *reply, r *request) error {
	p, err := r.platform()
	if err != nil {
		return err
	}
	out := &progress{w: w}
	w.Header().Set("Content-Type", "application/json")
	quiet := r.flagOr("quiet", true)
	o := engine.LoadOptions{Platform: p}
	if !quiet {
		o.Progress = out.pull
	}
	list, err := s.engine.Load(r.Context(), r.Body, o)
	for _, l := range list {
		text := "Loaded image: " + l.Ref.Familiar()
		if l.Ref.Repository == "" {
			text = "Loaded image ID: " + string(l.ID)
		}
		out.send(jsonstream.Message{Stream: text + "\n"})
	}
	if err != nil { // told in the stream, as Docker does
		w.flush()
	}
	return out.end(err)
}

func (s *Server) imageSearch(w *reply, r *request) error {
	if r.query.Get("term") == "" {
		return fault.Invalidf("the search term is missing")
	}
	f, err := r.filters()
	if err != nil {
		return err
	}
	limit, _, err := r.number("limit")
	if err != nil {
		return err
	}
	list, err := s.engine.Search(r.Context(), r.query.Get("term"), engine.SearchOptions{Limit: int(limit), Filter: f})
	return w.ok(list, err)
}

func (s *Server) distribution(w *reply, r *request) error {
	ref, err := image.ParseReference(r.name())
	if err != nil {
		return fault.As(fault.Invalid, err)
	}
	e, err := s.account(r, ref.Registry)
	if err != nil {
		return err
	}
	d, ps, err := e.Distribution(r.Context(), ref)
	return w.ok(dregistry.DistributionInspect{Descriptor: d, Platforms: ps}, err)
}
