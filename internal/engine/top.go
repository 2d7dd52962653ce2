package engine

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/sandbox/cgroup"
)

// Top lists the processes of a running container as ps of the host sees them. Without
// options the columns are those of "ps -ef", read from /proc without any program.
func (e *Engine) Top(ctx context.Context, ref string, options []string) (container.TopResponse, error) {
	r, st, err := e.alive(ctx, ref)
	if err != nil {
		return container.TopResponse{}, err
	}
	pids, err := e.pids(st)
	if err != nil {
		return container.TopResponse{}, err
	}
	if len(pids) == 0 {
		return container.TopResponse{}, notRunning(r.ID)
	}
	if len(options) == 0 || len(options) == 1 && (options[0] == "-ef" || options[0] == "ef") {
		return fullList(pids)
	}
	return runPS(ctx, options, pids)
}

// alive finds a container that must run; a paused one does.
func (e *Engine) alive(ctx context.Context, ref string) (*ctr.Record, *ctr.State, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	switch st.Status {
	case container.StateRunning, container.StatePaused:
		return r, st, nil
	case container.StateRestarting:
		return nil, nil, fault.Conflictf("container %s is restarting, wait until the container is running", r.ID)
	}
	return nil, nil, notRunning(r.ID)
}

// pids are the processes of a running container, from its cgroup.
func (e *Engine) pids(st *ctr.State) ([]int, error) {
	g, err := cgroup.Open(st.CgroupPath)
	if err != nil {
		return nil, err
	}
	pids, err := g.Pids()
	if err == nil && len(pids) == 0 && st.Pid > 0 {
		pids = linux.SamePidNS(st.Pid) // a host that gave us no cgroup
	}
	return pids, err
}

// runPS asks the host's ps and keeps the lines of the container.
func runPS(ctx context.Context, options []string, pids []int) (container.TopResponse, error) {
	if err := checkPSOptions(options); err != nil {
		return container.TopResponse{}, err
	}
	list := make([]string, len(pids))
	for i, p := range pids {
		list[i] = strconv.Itoa(p)
	}
	// Only these processes, where ps allows -q beside the options; else all of them.
	out, err := exec.CommandContext(ctx, "ps", append(options[:len(options):len(options)], "-q"+strings.Join(list, ","))...).Output()
	if err != nil {
		out, err = exec.CommandContext(ctx, "ps", options...).Output()
	}
	if err != nil {
		return container.TopResponse{}, psError(options, err)
	}
	return parsePS(string(out), list)
}

// checkPSOptions refuses "-o x=PID": a column that would pass for the number of the process.
func checkPSOptions(options []string) error {
	for _, w := range strings.Fields(strings.Join(options, " ")) {
		if k, v, ok := strings.Cut(w, "="); ok && strings.HasPrefix(v, "PID") && k != "pid" {
			return fault.Invalidf("specifying \"%s=%s\" is not allowed", k, v)
		}
	}
	return nil
}

func psError(options []string, err error) error {
	if x, ok := err.(*exec.ExitError); ok {
		text, _, _ := strings.Cut(strings.TrimSpace(string(x.Stderr)), "\n")
		return fault.Invalidf("ps: %s", orElse(text, x.Error()))
	}
	return fmt.Errorf("run ps %s on the host: %w; without options keg needs no ps", strings.Join(options, " "), err)
}

// parsePS reads a table with a column PID. Lines of threads, whose PID is "-", belong to the
// process before them.
func parsePS(text string, pids []string) (container.TopResponse, error) {
	lines := strings.Split(text, "\n")
	res := container.TopResponse{Titles: strings.Fields(lines[0]), Processes: [][]string{}}
	at := -1
	for i, t := range res.Titles {
		if t == "PID" {
			at = i
			break
		}
	}
	if at < 0 {
		return res, fault.Invalidf("Couldn't find PID field in ps output")
	}
	own := map[string]bool{}
	for _, p := range pids {
		own[p] = true
	}
	last := false
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) <= at {
			continue
		}
		if f[at] != "-" {
			last = own[f[at]]
		}
		if !last {
			continue
		}
		if n := len(res.Titles); len(f) > n {
			f = append(f[:n-1], strings.Join(f[n-1:], " "))
		}
		res.Processes = append(res.Processes, f)
	}
	return res, nil
}
