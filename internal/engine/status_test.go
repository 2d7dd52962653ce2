package engine

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
)

func TestStatusTextIsDockers(t *testing.T) {
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	health := func(s container.HealthStatus) *container.Health { return &container.Health{Status: s} }
	for _, c := range []struct {
		st   ctr.State
		want string
	}{
		{ctr.State{Status: container.StateCreated}, "Created"},
		{ctr.State{Status: container.StateRunning, Started: ago(3 * time.Second)}, "Up 3 seconds"},
		{ctr.State{Status: container.StateRunning, Started: ago(500 * time.Millisecond)}, "Up Less than a second"},
		{ctr.State{Status: container.StateRunning, Started: ago(70 * time.Second), Health: health(container.Healthy)}, "Up About a minute (healthy)"},
		{ctr.State{Status: container.StateRunning, Started: ago(70 * time.Second), Health: health(container.Unhealthy)}, "Up About a minute (unhealthy)"},
		{ctr.State{Status: container.StateRunning, Started: ago(2 * time.Minute), Health: health(container.Starting)}, "Up 2 minutes (health: starting)"},
		{ctr.State{Status: container.StateRunning, Started: ago(2 * time.Minute), Health: health(container.NoHealthcheck)}, "Up 2 minutes"},
		{ctr.State{Status: container.StatePaused, Started: ago(2 * time.Hour)}, "Up 2 hours (Paused)"},
		{ctr.State{Status: container.StateRestarting, ExitCode: 1, Started: ago(time.Hour), Finished: ago(3 * time.Second)}, "Restarting (1) 3 seconds ago"},
		{ctr.State{Status: container.StateExited, Started: ago(time.Hour), Finished: ago(5 * time.Minute)}, "Exited (0) 5 minutes ago"},
		{ctr.State{Status: container.StateExited, ExitCode: 137, Started: ago(72 * time.Hour), Finished: ago(72 * time.Hour)}, "Exited (137) 3 days ago"},
		{ctr.State{Status: container.StateRemoving}, "Removal In Progress"},
		{ctr.State{Status: container.StateDead}, "Dead"},
	} {
		if got := statusText(&c.st, now); got != c.want {
			t.Errorf("%s: got %q, want %q", c.st.Status, got, c.want)
		}
	}
}

func TestCommandText(t *testing.T) {
	for _, c := range []struct {
		path string
		args []string
		want string
	}{
		{"sh", nil, "sh"},
		{"/entry.sh", []string{"nginx", "-g", "daemon off;"}, "/entry.sh nginx -g 'daemon off;'"},
		{"echo", []string{""}, "echo "},
	} {
		if got := commandText(c.path, c.args); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
