package engine

// What Docker refuses of a container to be, in Docker's words, before anything is made.

import (
	"path"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/delegate"
	"keg/internal/fault"
)

// checkHost refuses what cannot be right before anything is made.
func checkHost(c *container.Config, h *container.HostConfig) error {
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return fault.As(fault.Invalid, err)
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return fault.Invalidf("can't create 'AutoRemove' container with restart policy")
	}
	if err := checkConfig(c); err != nil {
		return err
	}
	if err := checkModes(h); err != nil {
		return err
	}
	if c.WorkingDir != "" && c.WorkingDir[0] != '/' {
		return fault.Invalidf("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	if err := checkLimits(&h.Resources); err != nil {
		return err
	}
	for dest := range h.Tmpfs {
		if err := checkTmpfs(dest); err != nil {
			return err
		}
	}
	if !delegate.Own(h.Runtime) {
		if _, err := delegate.Find(h.Runtime); err != nil {
			return err
		}
	}
	switch t := h.LogConfig.Type; t {
	case "", "json-file", "local", "none":
	default:
		return fault.Unsupportedf("logger: no log driver named '%s' is registered; keg has json-file, local and none", t)
	}
	return nil
}

// checkLimits is about memory and processors.
func checkLimits(h *container.Resources) error {
	if m := h.Memory; m != 0 && m < 6<<20 {
		return fault.Invalidf("Minimum memory limit allowed is 6MB")
	}
	if s := h.MemorySwap; s > 0 && h.Memory == 0 {
		return fault.Invalidf("You should always set the Memory limit when using Memoryswap limit, see usage")
	} else if s > 0 && s < h.Memory {
		return fault.Invalidf("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if h.NanoCPUs > 0 && (h.CPUQuota > 0 || h.CPUPeriod > 0) {
		return fault.Invalidf("Conflicting options: Nano CPUs and CPU quota or period cannot both be set")
	}
	if h.NanoCPUs < 0 {
		return fault.Invalidf("Range of CPUs is from 0.01 upwards: %d nano CPUs were asked for", h.NanoCPUs)
	}
	if h.CPUShares < 0 {
		return fault.Invalidf("invalid CPU shares (%d): value must be a positive integer", h.CPUShares)
	}
	return nil
}

// checkConfig is about the container's own settings.
func checkConfig(c *container.Config) error {
	for _, env := range c.Env {
		if env == "" || strings.HasPrefix(env, "=") {
			return fault.Invalidf("invalid environment variable: %s", env)
		}
	}
	h := c.Healthcheck
	if h == nil {
		return nil
	}
	for _, x := range []struct {
		what string
		d    time.Duration
	}{
		{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval},
	} {
		if x.d != 0 && x.d < container.MinimumDuration {
			return fault.Invalidf("%s in Healthcheck cannot be less than %s", x.what, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return fault.Invalidf("Retries in Healthcheck cannot be negative")
	}
	return nil
}

// checkModes is about namespaces and annotations.
func checkModes(h *container.HostConfig) error {
	switch {
	case !h.IpcMode.Valid():
		return fault.Invalidf("invalid IPC mode: %s", h.IpcMode)
	case !h.PidMode.Valid():
		return fault.Invalidf("invalid PID mode: %s", h.PidMode)
	case !h.UTSMode.Valid():
		return fault.Invalidf("invalid UTS mode: %s", h.UTSMode)
	case !h.CgroupnsMode.Valid():
		return fault.Invalidf("invalid cgroup namespace mode: %s", h.CgroupnsMode)
	}
	if mode, err := ctr.ParseUserns(string(h.UsernsMode)); err != nil {
		return err
	} else if mode.Own() && (h.Privileged || !delegate.Own(h.Runtime)) {
		return fault.Invalidf("--userns=%s: privileged containers and those of other runtimes have the engine's ids; leave --userns out, or use host", h.UsernsMode)
	}
	if err := ctr.CheckCapabilities(h); err != nil {
		return err
	}
	for key := range h.Annotations {
		if key == "" {
			return fault.Invalidf("invalid Annotations: the empty string is not permitted as an annotation key")
		}
	}
	return nil
}

func checkTmpfs(dest string) error {
	if !path.IsAbs(dest) {
		return fault.Invalidf("invalid mount path: '%s' mount path must be absolute", dest)
	}
	if path.Clean(dest) == "/" {
		return fault.Invalidf("invalid specification: destination can't be '/'")
	}
	return nil
}

// normalise writes what was left out or can be said in several ways as Docker's inspect shows it.
func normalise(c *container.Config, h *container.HostConfig) {
	if c.WorkingDir != "" {
		c.WorkingDir = path.Clean(c.WorkingDir)
	}
	if h.IpcMode == "" {
		h.IpcMode = container.IPCModePrivate
	}
	if h.ShmSize == 0 && (h.IpcMode.IsPrivate() || h.IpcMode.IsShareable()) {
		h.ShmSize = ctr.DefaultShm
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = "json-file"
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if p := h.PidsLimit; p != nil && *p < 0 {
		h.PidsLimit = new(int64) // no limit
	}
}
