package builder

import (
	"reflect"
	"testing"

	"keg/internal/fault"
	"keg/internal/image"
)

func TestChange(t *testing.T) {
	base := &image.Config{}
	base.Config.Env = []string{"PATH=/bin", "HOME=/root"}
	base.Config.Cmd = []string{"old"}
	base.Config.WorkingDir = "/srv"
	base.Config.Labels = map[string]string{"old": "1"}
	base.History = []image.History{{CreatedBy: "first"}}
	got, err := Change(base, []string{
		`ENTRYPOINT ["/bin/a","b"]`, `cmd run it`, `ENV A=1 B=$HOME`, `LABEL k=v`, `EXPOSE 80 53/udp`, `USER www:www`,
		`VOLUME /data`, `WORKDIR sub`, `STOPSIGNAL SIGINT`, `HEALTHCHECK --interval=5s CMD true`, `ONBUILD RUN x`,
	})
	if err != nil {
		t.Fatal(err)
	}
	c := got.Config
	for what, pair := range map[string][2]any{
		"entrypoint": {c.Entrypoint, []string{"/bin/a", "b"}},
		"cmd":        {c.Cmd, []string{"/bin/sh", "-c", "run it"}},
		"env":        {c.Env, []string{"PATH=/bin", "HOME=/root", "A=1", "B=/root"}},
		"labels":     {c.Labels, map[string]string{"old": "1", "k": "v"}},
		"ports":      {c.ExposedPorts, map[string]struct{}{"80/tcp": {}, "53/udp": {}}},
		"user":       {c.User, "www:www"},
		"volumes":    {c.Volumes, map[string]struct{}{"/data": {}}},
		"dir":        {c.WorkingDir, "/srv/sub"},
		"signal":     {c.StopSignal, "SIGINT"},
		"health":     {c.Healthcheck.Test, []string{"CMD-SHELL", "true"}},
		"triggers":   {c.OnBuild, []string{"RUN x"}},
		"history":    {got.History, base.History},
		"base":       {base.Config.Labels, map[string]string{"old": "1"}},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s: got %q, want %q", what, pair[0], pair[1])
		}
	}
	for change, want := range map[string]string{
		"RUN true":            "RUN is not a valid change command",
		"FROM x":              "FROM is not a valid change command",
		"copy a b":            "copy is not a valid change command",
		"":                    " is not a valid change command",
		"CMD a\nRUN b":        `change "CMD a\nRUN b": not a single instruction`,
		"STOPSIGNAL NOSIGNAL": "invalid signal: NOSIGNAL",
	} {
		if _, err := Change(base, []string{change}); err == nil || err.Error() != want || !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", change, err)
		}
	}
}
