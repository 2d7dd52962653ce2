package engine

import (
	"context"
	"slices"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
)

// Booted is one container that StartBoot looked at and tried to start.
type Booted struct {
	ID, Name string
	Err      error
}

// StartBoot starts what should run after a boot: restart policy "always"; "unless-stopped" that
// nobody stopped; "on-failure" that the end of the machine interrupted. What never ran is left alone, what
// runs already too. Those that others lean on come first. started hears of each.
func (e *Engine) StartBoot(ctx context.Context, started func(Booted)) error {
	list, err := e.all(ctx)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(c one) bool { return !startsAtBoot(c) })
	slices.SortFunc(list, func(a, b one) int { return a.Created.Compare(b.Created) })
	for _, c := range inOrder(list) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err := e.start(ctx, c.Record, nil)
		started(Booted{c.ID, c.Name, err})
	}
	return nil
}

func startsAtBoot(c one) bool {
	if isLive(c.st.Status) || c.st.Started.IsZero() {
		return false
	}
	switch p := c.Host.RestartPolicy; p.Name {
	case container.RestartPolicyAlways:
		return true
	case container.RestartPolicyUnlessStopped:
		return !c.st.ManualStop
	case container.RestartPolicyOnFailure:
		return interrupted(c.st) && (p.MaximumRetryCount == 0 || c.st.RestartCount < p.MaximumRetryCount)
	}
	return false
}

// interrupted: it did not end by itself, its monitor did.
func interrupted(st *ctr.State) bool {
	const lost = "monitor lost"
	return len(st.Error) >= len(lost) && st.Error[:len(lost)] == lost && !st.ManualStop
}

// inOrder puts containers behind those whose namespaces or addresses they need. Circles
// stay in the order of creation.
func inOrder(list []one) (out []one) {
	byRef := map[string]int{}
	for i, c := range list {
		byRef[c.ID], byRef[c.Name] = i, i
	}
	seen := make([]bool, len(list))
	var visit func(i int)
	visit = func(i int) {
		if seen[i] {
			return
		}
		seen[i] = true
		for _, ref := range needs(list[i].Host) {
			if j, ok := byRef[ref]; ok {
				visit(j)
			}
		}
		out = append(out, list[i])
	}
	for i := range list {
		visit(i)
	}
	return out
}

// needs names the containers that must run before one with this configuration.
func needs(h *container.HostConfig) []string {
	refs := []string{h.NetworkMode.ConnectedContainer(), h.PidMode.Container(), h.IpcMode.Container()}
	for _, l := range h.Links {
		refs = append(refs, linkTarget(l))
	}
	return slices.DeleteFunc(refs, func(s string) bool { return s == "" })
}
