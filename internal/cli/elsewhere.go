// Flags of Docker that speak of what this engine is not: a swarm, Windows, an experiment. They are
// known, and refused in the words of a Docker that is not one either.

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

const notSwarm = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`

func ofSwarm(string) string { return notSwarm }

func ofExperiments(flag string) string {
	return fmt.Sprintf("\"--%s\" is only supported on a Docker daemon with experimental features enabled", flag)
}

func ofWindows(flag string) string {
	return fmt.Sprintf("\"--%s\" is only supported on a Docker daemon running on windows, but the Docker daemon is running on linux", flag)
}

// onlyWindows are the flags of run and create that mean something on Windows only.
func onlyWindows() []string {
	return []string{"cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops"}
}

// elsewhere adds such flags to a command, hidden.
func elsewhere(c *cobra.Command, why func(flag string) string, names ...string) {
	for _, n := range names {
		c.Flags().String(n, "", "")
		c.Flags().Lookup(n).Hidden = true
	}
	before := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		for _, n := range names {
			if c.Flags().Changed(n) {
				return failf("%s", why(n))
			}
		}
		if before != nil {
			return before(c, args)
		}
		return nil
	}
}
