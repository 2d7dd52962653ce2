package engine

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"

	ctr "keg/internal/container"
	"keg/internal/event"
)

// Events reads the journal.
func (e *Engine) Events(ctx context.Context, since, until time.Time, follow bool, f Filter, yield func(event.Message) error) error {
	if err := f.only("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope",
		"secret", "service", "type", "volume"); err != nil {
		return err
	}
	return e.events.Read(ctx, unixNano(since), unixNano(until), follow, func(m event.Message) error {
		if !wantsEvent(f, m) {
			return nil
		}
		return yield(m)
	})
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// wantsEvent applies Docker's event filters.
func wantsEvent(f Filter, m event.Message) bool {
	of := func(key string, t events.Type) bool {
		if len(f[key]) == 0 {
			return true
		}
		return m.Type == t && (f.exact(key, m.Actor.ID) || f.exact(key, m.Actor.Attributes["name"]) ||
			f.exact(key, strings.TrimSuffix(m.Actor.ID, ":latest")) || len(m.Actor.ID) == 64 && f.prefixNonEmpty(key, m.Actor.ID))
	}
	action, _, _ := strings.Cut(string(m.Action), ":")
	// An image filter also finds the acts of the containers that run it.
	image := of("image", events.ImageEventType) ||
		m.Type == events.ContainerEventType && f.exact("image", m.Actor.Attributes["image"])
	return (f.exact("event", string(m.Action)) || f.exact("event", action)) &&
		f.exact("type", string(m.Type)) && f.exact("scope", m.Scope) && f.labels(m.Actor.Attributes) &&
		of("container", events.ContainerEventType) && image &&
		of("network", events.NetworkEventType) && of("volume", events.VolumeEventType) && of("daemon", events.DaemonEventType)
}

// prefixNonEmpty is prefix for short ids: an empty value matches nothing.
func (f Filter) prefixNonEmpty(key, v string) bool {
	for _, p := range f[key] {
		if p != "" && strings.HasPrefix(v, p) {
			return true
		}
	}
	return false
}

// report appends to the journal. What happened has happened, whether it can be told or not.
func (e *Engine) report(t events.Type, a events.Action, id string, attrs map[string]string) {
	now := time.Now()
	_ = e.events.Append(event.Message{Type: t, Action: a, Actor: events.Actor{ID: id, Attributes: attrs},
		Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano()})
}

func (e *Engine) containerEvent(a events.Action, r *ctr.Record, more map[string]string) {
	attrs := map[string]string{}
	maps.Copy(attrs, r.Config.Labels)
	attrs["image"], attrs["name"] = r.Config.Image, r.Name
	maps.Copy(attrs, more)
	e.report(events.ContainerEventType, a, r.ID, attrs)
}

func (e *Engine) imageEvent(a events.Action, id, name string, labels map[string]string) {
	attrs := map[string]string{}
	maps.Copy(attrs, labels)
	attrs["name"] = name
	e.report(events.ImageEventType, a, id, attrs)
}

func (e *Engine) volumeEvent(a events.Action, name, driver string) {
	e.report(events.VolumeEventType, a, name, map[string]string{"driver": driver})
}

func (e *Engine) networkEvent(a events.Action, id, name, driver string) {
	e.report(events.NetworkEventType, a, id, map[string]string{"name": name, "type": driver})
}
