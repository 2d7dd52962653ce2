// Completion of names in shells.

package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"keg/internal/engine"
)

// nameSource lists names of one kind of object.
type nameSource func(ctx context.Context, eng backend) []string

// complete completes the first n arguments (0: all) with names that are not yet there.
func (a *app) complete(names nameSource, n int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if n > 0 && len(args) >= n {
			// What comes after the image or container is a command inside it.
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		eng, err := a.engine()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var out []string
		for _, name := range names(c.Context(), eng) {
			if !slices.Contains(args, name) {
				out = append(out, name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func containerNames(keep func(container.Summary) bool) nameSource {
	return func(ctx context.Context, eng backend) (out []string) {
		cs, _ := eng.Containers(ctx, engine.ListOptions{All: true})
		for _, c := range cs {
			if keep != nil && !keep(c) {
				continue
			}
			for _, n := range c.Names {
				out = append(out, strings.TrimPrefix(n, "/"))
			}
		}
		return out
	}
}

func imageNames(ctx context.Context, eng backend) (out []string) {
	is, _ := eng.Images(ctx, engine.ImageListOptions{})
	for _, i := range is {
		out = append(out, i.RepoTags...)
	}
	return out
}

func volumeNames(ctx context.Context, eng backend) (out []string) {
	vs, _ := eng.Volumes(ctx, nil)
	for _, v := range vs {
		out = append(out, v.Name)
	}
	return out
}

func networkNames(ctx context.Context, eng backend) (out []string) {
	ns, _ := eng.Networks(ctx, nil)
	for _, n := range ns {
		out = append(out, n.Name)
	}
	return out
}

func allNames(ctx context.Context, eng backend) []string {
	return slices.Concat(containerNames(nil)(ctx, eng), imageNames(ctx, eng), volumeNames(ctx, eng), networkNames(ctx, eng))
}

// completeFlags completes the flags of run, create and exec that name things. Cobra
// keeps such functions in a table of the process, so they are made only when a shell asks.
func (a *app) completeFlags(c *cobra.Command) {
	if !a.completing {
		return
	}
	for flag, f := range map[string]cobra.CompletionFunc{
		"network":      a.complete(networkNames, 0),
		"volumes-from": a.complete(containerNames(anyState), 0),
		"link":         a.complete(containerNames(running), 0),
		"env":          a.completeEnv,
		"restart":      fixed("no", "always", "unless-stopped", "on-failure"),
		"pull":         fixed("always", "missing", "never"),
		"stop-signal":  completeSignals,
		"log-driver":   fixed("json-file", "local", "none"),
		"cap-add":      completeCapabilities,
		"cap-drop":     completeCapabilities,
		"platform":     fixed("linux/amd64", "linux/arm64"),
	} {
		if c.Flags().Lookup(flag) != nil {
			_ = c.RegisterFlagCompletionFunc(flag, f)
		}
	}
	for _, file := range []string{"env-file", "label-file", "cidfile"} {
		if c.Flags().Lookup(file) != nil {
			_ = c.RegisterFlagCompletionFunc(file, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				return nil, cobra.ShellCompDirectiveDefault
			})
		}
	}
}

func fixed(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

func (a *app) completeEnv(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return sortedKeys(a.env), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func completeSignals(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGCONT", "SIGSTOP", "SIGWINCH"},
		cobra.ShellCompDirectiveNoFileComp
}

func completeCapabilities(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return strings.Fields(`ALL AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE
		DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD
		NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN
		SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG
		WAKE_ALARM`), cobra.ShellCompDirectiveNoFileComp
}
