// keg events.

package cli

import (
	"fmt"
	"io"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"keg/internal/event"
)

func newEvents(a *app) *cobra.Command {
	var since, until, format string
	var filter filterValue
	c := &cobra.Command{
		Use:  "events [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			print, err := eventPrinter(a.out, format)
			if err != nil {
				return err
			}
			now := a.now()
			from, err := parseTime(since, now)
			if err != nil {
				return failf(`invalid value for "since": %v`, err)
			}
			to, err := parseTime(until, now)
			if err != nil {
				return failf(`invalid value for "until": %v`, err)
			}
			if since == "" {
				from = now
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			follow := to.IsZero() || to.After(now)
			return eng.Events(c.Context(), from, to, follow, filter.f, print)
		},
	}
	fs := c.Flags()
	fs.VarP(&filter, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&format, "format", "", inspectFormatHelp)
	fs.StringVar(&since, "since", "", "Show all events created since timestamp")
	fs.StringVar(&until, "until", "", "Stream events until this timestamp")
	return c
}

func eventPrinter(w io.Writer, format string) (func(event.Message) error, error) {
	if format == "" {
		return func(m event.Message) error { return printEvent(w, m) }, nil
	}
	t, err := parseObjectTemplate("", format)
	if err == nil {
		err = t.Execute(io.Discard, &event.Message{}) // a field that no event has
	}
	if err != nil {
		return nil, &failure{code: exitFormat, msg: "Error parsing format: " + err.Error()}
	}
	return func(m event.Message) error { return executeLine(w, t, m) }, nil
}

func executeLine(w io.Writer, t *template.Template, v any) error {
	if err := t.Execute(w, v); err != nil {
		return failf("template parsing error: %v", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// printEvent: "TIME type action id (key=value, key=value)".
func printEvent(w io.Writer, m event.Message) error {
	at := time.Unix(m.Time, 0)
	if m.TimeNano != 0 {
		at = time.Unix(0, m.TimeNano)
	}
	attrs := ""
	for _, k := range sortedKeys(m.Actor.Attributes) {
		if attrs != "" {
			attrs += ", "
		}
		attrs += k + "=" + m.Actor.Attributes[k]
	}
	if attrs != "" {
		attrs = " (" + attrs + ")"
	}
	_, err := fmt.Fprintf(w, "%s %s %s %s%s\n", at.Format(logTime), m.Type, m.Action, m.Actor.ID, attrs)
	return err
}
