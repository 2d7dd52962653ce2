package engine

import (
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"keg/internal/fault"
	"keg/internal/image"
)

// mergeConfig completes what the user asked for by what the image says, by Docker's
// rules. It changes c.
func mergeConfig(c *container.Config, img *image.Config) error {
	from := img.Config
	if c.User == "" {
		c.User = from.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = from.WorkingDir
	}
	if c.StopSignal == "" {
		c.StopSignal = from.StopSignal
	}
	if len(c.Shell) == 0 {
		c.Shell = from.Shell
	}
	c.Env = mergeEnv(c.Env, from.Env)
	if err := mergePorts(c, from.ExposedPorts); err != nil {
		return err
	}
	for v := range from.Volumes {
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[v] = struct{}{}
	}
	for k, v := range from.Labels {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		if _, own := c.Labels[k]; !own {
			c.Labels[k] = v
		}
	}
	mergeCommand(c, from.Entrypoint, from.Cmd)
	mergeHealth(c, from.Healthcheck)
	return nil
}

// mergeEnv keeps the user's values and adds those variables that he did not name.
func mergeEnv(own, image []string) []string {
	named := map[string]bool{}
	for _, e := range own {
		k, _, _ := strings.Cut(e, "=")
		named[k] = true
	}
	for _, e := range image {
		if k, _, _ := strings.Cut(e, "="); !named[k] {
			own = append(own, e)
		}
	}
	return own
}

// mergeCommand: an entrypoint of the user's forgets the image's command too.
func mergeCommand(c *container.Config, entrypoint, cmd []string) {
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = entrypoint
		}
	}
	// --entrypoint "" means none.
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
}

func mergePorts(c *container.Config, exposed map[string]struct{}) error {
	for s := range exposed {
		r, err := network.ParsePortRange(s)
		if err != nil {
			return fault.Invalidf("image exposes port %q: %w", s, err)
		}
		for p := range r.All() {
			if c.ExposedPorts == nil {
				c.ExposedPorts = network.PortSet{}
			}
			c.ExposedPorts[p] = struct{}{}
		}
	}
	return nil
}

func mergeHealth(c *container.Config, from *container.HealthConfig) {
	if from == nil {
		return
	}
	if c.Healthcheck == nil {
		h := *from
		c.Healthcheck = &h
		return
	}
	h := c.Healthcheck
	if len(h.Test) == 0 {
		h.Test = from.Test
	}
	h.Interval = orElse(h.Interval, from.Interval)
	h.Timeout = orElse(h.Timeout, from.Timeout)
	h.StartPeriod = orElse(h.StartPeriod, from.StartPeriod)
	h.StartInterval = orElse(h.StartInterval, from.StartInterval)
	h.Retries = orElse(h.Retries, from.Retries)
}

func orElse[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}
