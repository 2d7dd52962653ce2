// From words to one command.

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// entry is one row of a table of commands: what help needs, and how to build it.
type entry struct {
	name  string
	short string
	top   int // place among the common commands; 0: not among them
	make  func(*app) *cobra.Command
	sub   func() []entry // of a group
}

// names that an entry answers to beside its own, in a group only ("container list").
func aliases(e entry, group string) []string {
	switch {
	case e.name == "ls" && group == "container":
		return []string{"list", "ps"}
	case e.name == "build" && group == "buildx":
		return []string{"b"}
	case e.name == "ls":
		return []string{"list"}
	case e.name == "rm":
		return []string{"remove"}
	}
	return nil
}

func find(table []entry, group, name string) (entry, bool) {
	for _, e := range table {
		if e.name == name || slices.Contains(aliases(e, group), name) {
			return e, true
		}
	}
	return entry{}, false
}

// run parses the global flags, builds the command that the rest names, and runs it.
func (a *app) run(ctx context.Context, args []string) error {
	fs := pflag.NewFlagSet(a.name, pflag.ContinueOnError)
	fs.SetInterspersed(false)
	fs.Usage = func() {}
	a.global.bindRoot(fs)
	a.global.bindAll(fs)
	help := fs.BoolP("help", "h", false, "Print usage")
	if err := fs.Parse(args); err != nil {
		return a.rootUsageError(err)
	}
	rest := fs.Args()
	switch {
	case a.global.version:
		printVersionLine(a.out, a.name)
		return nil
	case len(rest) == 0 && *help:
		return a.printHelp(a.tree())
	case len(rest) == 0:
		return a.printHelpTo(a.err, a.tree())
	case *help:
		rest = append(rest, "--help")
	case rest[0] == "help":
		return a.help(rest[1:])
	case rest[0] == "completion" || rest[0] == cobra.ShellCompRequestCmd || rest[0] == cobra.ShellCompNoDescRequestCmd:
		a.completing = true
		return a.execute(ctx, a.tree(), rest)
	}
	e, ok := find(commands(), "", rest[0])
	if !ok {
		return a.unknown("", rest[0])
	}
	if a.uid != 0 && a.become != nil && readsInput(rest) {
		// Inside, the same words begin anew: what was read here would be lost.
		if _, err := a.engine(); err != nil {
			return err
		}
	}
	if e.name == "run" && !a.completing {
		a.expectRun(rest[1:])
	}
	root := a.root()
	if e.sub == nil {
		root.AddCommand(a.build(e, ""))
		return a.execute(ctx, root, rest)
	}
	group, err := a.group(e, rest[1:])
	if err != nil {
		return err
	}
	root.AddCommand(group)
	return a.execute(ctx, root, rest)
}

// expectRun opens the engine before the flags are read, so that what takes longest of a run, the start of its
// monitor, begins at once. Words that may move the engine elsewhere or ask for help are waited for.
func (a *app) expectRun(words []string) {
	for _, w := range words {
		if w == "--help" || strings.HasPrefix(w, "--root") || strings.HasPrefix(w, "--run-root") {
			return
		}
	}
	if a.uid != 0 || len(words) == 0 {
		return
	}
	if eng, err := a.engine(); err == nil {
		eng.Expect()
	}
}

// readsInput tells commands that may read standard input before they want an engine.
func readsInput(words []string) bool {
	if slices.Contains(words, "--help") || slices.Contains(words, "-h") {
		return false
	}
	first, second := words[0], ""
	if len(words) > 1 {
		second = words[1]
	}
	switch first {
	case "build", "load", "import", "cp", "login":
		return true
	case "image", "builder", "buildx", "container", "volume":
		return second == "build" || second == "b" || second == "load" || second == "import" || second == "cp"
	}
	return false
}

// group builds the group and of its commands only the one that is asked for, all of
// them for help.
func (a *app) group(e entry, rest []string) (*cobra.Command, error) {
	g := a.build(e, "")
	for _, w := range rest {
		if strings.HasPrefix(w, "-") {
			continue
		}
		s, ok := find(e.sub(), e.name, w)
		if !ok {
			return nil, a.unknown(" "+e.name, w)
		}
		g.AddCommand(a.build(s, e.name))
		return g, nil
	}
	for _, s := range e.sub() {
		g.AddCommand(a.build(s, e.name))
	}
	return g, nil
}

// tree builds everything: for help, completion and the generated reference.
func (a *app) tree() *cobra.Command {
	root := a.root()
	for _, e := range commands() {
		c := a.build(e, "")
		if e.sub != nil {
			for _, s := range e.sub() {
				c.AddCommand(a.build(s, e.name))
			}
		}
		root.AddCommand(c)
	}
	return root
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           a.name + " [OPTIONS] COMMAND [ARG...]",
		Short:         "A container engine without a daemon",
		SilenceUsage:  true,
		SilenceErrors: true,
		// The name of a command is known before cobra sees it: no guessing.
		DisableSuggestions: true,
		CompletionOptions:  cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.DisableFlagsInUseLine = true
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.in)
	root.SetHelpCommand(&cobra.Command{Use: "help [command]", Short: "Help about the command", Hidden: true})
	root.SetHelpFunc(func(c *cobra.Command, _ []string) { _ = a.printHelp(c) })
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &failure{code: exitUsage, msg: fmt.Sprintf("%v\n\nUsage:  %s\n\nRun '%s --help' for more information", err, c.UseLine(), c.CommandPath())}
	})
	a.global.bindRoot(root.Flags())
	a.global.bindAll(root.PersistentFlags())
	return root
}

// build makes one command and gives it the name that it has in its table.
func (a *app) build(e entry, group string) *cobra.Command {
	var c *cobra.Command
	if e.make != nil {
		c = e.make(a)
	} else {
		c = &cobra.Command{Use: e.name, RunE: func(c *cobra.Command, _ []string) error { return a.printHelpTo(a.err, c) }}
	}
	if _, rest, ok := strings.Cut(c.Use, " "); ok {
		c.Use = e.name + " " + rest
	} else {
		c.Use = e.name
	}
	c.Aliases = aliases(e, group)
	c.Short = e.short
	c.DisableFlagsInUseLine = true
	if c.Flags().ShorthandLookup("h") == nil {
		c.Flags().BoolP("help", "h", false, "Print usage")
	} else {
		c.Flags().Bool("help", false, "Print usage") // -h is the host name of run and create
	}
	c.Flags().Lookup("help").Hidden = true
	if c.ValidArgsFunction == nil {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	return c
}

func (a *app) execute(ctx context.Context, root *cobra.Command, args []string) error {
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

func (a *app) unknown(group, word string) error {
	if group == "" {
		return failf("%[1]s: unknown command: %[1]s %[2]s\n\nRun '%[1]s --help' for more information", a.name, word)
	}
	return failf("%[1]s: unknown command: %[1]s%[2]s %[3]s\n\nUsage:  %[1]s%[2]s\n\nRun '%[1]s%[2]s --help' for more information", a.name, group, word)
}

func (a *app) rootUsageError(err error) error {
	return &failure{code: exitUsage, msg: fmt.Sprintf("%v\n\nUsage:  %[2]s [OPTIONS] COMMAND [ARG...]\n\nRun '%[2]s --help' for more information", err, a.name)}
}

// help is keg help [COMMAND [COMMAND]].
func (a *app) help(words []string) error {
	root := a.tree()
	c, rest, err := root.Find(words)
	if err != nil || len(rest) > 0 {
		return failf("unknown help topic: %s", strings.Join(words, " "))
	}
	return a.printHelp(c)
}

// bindRoot are Docker's global flags, which stand before the command. Flags are bound
// twice, to the set that finds the command and to the command tree, so a default is
// the value so far.
func (g *globals) bindRoot(fs *pflag.FlagSet) {
	fs.StringVar(&g.config, "config", g.config, "Directory of the client's config files (default $HOME/.docker)")
	fs.StringVarP(&g.context, "context", "c", g.context, `Accepted for compatibility: the only context is "default"`)
	fs.VarP(newList(&g.host, nil), "host", "H", "Accepted for compatibility: a Unix socket means this machine")
	fs.StringVarP(&g.logLevel, "log-level", "l", firstOf(g.logLevel, "info"), `How much to log ("debug", "info", "warn", "error", "fatal")`)
	fs.BoolVarP(&g.version, "version", "v", g.version, "Print version information and quit")
	fs.BoolVar(&g.tls, "tls", g.tls, "")
	fs.BoolVar(&g.tlsVerify, "tlsverify", g.tlsVerify, "")
	fs.StringVar(&g.caCert, "tlscacert", g.caCert, "")
	fs.StringVar(&g.cert, "tlscert", g.cert, "")
	fs.StringVar(&g.key, "tlskey", g.key, "")
	for _, hidden := range []string{"tls", "tlsverify", "tlscacert", "tlscert", "tlskey"} {
		fs.Lookup(hidden).Hidden = true
	}
}

// bindAll are the flags that every command takes.
func (g *globals) bindAll(fs *pflag.FlagSet) {
	fs.StringVar(&g.root, "root", g.root, "Directory of the engine's state (env KEG_ROOT)")
	fs.StringVar(&g.runRoot, "run-root", g.runRoot, "Directory of what ends with the boot (env KEG_RUN_ROOT)")
	if fs.ShorthandLookup("D") == nil {
		fs.BoolVarP(&g.debug, "debug", "D", g.debug, "Say more about what is done")
	}
}
