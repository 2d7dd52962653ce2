// Help and usage, in the layout that Docker's users know.

package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) printHelp(c *cobra.Command) error { return a.printHelpTo(a.out, c) }

func (a *app) printHelpTo(w io.Writer, c *cobra.Command) error {
	var b strings.Builder
	sub := visible(c)
	if len(sub) == 0 {
		fmt.Fprintf(&b, "Usage:  %s\n", c.UseLine())
	} else {
		options := ""
		if !c.HasParent() {
			options = " [OPTIONS]"
		}
		fmt.Fprintf(&b, "Usage:  %s%s COMMAND\n", c.CommandPath(), options)
	}
	fmt.Fprintf(&b, "\n%s\n", firstOf(c.Long, c.Short))
	if names := otherNames(a.name, c); names != "" {
		fmt.Fprintf(&b, "\nAliases:\n  %s\n", names)
	}
	if c.HasParent() {
		section(&b, "Options", a.flagUsages(c))
	}
	writeCommands(&b, c, sub)
	if !c.HasParent() {
		section(&b, "Global Options", a.flagUsages(c))
	}
	if len(sub) > 0 {
		fmt.Fprintf(&b, "\nRun '%s COMMAND --help' for more information on a command.\n", c.CommandPath())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func section(b *strings.Builder, title, body string) {
	if body != "" {
		fmt.Fprintf(b, "\n%s:\n%s\n", title, strings.TrimRight(body, " \n"))
	}
}

func (a *app) flagUsages(c *cobra.Command) string {
	width := 80
	if a.outTTY {
		if w, _, err := term.GetSize(1); err == nil && w > 20 {
			width = w
		}
	}
	fs := c.LocalFlags()
	if c.HasParent() {
		fs = c.LocalNonPersistentFlags()
	}
	return fs.FlagUsagesWrapped(width - 1)
}

func visible(c *cobra.Command) (cs []*cobra.Command) {
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			cs = append(cs, s)
		}
	}
	return cs
}

// writeCommands lists the commands of the root in three parts, those of a group in one.
func writeCommands(b *strings.Builder, c *cobra.Command, sub []*cobra.Command) {
	pad := 0
	for _, s := range sub {
		pad = max(pad, len(s.Name()))
	}
	list := func(title string, cs []*cobra.Command) {
		if len(cs) == 0 {
			return
		}
		fmt.Fprintf(b, "\n%s:\n", title)
		for _, s := range cs {
			fmt.Fprintf(b, "  %-*s %s\n", pad+1, s.Name(), s.Short)
		}
	}
	if c.HasParent() {
		list("Commands", sub)
		return
	}
	place := map[string]int{}
	for _, e := range commands() {
		place[e.name] = e.top
	}
	var top, groups, rest []*cobra.Command
	for _, s := range sub {
		switch {
		case place[s.Name()] > 0:
			top = append(top, s)
		case s.HasSubCommands():
			groups = append(groups, s)
		default:
			rest = append(rest, s)
		}
	}
	slices.SortFunc(top, func(x, y *cobra.Command) int { return cmp.Compare(place[x.Name()], place[y.Name()]) })
	list("Common Commands", top)
	list("Management Commands", groups)
	list("Commands", rest)
}

// otherNames lists all forms of a command that has more than one: "keg container ls,
// keg container list, keg container ps, keg ps".
func otherNames(program string, c *cobra.Command) string {
	if !c.HasParent() || c.HasSubCommands() {
		return ""
	}
	group, long := "", ""
	if c.Parent().HasParent() {
		group, long = c.Parent().Name(), c.Name()
	} else {
		group, long = longForm(c.Name())
	}
	if group == "" {
		return ""
	}
	names := []string{program + " " + group + " " + long}
	for _, alias := range aliases(entry{name: long}, group) {
		names = append(names, program+" "+group+" "+alias)
	}
	if short := shortForm(group, long); short != "" {
		names = append(names, program+" "+short)
	}
	if len(names) == 1 {
		return ""
	}
	return strings.Join(names, ", ")
}
