package engine

import (
	"errors"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"keg/internal/fault"
	net "keg/internal/network"
)

// onBridge makes a running container on the default network, and another network.
func onBridge(t *testing.T) (*Engine, string, *fakeLive) {
	t.Helper()
	e, m := withImage(t)
	if _, err := e.CreateNetwork(t.Context(), net.CreateOptions{Name: "mine"}); err != nil {
		t.Fatal(err)
	}
	c, err := e.Create(t.Context(), CreateOptions{Name: "web", Config: &container.Config{Image: "web:1"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(t.Context(), "web", nil); err != nil {
		t.Fatal(err)
	}
	return e, c.ID, m.lives[c.ID]
}

func TestConnectIsWrittenAndTold(t *testing.T) {
	e, id, l := onBridge(t)
	s := network.EndpointSettings{Aliases: []string{"x"}}
	if err := e.ConnectNetwork(t.Context(), "mine", "web", s); err != nil {
		t.Fatal(err)
	}
	r, _ := e.containers.Get(id)
	if r.Networks["mine"] == nil || r.Networks["mine"].Aliases[0] != "x" || r.Networks["bridge"] == nil || !slices.Contains(l.calls, "connect mine") {
		t.Errorf("%+v, %q", r.Networks, l.calls)
	}
	if err := e.ConnectNetwork(t.Context(), "mine", "web", s); errText(err) != "endpoint with name web already exists in network mine" {
		t.Error(err)
	}
	if err := e.DisconnectNetwork(t.Context(), "mine", "web", false); err != nil {
		t.Fatal(err)
	}
	if err := e.DisconnectNetwork(t.Context(), "mine", "web", false); errText(err) != "container "+id+" is not connected to network mine" {
		t.Error(err)
	}
}

func TestWhatTheMonitorRefusesIsNotWritten(t *testing.T) {
	e, id, l := onBridge(t)
	l.refuse = errors.New("no room")
	if err := e.ConnectNetwork(t.Context(), "mine", "web", network.EndpointSettings{}); !errors.Is(err, l.refuse) {
		t.Error(err)
	}
	if err := e.DisconnectNetwork(t.Context(), "bridge", "web", false); !errors.Is(err, l.refuse) {
		t.Error(err)
	}
	u := container.UpdateConfig{Resources: container.Resources{Memory: 64 << 20}, RestartPolicy: container.RestartPolicy{Name: "always"}}
	if _, err := e.Update(t.Context(), "web", u); !errors.Is(err, l.refuse) {
		t.Error(err)
	}
	r, _ := e.containers.Get(id)
	if len(r.Networks) != 1 || r.Networks["bridge"] == nil || r.Host.Memory != 0 || r.Host.RestartPolicy.Name == "always" {
		t.Errorf("%+v %+v", r.Networks, r.Host.Resources)
	}
}

func TestUpdateOfAStoppedContainer(t *testing.T) {
	e, _ := withImage(t)
	id := createNamed(t, e, "web").ID
	if _, err := e.Update(t.Context(), "web", container.UpdateConfig{Resources: container.Resources{CPUShares: 9}}); err != nil {
		t.Fatal(err)
	}
	if r, _ := e.containers.Get(id); r.Host.CPUShares != 9 {
		t.Errorf("%+v", r.Host.Resources)
	}
	_, err := e.Update(t.Context(), "web", container.UpdateConfig{Resources: container.Resources{Memory: 1}})
	if !fault.Is(err, fault.Invalid) || errText(err) != "Minimum memory limit allowed is 6MB" {
		t.Error(err)
	}
	// Without a network of its own there is nothing to connect.
	if err := e.ConnectNetwork(t.Context(), "bridge", "web", network.EndpointSettings{}); !fault.Is(err, fault.Denied) {
		t.Error(err)
	}
}

func TestWhyNamesTheUsers(t *testing.T) {
	e, _, _ := onBridge(t)
	rs, err := e.Why(t.Context(), "web:1")
	if err != nil || len(rs) != 1 {
		t.Fatalf("%+v, %v", rs, err)
	}
	want := []Referrer{{"name", "web:1", "points at it"}, {"container", "web", "running, made from it"}}
	if !slices.Equal(rs[0].Users, want) || !slices.Equal(rs[0].Free, []string{"rm -f web", "rmi web:1"}) {
		t.Errorf("%+v", rs[0])
	}
	if _, err := e.Why(t.Context(), "nothing"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	vols, err := e.Volumes(t.Context(), nil)
	if err != nil || len(vols) != 1 {
		t.Fatalf("%+v, %v", vols, err)
	}
	rs, err = e.Why(t.Context(), vols[0].Name)
	if err != nil || len(rs) != 1 || rs[0].Users[0].How != "running, mounted on /data" {
		t.Errorf("%+v, %v", rs, err)
	}
}
