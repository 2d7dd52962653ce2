package api

// Questions about a Dockerfile, which build nothing: docker build --check, --call outline|targets
// (moby/buildkit frontend/subrequests).

import (
	"context"
	"encoding/json"
	"fmt"

	"keg/internal/builder"
	"keg/internal/grpc"
)

// The shapes of the answers.
type (
	askedPosition struct {
		Line int `json:"line"`
	}
	askedRange struct {
		Start askedPosition `json:"start"`
		End   askedPosition `json:"end"`
	}
	askedLocation struct {
		SourceIndex int          `json:"sourceIndex,omitempty"`
		Ranges      []askedRange `json:"ranges,omitempty"`
	}
	askedSource struct {
		Filename string `json:"filename"`
		Data     []byte `json:"data,omitempty"`
		Language string `json:"language,omitempty"`
	}
	askedWarning struct {
		RuleName string         `json:"ruleName"`
		URL      string         `json:"url,omitempty"`
		Detail   string         `json:"detail,omitempty"`
		Location *askedLocation `json:"location,omitempty"`
	}
	askedTarget struct {
		Name        string         `json:"name,omitempty"`
		Default     bool           `json:"default,omitempty"`
		Description string         `json:"description,omitempty"`
		Base        string         `json:"base,omitempty"`
		Platform    string         `json:"platform,omitempty"`
		Location    *askedLocation `json:"location,omitempty"`
	}
	askedParameter struct {
		Name        string         `json:"name"`
		Description string         `json:"description,omitempty"`
		Value       string         `json:"value,omitempty"`
		Required    bool           `json:"required,omitempty"`
		Location    *askedLocation `json:"location,omitempty"`
	}
	askedName struct {
		Name        string `json:"name"`
		Description string `json:"description,omitempty"`
	}
	askedRequest struct {
		Name        string      `json:"name"`
		Version     string      `json:"version"`
		Type        string      `json:"type"`
		Description string      `json:"description"`
		Opts        []askedName `json:"opts"`
		Inputs      []askedName `json:"inputs"`
		Metadata    []askedName `json:"metadata"`
		Refs        []askedName `json:"refs"`
	}
)

func locate(first, last int) *askedLocation {
	if first == 0 {
		return nil
	}
	return &askedLocation{Ranges: []askedRange{{askedPosition{first}, askedPosition{max(first, last)}}}}
}

// answer is the metadata of the result.
func (r *reference) answer(ctx context.Context, request string) (map[string][]byte, error) {
	ask := map[string]func(context.Context, builder.Options) (any, int, error){
		"frontend.lint": r.lint, "frontend.outline": outline, "frontend.targets": targets, "frontend.subrequests.describe": describe,
	}[request]
	if ask == nil {
		detail, _ := json.Marshal(map[string]string{"name": request})
		return nil, &grpc.Status{Code: 12, Message: "unsupported request " + request,
			Details: [][]byte{anyOf("github.com/moby/buildkit/errdefs.Subrequest+json", detail)}}
	}
	release, err := r.hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	defer r.drop()
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	v, code, err := ask(ctx, r.request.Options)
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(v, "", "  ")
	return map[string][]byte{"result.json": text, "result.txt": text, "version": []byte("1.0.0"), "result.statuscode": fmt.Append(nil, code)}, err
}

// lint makes Docker's checks. Those of our own are for keg build --check: what passes Docker's has to pass here.
func (r *reference) lint(ctx context.Context, o builder.Options) (any, int, error) {
	c, err := r.engine().CheckBuild(ctx, o)
	if err != nil {
		return nil, 0, err
	}
	out := struct {
		Warnings []askedWarning `json:"warnings"`
		Sources  []askedSource  `json:"sources"`
	}{Sources: []askedSource{{c.Name, c.Text, "Dockerfile"}}}
	code := 0
	for _, w := range c.Warnings {
		if w.URL != "" {
			out.Warnings = append(out.Warnings, askedWarning{w.Rule, w.URL, w.Message, locate(w.Line, w.LastLine)})
			code = 1
		}
	}
	return out, code, nil
}

func targets(_ context.Context, o builder.Options) (any, int, error) {
	o.Target = ""
	d, err := builder.Describe(o)
	if err != nil {
		return nil, 0, err
	}
	out := struct {
		Targets []askedTarget `json:"targets"`
		Sources [][]byte      `json:"sources"`
	}{Sources: [][]byte{d.Text}}
	for i, s := range d.Stages {
		out.Targets = append(out.Targets, askedTarget{s.Name, i == len(d.Stages)-1, s.Description, s.Base, s.Platform, locate(s.First, s.Last)})
	}
	return out, 0, nil
}

func outline(_ context.Context, o builder.Options) (any, int, error) {
	d, err := builder.Describe(o)
	if err != nil {
		return nil, 0, err
	}
	params := func(list []builder.Parameter) (ps []askedParameter) {
		for _, p := range list {
			ps = append(ps, askedParameter{p.Name, p.Description, p.Value, p.Required, locate(p.First, p.Last)})
		}
		return ps
	}
	return struct {
		Name        string           `json:"name,omitempty"`
		Description string           `json:"description,omitempty"`
		Args        []askedParameter `json:"args,omitempty"`
		Secrets     []askedParameter `json:"secrets,omitempty"`
		SSH         []askedParameter `json:"ssh,omitempty"`
		Sources     [][]byte         `json:"sources,omitempty"`
	}{d.Target.Name, d.Target.Description, params(d.Args), params(d.Secrets), params(d.SSH), [][]byte{d.Text}}, 0, nil
}

func describe(context.Context, builder.Options) (any, int, error) {
	result := []askedName{{Name: "result.json"}, {Name: "result.txt"}}
	request := func(name, description string, opts ...askedName) askedRequest {
		return askedRequest{name, "1.0.0", "rpc", description, append([]askedName{}, opts...), nil, result, nil}
	}
	return []askedRequest{
		request("frontend.outline", "List all parameters current build target supports", askedName{"target", "Target build stage"}),
		request("frontend.targets", "List all targets current build supports"),
		request("frontend.lint", "Lint a Dockerfile"),
		request("frontend.subrequests.describe", "List available subrequest types"),
	}, 0, nil
}
