// keg logs.

package cli

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	ctr "keg/internal/container"
)

// logTime is RFC 3339 with all nine digits, so that columns line up.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

type logsFlags struct {
	follow, timestamps, details bool
	since, until, tail          string
}

func newLogs(a *app) *cobra.Command {
	o := &logsFlags{}
	c := &cobra.Command{
		Use:               "logs [OPTIONS] CONTAINER",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(containerNames(anyState), 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.logs(c.Context(), args[0], o)
		},
	}
	fs := c.Flags()
	fs.BoolVar(&o.details, "details", false, "Show extra details provided to logs")
	fs.BoolVarP(&o.follow, "follow", "f", false, "Follow log output")
	fs.StringVar(&o.since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	fs.StringVarP(&o.tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	fs.BoolVarP(&o.timestamps, "timestamps", "t", false, "Show timestamps")
	fs.StringVar(&o.until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	return c
}

func (a *app) logs(ctx context.Context, name string, o *logsFlags) error {
	opt := ctr.LogOptions{Follow: o.follow, Tail: -1}
	if n, err := strconv.Atoi(o.tail); err == nil && n >= 0 {
		opt.Tail = n
	}
	var err error
	if opt.Since, err = parseTime(o.since, a.now()); err != nil {
		return failf(`invalid value for "since": %v`, err)
	}
	if opt.Until, err = parseTime(o.until, a.now()); err != nil {
		return failf(`invalid value for "until": %v`, err)
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	p := logPrinter{out: a.rawOut, err: a.rawErr, timestamps: o.timestamps}
	if o.details {
		r, err := eng.Inspect(ctx, name, false)
		if err != nil {
			return err
		}
		p.details = logDetails(r.HostConfig.LogConfig.Config, r.Config.Labels, r.Config.Env)
	}
	return eng.Logs(ctx, name, opt, p.print)
}

// logPrinter writes entries as they were: a partial one without the end of its line.
type logPrinter struct {
	out, err   io.Writer
	timestamps bool
	details    string
	buf        bytes.Buffer
	within     [2]bool // the last entry of the stream was partial
}

func (p *logPrinter) print(e ctr.LogEntry) error {
	w, i := p.out, 0
	if e.Stream == "stderr" {
		w, i = p.err, 1
	}
	p.buf.Reset()
	if !p.within[i] {
		if p.timestamps {
			p.buf.WriteString(e.Time.UTC().Format(logTime))
			p.buf.WriteByte(' ')
		}
		p.buf.WriteString(p.details)
	}
	p.buf.Write(e.Line)
	if !e.Partial && !bytes.HasSuffix(e.Line, []byte("\n")) {
		p.buf.WriteByte('\n')
	}
	p.within[i] = e.Partial
	_, err := w.Write(p.buf.Bytes())
	return err
}

// logDetails are the labels and variables that --log-opt labels= and env= name.
func logDetails(opt, labels map[string]string, env []string) string {
	vars := keyValues(env)
	details := map[string]string{}
	for _, from := range []struct {
		keys   string
		values map[string]string
	}{{opt["labels"], labels}, {opt["env"], vars}} {
		for _, k := range splitList(from.keys) {
			if v, ok := from.values[k]; ok {
				details[k] = v
			}
		}
	}
	if len(details) == 0 {
		return ""
	}
	return joinLabels(details) + " "
}

// parseTime reads a point in time as Docker does: RFC 3339 with parts left out (local
// time without a zone), Unix seconds with or without a fraction, or a duration back
// from now. "" is the zero time.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if t, ok := parseUnix(s); ok {
		return t, nil
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15Z07:00", "2006-01-02Z07:00",
	} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{
		"2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02",
	} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, failf("failed to parse value as time or duration: %q", s)
}
