package api

// Networks and volumes.

import (
	"net/http"
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"

	"keg/internal/engine"
	"keg/internal/fault"
	net "keg/internal/network"
	vol "keg/internal/volume"
)

func (s *Server) networkList(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	list, err := s.engine.Networks(r.Context(), f)
	for i := range list {
		tidyNetwork(&list[i])
	}
	return w.ok(some(list), err)
}

// tidyNetwork: clients read maps that Docker always sends.
func tidyNetwork(n *network.Inspect) {
	if n.Containers == nil {
		n.Containers = map[string]network.EndpointResource{}
	}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
}

func (s *Server) networkInspect(w *reply, r *request) error {
	n, err := s.engine.InspectNetwork(r.Context(), r.name())
	if err != nil {
		return err
	}
	if scope := r.query.Get("scope"); scope != "" && scope != n.Scope {
		return fault.NotFoundf("network %s not found", r.name())
	}
	tidyNetwork(&n)
	if r.version < 52 {
		n.Status = nil
	}
	return w.json(http.StatusOK, n)
}

func (s *Server) networkCreate(w *reply, r *request) error {
	var q network.CreateRequest
	if err := r.body(w, &q, false); err != nil {
		return err
	}
	switch {
	case q.Name == "":
		return fault.Invalidf("network name cannot be empty")
	case q.Scope == "swarm" || q.Driver == "overlay" || q.Ingress:
		return notSwarm(s, w, r)
	}
	o := net.CreateOptions{Name: q.Name, Driver: q.Driver, Internal: q.Internal, Attachable: q.Attachable, Options: q.Options, Labels: q.Labels,
		IPv6: q.EnableIPv6 != nil && *q.EnableIPv6, ConfigOnly: q.ConfigOnly}
	if q.ConfigFrom != nil {
		o.ConfigFrom = q.ConfigFrom.Network
	}
	if q.IPAM != nil {
		o.IPAM = *q.IPAM
	}
	n, err := s.engine.CreateNetwork(r.Context(), o)
	if err != nil {
		return err
	}
	return w.json(http.StatusCreated, network.CreateResponse{ID: n.ID})
}

func (s *Server) networkRemove(w *reply, r *request) error {
	return w.done(s.engine.RemoveNetwork(r.Context(), r.name()))
}

func (s *Server) networkConnect(w *reply, r *request) error {
	var q network.ConnectRequest
	if err := r.body(w, &q, false); err != nil {
		return err
	}
	var settings network.EndpointSettings
	if q.EndpointConfig != nil {
		settings = *q.EndpointConfig
	}
	if err := s.engine.ConnectNetwork(r.Context(), r.name(), q.Container, settings); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) networkDisconnect(w *reply, r *request) error {
	var q network.DisconnectRequest
	if err := r.body(w, &q, false); err != nil {
		return err
	}
	if err := s.engine.DisconnectNetwork(r.Context(), r.name(), q.Container, q.Force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) networkPrune(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	p, err := s.engine.Prune(r.Context(), engine.PruneOptions{Networks: true, Filter: f})
	return w.ok(network.PruneReport{NetworksDeleted: some(p.Networks)}, err)
}

func (s *Server) volumeList(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	list, err := s.engine.Volumes(r.Context(), f)
	return w.ok(volume.ListResponse{Volumes: some(list), Warnings: []string{}}, err)
}

func (s *Server) volumeInspect(w *reply, r *request) error {
	v, err := s.engine.InspectVolume(r.Context(), r.name())
	return w.ok(v, err)
}

func (s *Server) volumeCreate(w *reply, r *request) error {
	var q volume.CreateRequest
	if err := r.body(w, &q, true); err != nil {
		return err
	}
	if q.ClusterVolumeSpec != nil {
		return notSwarm(s, w, r)
	}
	v, err := s.engine.CreateVolume(r.Context(), vol.CreateOptions{Name: q.Name, Driver: q.Driver, Options: q.DriverOpts, Labels: q.Labels})
	if err != nil {
		return err
	}
	return w.json(http.StatusCreated, v)
}

func (s *Server) volumeRemove(w *reply, r *request) error {
	return w.done(s.engine.RemoveVolume(r.Context(), r.name(), r.flag("force")))
}

func (s *Server) volumePrune(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	// Named volumes count since 1.42 only when asked for.
	all := r.version < 42 || slices.ContainsFunc(f["all"], func(v string) bool { return v == "true" || v == "1" })
	p, err := s.engine.Prune(r.Context(), engine.PruneOptions{Volumes: true, All: all, Filter: without(f, "all")})
	return w.ok(volume.PruneReport{VolumesDeleted: some(p.Volumes), SpaceReclaimed: uint64(p.Reclaimed)}, err)
}
