// keg build --check.

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"keg/internal/builder"
)

// howToCheck is what --check and --call say.
type howToCheck struct{ strict, json bool }

// checks is nil when a build is meant.
func (o *buildFlags) checks() (*howToCheck, error) {
	how := &howToCheck{}
	words := o.check
	if method, rest, _ := strings.Cut(o.call, ","); method != "build" {
		if method != "check" && method != "lint" {
			return nil, failf("invalid --call %q: want build or check", o.call)
		}
		words += "," + rest
	} else if o.check == "" {
		return nil, nil
	}
	for w := range strings.SplitSeq(words, ",") {
		switch w {
		case "", "warn", "true", "format=text":
		case "error":
			how.strict = true
		case "json", "format=json":
			how.json = true
		case "false":
			return nil, nil
		default:
			return nil, failf("invalid --check %q: want error, json, or both with a comma", w)
		}
	}
	return how, nil
}

func (a *app) checkBuild(ctx context.Context, eng backend, req builder.Options, how howToCheck) error {
	c, err := eng.CheckBuild(ctx, req)
	if err != nil {
		return buildError(ctx, err)
	}
	if how.json {
		if err := a.checkedJSON(c); err != nil {
			return err
		}
	} else {
		a.checkedText(c)
	}
	if (how.strict || c.Strict) && len(c.Warnings) > 0 {
		w := c.Warnings[0]
		return failf("ERROR: lint violation found for rules: %s (%s:%d)", strings.Join(rules(c), ", "), c.Name, w.Line)
	}
	return nil
}

func rules(c *builder.Checked) (names []string) {
	seen := map[string]bool{}
	for _, w := range c.Warnings {
		if !seen[w.Rule] {
			seen[w.Rule] = true
			names = append(names, w.Rule)
		}
	}
	return names
}

// checkedText is in the words of docker build --check.
func (a *app) checkedText(c *builder.Checked) {
	switch n := len(c.Warnings); n {
	case 0:
		fmt.Fprintln(a.out, "Check complete, no warnings found.")
	case 1:
		fmt.Fprintln(a.out, "Check complete, 1 warning has been found!")
	default:
		fmt.Fprintf(a.out, "Check complete, %d warnings have been found!\n", n)
	}
	for _, w := range c.Warnings {
		fmt.Fprintf(a.out, "\nWARNING: %s", w.Rule)
		if w.URL != "" {
			fmt.Fprintf(a.out, " - %s", w.URL)
		}
		fmt.Fprintf(a.out, "\n%s\n%s", oneLine(w.Message), w.Excerpt)
	}
}

// checkedJSON has the keys of BuildKit's lint results.
func (a *app) checkedJSON(c *builder.Checked) error {
	type place struct {
		Line int `json:"line"`
	}
	type span struct {
		Start place `json:"start"`
		End   place `json:"end"`
	}
	type location struct {
		SourceIndex int    `json:"sourceIndex"`
		Ranges      []span `json:"ranges"`
	}
	type warning struct {
		RuleName string   `json:"ruleName"`
		URL      string   `json:"url,omitempty"`
		Detail   string   `json:"detail"`
		Location location `json:"location"`
	}
	type source struct {
		Filename string `json:"filename"`
	}
	out := struct {
		Warnings []warning `json:"warnings"`
		Sources  []source  `json:"sources"`
	}{[]warning{}, []source{{c.Name}}}
	for _, w := range c.Warnings {
		out.Warnings = append(out.Warnings, warning{w.Rule, w.URL, w.Message, location{0, []span{{place{w.Line}, place{w.LastLine}}}}})
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, string(b))
	return nil
}
