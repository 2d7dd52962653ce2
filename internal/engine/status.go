package engine

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
)

// statusText is the STATUS column of docker ps.
func statusText(st *ctr.State, now time.Time) string {
	up, ago := now.Sub(st.Started), now.Sub(st.Finished)
	switch st.Status {
	case container.StatePaused:
		return fmt.Sprintf("Up %s (Paused)", units.HumanDuration(up))
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, units.HumanDuration(ago))
	case container.StateRunning:
		if h := healthText(st.Health); h != "" {
			return fmt.Sprintf("Up %s (%s)", units.HumanDuration(up), h)
		}
		return "Up " + units.HumanDuration(up)
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateDead:
		return "Dead"
	}
	if st.Started.IsZero() {
		return "Created"
	}
	if st.Finished.IsZero() {
		return ""
	}
	return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, units.HumanDuration(ago))
}

func healthText(h *container.Health) string {
	if h == nil || h.Status == "" || h.Status == container.NoHealthcheck {
		return ""
	}
	if h.Status == container.Starting {
		return "health: starting"
	}
	return string(h.Status)
}

// commandText is the COMMAND column: path and arguments, those with a space in quotes.
func commandText(path string, args []string) string {
	var b strings.Builder
	b.WriteString(path)
	for _, a := range args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		b.WriteString(" " + a)
	}
	return b.String()
}

// isLive tells the states that need a monitor.
func isLive(s container.ContainerState) bool {
	return s == container.StateRunning || s == container.StatePaused || s == container.StateRestarting
}
