package monitor

// HEALTHCHECK: a command run again and again in the container, and what its results mean.

import (
	"context"
	"errors"
	"strings"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"
)

// Docker's defaults.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthLog           = 5    // results kept
	healthOutput        = 4096 // bytes kept of each
)

// healthTest returns the command of a health check; nil for none.
func healthTest(c *dcontainer.Config) []string {
	h := c.Healthcheck
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		if len(h.Test) > 1 {
			return h.Test[1:]
		}
	case "CMD-SHELL":
		shell := c.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(append([]string{}, shell...), strings.Join(h.Test[1:], " "))
	}
	return nil
}

// health runs the checks of one run of a container.
type health struct {
	m     *monitor
	r     *run
	test  []string
	cfg   dcontainer.HealthConfig
	probe func(ctx context.Context) dcontainer.HealthcheckResult // runs the command once
	note  func(dcontainer.Health, bool)                          // the state; true when the status changed
}

func newHealth(m *monitor, r *run, cfg *dcontainer.HealthConfig, test []string) *health {
	h := &health{m: m, r: r, test: test, cfg: *cfg}
	h.probe, h.note = h.execProbe, h.record
	return h
}

func orDefault(d, def time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return def
}

// run probes until the run has ended.
func (h *health) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-h.r.done; cancel() }()
	h.loop(ctx)
}

func (h *health) loop(ctx context.Context) {
	st := dcontainer.Health{Status: dcontainer.Starting}
	begin := time.Now()
	for {
		wait := orDefault(h.cfg.Interval, healthInterval)
		if st.Status == dcontainer.Starting && time.Since(begin) < h.cfg.StartPeriod {
			wait = min(wait, orDefault(h.cfg.StartInterval, healthStartInterval))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		pctx, cancel := context.WithTimeout(ctx, orDefault(h.cfg.Timeout, healthTimeout))
		res := h.probe(pctx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		before := st.Status
		st = h.judge(st, res, begin)
		h.note(st, st.Status != before)
	}
}

// judge is the whole logic: success is healthy at once; failures count after the start
// period, and so many in a row are unhealthy.
func (h *health) judge(st dcontainer.Health, res dcontainer.HealthcheckResult, begin time.Time) dcontainer.Health {
	log := append(append([]*dcontainer.HealthcheckResult{}, st.Log...), &res)
	st.Log = log[max(0, len(log)-healthLog):]
	retries := h.cfg.Retries
	if retries <= 0 {
		retries = healthRetries
	}
	switch {
	case res.ExitCode == 0:
		st.FailingStreak, st.Status = 0, dcontainer.Healthy
	case st.Status == dcontainer.Starting && res.Start.Sub(begin) < h.cfg.StartPeriod:
		// not yet
	default:
		if st.FailingStreak++; st.FailingStreak >= retries {
			st.Status = dcontainer.Unhealthy
		}
	}
	return st
}

func (h *health) record(st dcontainer.Health, changed bool) {
	h.m.mu.Lock()
	if h.m.run == h.r {
		h.m.st.Health = &st
		if err := h.m.containers.PutState(h.m.id, &h.m.st, true); err != nil {
			complain(err)
		}
	}
	h.m.mu.Unlock()
	if changed {
		h.m.event(events.Action("health_status: "+string(st.Status)), nil)
	}
}

// execProbe runs the command in the container.
func (h *health) execProbe(ctx context.Context) (res dcontainer.HealthcheckResult) {
	res.Start = time.Now()
	defer func() { res.End = time.Now() }()
	if _, err := h.m.executable(); err != nil {
		res.ExitCode, res.Output = -1, err.Error()
		return res
	}
	x, err := h.m.startExec(h.r, ExecRequest{Cmd: h.test}, attachment{Stdout: true, Stderr: true})
	if err != nil {
		res.ExitCode, res.Output = -1, err.Error()
		return res
	}
	out := &keep{max: healthOutput}
	late := ""
	go h.m.reapExec(x, x.pumpTo(func(_ byte, b []byte) { out.add(b) }))
	select {
	case <-x.done:
		res.ExitCode = x.code
	case <-ctx.Done():
		x.proc.Signal(int(unix.SIGKILL))
		<-x.done
		res.ExitCode = -1
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			late = "Health check exceeded timeout (" + orDefault(h.cfg.Timeout, healthTimeout).String() + ")"
		}
	}
	res.Output = out.String()
	if late != "" && res.Output != "" {
		late += ": "
	}
	res.Output = late + res.Output
	return res
}
