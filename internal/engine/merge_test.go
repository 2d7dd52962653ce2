package engine

import (
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"keg/internal/image"
)

func imageConfig() *image.Config {
	c := &image.Config{}
	c.Config.User, c.Config.WorkingDir, c.Config.StopSignal = "app", "/srv", "SIGQUIT"
	c.Config.Env = []string{"PATH=/bin", "MODE=prod"}
	c.Config.Entrypoint, c.Config.Cmd = []string{"/entry"}, []string{"serve"}
	c.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}, "90-91/udp": {}}
	c.Config.Volumes = map[string]struct{}{"/data": {}}
	c.Config.Labels = map[string]string{"from": "image", "both": "image"}
	c.Config.Shell = []string{"/bin/bash", "-c"}
	c.Config.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "check"}, Interval: time.Minute, Retries: 5}
	return c
}

func TestMergeTakesTheImagesDefaults(t *testing.T) {
	c := &container.Config{}
	if err := mergeConfig(c, imageConfig()); err != nil {
		t.Fatal(err)
	}
	if c.User != "app" || c.WorkingDir != "/srv" || c.StopSignal != "SIGQUIT" || len(c.Shell) != 2 || c.Healthcheck.Retries != 5 {
		t.Errorf("got %+v", c)
	}
	if !slices.Equal(c.Entrypoint, []string{"/entry"}) || !slices.Equal(c.Cmd, []string{"serve"}) {
		t.Errorf("got %v %v", c.Entrypoint, c.Cmd)
	}
	for _, p := range []string{"80/tcp", "90/udp", "91/udp"} {
		if _, ok := c.ExposedPorts[network.MustParsePort(p)]; !ok {
			t.Errorf("port %s is not exposed", p)
		}
	}
	if _, ok := c.Volumes["/data"]; !ok {
		t.Error("volume is missing")
	}
}

func TestMergeKeepsTheUsersWords(t *testing.T) {
	img := imageConfig()
	c := &container.Config{User: "me", WorkingDir: "/me", Env: []string{"MODE=dev", "X=1"}, Labels: map[string]string{"both": "user"},
		Healthcheck: &container.HealthConfig{Retries: 2}}
	if err := mergeConfig(c, img); err != nil {
		t.Fatal(err)
	}
	if c.User != "me" || c.WorkingDir != "/me" {
		t.Errorf("got %+v", c)
	}
	if want := []string{"MODE=dev", "X=1", "PATH=/bin"}; !slices.Equal(c.Env, want) {
		t.Errorf("env %v, want %v", c.Env, want)
	}
	if c.Labels["both"] != "user" || c.Labels["from"] != "image" {
		t.Errorf("labels %v", c.Labels)
	}
	if h := c.Healthcheck; h.Retries != 2 || h.Interval != time.Minute || len(h.Test) != 2 {
		t.Errorf("health %+v", h)
	}
	if img.Config.Healthcheck.Retries != 5 {
		t.Error("the image's own config was changed")
	}
}

func TestMergeCommand(t *testing.T) {
	for _, c := range []struct {
		name                 string
		entry, cmd           []string
		wantEntry, wantCmd   []string
		imageEntry, imageCmd []string
	}{
		{"nothing given", nil, nil, []string{"e"}, []string{"c"}, []string{"e"}, []string{"c"}},
		{"a command", nil, []string{"x"}, []string{"e"}, []string{"x"}, []string{"e"}, []string{"c"}},
		{"an entrypoint forgets the image's command", []string{"x"}, nil, []string{"x"}, nil, []string{"e"}, []string{"c"}},
		{"both", []string{"x"}, []string{"y"}, []string{"x"}, []string{"y"}, []string{"e"}, []string{"c"}},
		{"an empty entrypoint", []string{""}, []string{"y"}, nil, []string{"y"}, []string{"e"}, []string{"c"}},
		{"an empty entrypoint alone", []string{""}, nil, nil, nil, []string{"e"}, []string{"c"}},
	} {
		got := &container.Config{Entrypoint: c.entry, Cmd: c.cmd}
		mergeCommand(got, c.imageEntry, c.imageCmd)
		if !slices.Equal(got.Entrypoint, c.wantEntry) || !slices.Equal(got.Cmd, c.wantCmd) {
			t.Errorf("%s: got %v %v", c.name, got.Entrypoint, got.Cmd)
		}
	}
}

func TestEndpoints(t *testing.T) {
	h := &container.HostConfig{}
	if ns := endpoints(h, nil); ns["bridge"] == nil || len(ns) != 1 || h.NetworkMode != "bridge" {
		t.Errorf("got %v, mode %s", ns, h.NetworkMode)
	}
	h = &container.HostConfig{NetworkMode: "none"}
	if ns := endpoints(h, nil); ns["none"] == nil || len(ns) != 1 {
		t.Errorf("got %v", ns)
	}
	h = &container.HostConfig{NetworkMode: "front"}
	asked := map[string]*network.EndpointSettings{"front": {Aliases: []string{"www"}}, "back": nil}
	ns := endpoints(h, asked)
	if len(ns) != 2 || ns["front"].Aliases[0] != "www" || ns["back"] == nil {
		t.Errorf("got %v", ns)
	}
	if ns["front"] == asked["front"] {
		t.Error("the caller's settings are shared")
	}
	if ns := endpoints(&container.HostConfig{NetworkMode: "container:x"}, nil); ns != nil {
		t.Errorf("got %v", ns)
	}
}

func TestPlatformWarning(t *testing.T) {
	f := found{imageRecord: &imageRecord{Platform: image.Platform{OS: "linux", Architecture: "s390x"}}}
	w := (&Engine{}).warnings(CreateOptions{}, f)
	want := "The requested image's platform (linux/s390x) does not match the detected host platform (" + hostPlatformText(image.Host()) + ") and no specific platform was requested"
	if len(w) != 1 || w[0] != want {
		t.Errorf("got %q", w)
	}
	if w := (&Engine{}).warnings(CreateOptions{Platform: &f.Platform}, f); len(w) != 0 {
		t.Errorf("a platform that was asked for warns: %q", w)
	}
	if s := hostPlatformText(image.Platform{OS: "linux", Architecture: "amd64"}); s != "linux/amd64/v1" {
		t.Errorf("got %s", s)
	}
}
