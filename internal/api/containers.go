package api

// Containers but for their streams.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/image"
)

func (s *Server) containerList(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	limit, _, err := r.number("limit")
	if err != nil {
		return err
	}
	list, err := s.engine.Containers(r.Context(), engine.ListOptions{All: r.flag("all"), Last: int(limit), Size: r.flag("size"), Filter: f})
	return w.ok(containerRows(list, r.version), err)
}

// createBody is the body of create; MacAddress was a field of its own before 1.44.
type createBody struct {
	container.CreateRequest
	MacAddress network.HardwareAddr `json:",omitzero"`
}

func (s *Server) containerCreate(w *reply, r *request) error {
	var q createBody
	if r.empty() {
		return fault.Invalidf("invalid JSON: EOF") // Docker's words for this route
	}
	if err := r.body(w, &q, false); err != nil {
		return err
	}
	if q.Config == nil {
		return fault.Invalidf("config cannot be empty in order to create a container")
	}
	if q.HostConfig == nil {
		q.HostConfig = &container.HostConfig{}
	}
	if q.Config.Image == "" {
		return fault.Invalidf("no image specified: Config.Image is empty")
	}
	if q.HostConfig.IpcMode == "" && r.version < known("1.40") {
		q.HostConfig.IpcMode = container.IPCModeShareable
	}
	if r.version < 56 {
		q.HostConfig.Umask = nil // not read before
	}
	if r.version < known("1.44") && q.NetworkingConfig != nil && len(q.NetworkingConfig.EndpointsConfig) > 1 {
		return fault.Invalidf("Container cannot be created with multiple network endpoints: %s",
			strings.Join(slices.Sorted(maps.Keys(q.NetworkingConfig.EndpointsConfig)), ", "))
	}
	o := engine.CreateOptions{Name: r.query.Get("name"), Config: q.Config, Host: q.HostConfig, Pull: "never"}
	if q.NetworkingConfig != nil {
		o.Networks = q.NetworkingConfig.EndpointsConfig
	}
	if len(q.MacAddress) > 0 && r.version >= 52 {
		return fault.Invalidf("container-wide MAC address no longer supported; use endpoint-specific MAC address instead")
	}
	if len(q.MacAddress) > 0 {
		o.Networks = withMAC(o.Networks, q.HostConfig.NetworkMode, q.MacAddress)
	}
	p, err := r.platform()
	if err != nil {
		return err
	}
	o.Platform = p
	c, err := s.engine.Create(r.Context(), o)
	if fault.Is(err, fault.Invalid) && strings.HasPrefix(err.Error(), "invalid reference format: ") {
		return fault.Invalidf("invalid reference format") // clients look for these words alone
	}
	if err != nil {
		return err
	}
	if c.Warnings == nil {
		c.Warnings = []string{}
	}
	return w.json(http.StatusCreated, container.CreateResponse{ID: c.ID, Warnings: c.Warnings})
}

func withMAC(ns map[string]*network.EndpointSettings, mode container.NetworkMode, mac network.HardwareAddr) map[string]*network.EndpointSettings {
	name := string(mode)
	if name == "" || mode.IsDefault() {
		name = network.NetworkBridge
	}
	if ns == nil {
		ns = map[string]*network.EndpointSettings{}
	}
	if ns[name] == nil {
		ns[name] = &network.EndpointSettings{}
	}
	if len(ns[name].MacAddress) == 0 {
		ns[name].MacAddress = mac
	}
	return ns
}

func (r *request) platform() (*image.Platform, error) {
	text := r.query.Get("platform")
	if text == "" {
		return nil, nil
	}
	if text[0] == '{' {
		var p image.Platform
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return nil, fault.Invalidf("invalid platform: %w", err)
		}
		return &p, nil
	}
	p, err := image.ParsePlatform(text)
	return &p, err
}

func (s *Server) containerInspect(w *reply, r *request) error {
	c, err := s.engine.Inspect(r.Context(), r.name(), r.flag("size"))
	if err != nil {
		return err
	}
	c.ExecIDs = s.execs.of(c.ID)
	if c.Mounts == nil {
		c.Mounts = []container.MountPoint{}
	}
	return w.json(http.StatusOK, inspectShape(c, r.version))
}

// stopOptions reads t and signal.
func (r *request) stopOptions() (o engine.StopOptions, err error) {
	n, given, err := r.number("t")
	if given {
		t := int(n)
		o.Timeout = &t
	}
	o.Signal = r.query.Get("signal")
	return o, err
}

func (s *Server) containerStop(w *reply, r *request) error {
	o, err := r.stopOptions()
	if err != nil {
		return err
	}
	c, err := s.engine.Inspect(r.Context(), r.name(), false)
	if err != nil {
		return err
	}
	if !c.State.Running {
		return fault.Errorf(fault.NotModified, "container %s is already stopped", c.ID)
	}
	return w.done(s.engine.Stop(r.Context(), c.ID, o))
}

func (s *Server) containerRestart(w *reply, r *request) error {
	o, err := r.stopOptions()
	if err != nil {
		return err
	}
	// Half a restart is a stop: it goes on when its client has left.
	return w.done(s.engine.Restart(context.WithoutCancel(r.Context()), r.name(), o))
}

func (s *Server) containerKill(w *reply, r *request) error {
	return w.done(s.engine.Kill(r.Context(), r.name(), r.query.Get("signal")))
}

func (s *Server) containerPause(w *reply, r *request) error {
	return w.done(s.engine.Pause(r.Context(), r.name()))
}

func (s *Server) containerUnpause(w *reply, r *request) error {
	return w.done(s.engine.Unpause(r.Context(), r.name()))
}

func (s *Server) containerRename(w *reply, r *request) error {
	return w.done(s.engine.Rename(r.Context(), r.name(), r.query.Get("name")))
}

func (s *Server) containerRemove(w *reply, r *request) error {
	if r.flag("link") {
		return fault.Unsupportedf("legacy links are not supported; use networks")
	}
	return w.done(s.engine.Remove(r.Context(), r.name(), engine.RemoveOptions{Force: r.flag("force"), Volumes: r.flag("v")}))
}

func (s *Server) containerUpdate(w *reply, r *request) error {
	var q container.UpdateConfig
	if err := r.body(w, &q, false); err != nil {
		return err
	}
	if r.version < known("1.40") {
		q.PidsLimit = nil // not read before
	}
	warnings, err := s.engine.Update(r.Context(), r.name(), q)
	return w.ok(container.UpdateResponse{Warnings: append([]string{}, warnings...)}, err)
}

func (s *Server) containerTop(w *reply, r *request) error {
	args := r.query.Get("ps_args")
	var options []string
	if args != "" {
		options = splitWords(args)
	}
	res, err := s.engine.Top(r.Context(), r.name(), options)
	return w.ok(res, err)
}

// statsEvery is the time between two samples, Docker's.
const statsEvery = time.Second

func (s *Server) containerStats(w *reply, r *request) error {
	ctx := r.Context()
	now, err := s.engine.Stats(ctx, r.name())
	if err != nil {
		return err
	}
	stream := r.flagOr("stream", true)
	if !stream && r.flag("one-shot") {
		return w.json(http.StatusOK, now)
	}
	enc := json.NewEncoder(w)
	w.Header().Set("Content-Type", "application/json")
	for first := true; ; first = false {
		if stream {
			if enc.Encode(now) != nil {
				return nil
			}
			w.flush()
		} else if !first {
			return enc.Encode(now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statsEvery):
		}
		next, err := s.engine.Stats(ctx, r.name())
		if err != nil {
			return nil // it went: the stream ends
		}
		next.PreRead, next.PreCPUStats = now.Read, now.CPUStats
		now = next
	}
}

func (s *Server) containerChanges(w *reply, r *request) error {
	changes, err := s.engine.Diff(r.Context(), r.name())
	if err != nil {
		return err
	}
	list := make([]container.FilesystemChange, len(changes))
	for i, c := range changes {
		list[i] = container.FilesystemChange{Path: c.Path, Kind: container.ChangeType(c.Kind)}
	}
	return w.json(http.StatusOK, list)
}

func (s *Server) containerExport(w *reply, r *request) error {
	if _, err := s.engine.Inspect(r.Context(), r.name(), false); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	return s.engine.Export(r.Context(), r.name(), w)
}

const statHeader = "X-Docker-Container-Path-Stat"

func (s *Server) archivePath(r *request) (string, error) {
	p := r.query.Get("path")
	if p == "" {
		return "", fault.Invalidf("bad parameter: path cannot be empty")
	}
	return p, nil
}

func (s *Server) archiveHead(w *reply, r *request) error { return s.archiveStat(w, r, false) }
func (s *Server) archiveGet(w *reply, r *request) error  { return s.archiveStat(w, r, true) }

func (s *Server) archiveStat(w *reply, r *request, content bool) error {
	p, err := s.archivePath(r)
	if err != nil {
		return err
	}
	st, err := s.engine.StatPath(r.Context(), r.name(), p)
	if err != nil {
		return err
	}
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	w.Header().Set(statHeader, base64.StdEncoding.EncodeToString(b))
	if !content {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	w.Header().Set("Content-Type", "application/x-tar")
	_, err = s.engine.CopyFrom(r.Context(), r.name(), p, false, w)
	return err
}

func (s *Server) archivePut(w *reply, r *request) error {
	p, err := s.archivePath(r)
	if err != nil {
		return err
	}
	err = s.engine.CopyTo(r.Context(), r.name(), p, r.Body, engine.CopyOptions{Archive: r.flag("copyUIDGID")})
	var path *engine.HostError
	if errors.As(err, &path) {
		if _, missing := s.engine.StatPath(r.Context(), r.name(), p); missing != nil {
			return missing
		}
		return fault.Invalidf("extraction point %s is not a directory", p)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) containerPrune(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	p, err := s.engine.Prune(r.Context(), engine.PruneOptions{Containers: true, Filter: f})
	return w.ok(container.PruneReport{ContainersDeleted: some(p.Containers), SpaceReclaimed: uint64(p.Reclaimed)}, err)
}

func (s *Server) commit(w *reply, r *request) error {
	var ignored container.Config // the container's own is what is kept, changes aside
	if err := r.body(w, &ignored, true); err != nil {
		return err
	}
	repo := r.query.Get("repo")
	if tag := r.query.Get("tag"); repo != "" && tag != "" {
		repo += ":" + tag
	}
	id, err := s.engine.Commit(r.Context(), r.query.Get("container"), engine.CommitOptions{Repository: repo,
		Author: r.query.Get("author"), Message: r.query.Get("comment"), Changes: r.query["changes"], NoPause: !r.flagOr("pause", true)})
	if err != nil {
		return err
	}
	return w.json(http.StatusCreated, container.CommitResponse{ID: string(id)})
}

// some is the list, never null.
func some[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// splitWords is shell-like as far as ps needs it.
func splitWords(s string) (words []string) {
	var word []byte
	var quote byte
	inWord := false
	for i := range len(s) {
		c := s[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if inWord {
				words = append(words, string(word))
			}
			word, inWord = nil, false
		default:
			word, inWord = append(word, c), true
		}
	}
	if inWord {
		words = append(words, string(word))
	}
	return words
}
