package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/reference and docs/man anew")

// The reference and the man pages are what the commands say of themselves.
func TestReference(t *testing.T) {
	a := &app{name: "keg", env: map[string]string{}, completing: true, uid: 0}
	pages := map[string][]byte{}
	var index strings.Builder
	index.WriteString("# Commands\n\nMade from the commands themselves by `go test ./internal/cli -run TestReference -update`.\n\n| command | |\n|---|---|\n")
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		words := strings.Fields(c.CommandPath())
		file := strings.Join(words, "-")
		man := filepath.Join("man", file+".1")
		if short := shortPage(c); short != "" {
			pages[man] = fmt.Appendf(nil, ".so man1/keg-%s.1\n", short)
			fmt.Fprintf(&index, "| [%s](keg-%s.md) | %s |\n", c.CommandPath(), short, c.Short)
		} else {
			pages[filepath.Join("reference", file+".md")] = markdown(c)
			pages[man] = manPage(c)
			if c.HasParent() {
				fmt.Fprintf(&index, "| [%s](%s.md) | %s |\n", c.CommandPath(), file, c.Short)
			}
		}
		for _, s := range visible(c) {
			walk(s)
		}
	}
	walk(a.tree())
	pages["reference/README.md"] = []byte(index.String())
	docs := "../../docs"
	if *update {
		for _, dir := range []string{"reference", "man"} {
			os.RemoveAll(filepath.Join(docs, dir))
			if err := os.MkdirAll(filepath.Join(docs, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for name, b := range pages {
			if err := os.WriteFile(filepath.Join(docs, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, want := range pages {
		if got, err := os.ReadFile(filepath.Join(docs, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("docs/%s is not what the command says (%v); run go test ./internal/cli -run TestReference -update", name, err)
		}
	}
	for _, dir := range []string{"reference", "man"} {
		ents, err := os.ReadDir(filepath.Join(docs, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range ents {
			if pages[filepath.Join(dir, e.Name())] == nil {
				t.Errorf("docs/%s/%s is of no command", dir, e.Name())
			}
		}
	}
}

// shortPage is the short command that a long one is another name of.
func shortPage(c *cobra.Command) string {
	if !c.HasParent() || !c.Parent().HasParent() {
		return ""
	}
	return shortForm(c.Parent().Name(), c.Name())
}

// options lists the flags of a command, as its help does.
func options(c *cobra.Command) (list []*pflag.Flag) {
	fs := c.LocalNonPersistentFlags()
	if !c.HasParent() {
		fs = c.LocalFlags()
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			list = append(list, f)
		}
	})
	return list
}

func flagWords(f *pflag.Flag) (words, usage string) {
	kind, usage := pflag.UnquoteUsage(f)
	words = "--" + f.Name
	if f.Shorthand != "" {
		words = "-" + f.Shorthand + ", " + words
	}
	if kind != "" {
		words += " " + kind
	}
	if !slices.Contains([]string{"", "false", "0", "[]", "0s", "map[]", "<nil>"}, f.DefValue) && !strings.Contains(usage, "(default") {
		usage += fmt.Sprintf(" (default %s)", f.DefValue)
	}
	return words, usage
}

func useLine(c *cobra.Command) string {
	if len(visible(c)) > 0 {
		return c.CommandPath() + " COMMAND"
	}
	return c.UseLine()
}

func markdown(c *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n\n%s.\n\n    %s\n", c.CommandPath(), firstOf(c.Long, c.Short), useLine(c))
	if names := otherNames("keg", c); names != "" {
		fmt.Fprintf(&b, "\nThe same by other names: `%s`\n", strings.ReplaceAll(names, ", ", "`, `"))
	}
	cell := strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "*", `\*`)
	if fs := options(c); len(fs) > 0 {
		b.WriteString("\n| option | |\n|---|---|\n")
		for _, f := range fs {
			words, usage := flagWords(f)
			fmt.Fprintf(&b, "| `%s` | %s |\n", words, cell.Replace(strings.Join(strings.Fields(usage), " ")))
		}
	}
	if sub := visible(c); len(sub) > 0 && c.HasParent() {
		b.WriteString("\n| command | |\n|---|---|\n")
		for _, s := range sub {
			page := strings.ReplaceAll(s.CommandPath(), " ", "-")
			if short := shortPage(s); short != "" {
				page = "keg-" + short
			}
			fmt.Fprintf(&b, "| [%s](%s.md) | %s |\n", s.CommandPath(), page, cell.Replace(s.Short))
		}
	}
	return b.Bytes()
}

// manPage is a page of section 1, in the macros of man(7).
func manPage(c *cobra.Command) []byte {
	var b bytes.Buffer
	esc := func(s string) string {
		s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
		if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
			s = `\&` + s
		}
		return s
	}
	page := strings.ReplaceAll(c.CommandPath(), " ", "-")
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"keg\" \"keg manual\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(esc(page)), esc(page), esc(c.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", esc(useLine(c)))
	if c.Long != "" {
		fmt.Fprintf(&b, ".SH DESCRIPTION\n%s\n", esc(strings.ReplaceAll(c.Long, "\n", " ")))
	}
	if names := otherNames("keg", c); names != "" {
		fmt.Fprintf(&b, ".SH OTHER NAMES\n%s\n", esc(names))
	}
	if fs := options(c); len(fs) > 0 {
		b.WriteString(".SH OPTIONS\n")
		for _, f := range fs {
			words, usage := flagWords(f)
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", esc(words), esc(strings.Join(strings.Fields(usage), " ")))
		}
	}
	if sub := visible(c); len(sub) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, s := range sub {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", esc(s.Name()), esc(s.Short))
		}
	}
	if c.HasParent() {
		fmt.Fprintf(&b, ".SH SEE ALSO\n.BR %s (1)\n", esc(strings.ReplaceAll(c.Parent().CommandPath(), " ", "-")))
	}
	return b.Bytes()
}
