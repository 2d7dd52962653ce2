// The configuration file of a server: one directive a line, words separated by blanks,
// "#" begins a comment, words with blanks stand in double quotes.
//
//	listen    0.0.0.0:5000
//	dir       /srv/registry
//	tls       /etc/keg/cert.pem /etc/keg/key.pem
//	htpasswd  /etc/keg/users
//	allow     **        anyone pull   users push       # public pull, authenticated push
//	allow     team/**   alice,bob push,delete
//	immutable **        v*
//	quota     team/**   10GiB
//	keep      team/**   last=10 age=30d pulled=14d
//	collect   every=1h grace=1h
//	upstream  hub/      docker.io
//	metrics   on
//
// A mistake is reported with its line, and all mistakes at once.

package registry

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"keg/internal/fault"
)

// Settings are what a configuration file says.
type Settings struct {
	Addr    string // "" = the default
	Dir     string // "" = the engine's own store
	Quiet   bool   // no access log
	Options ServerOptions
}

// ReadSettings reads a configuration file and checks all of it, the files that it names
// included. The error has a line "FILE:LINE: ..." for each mistake.
func ReadSettings(file string) (Settings, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Settings{}, fmt.Errorf("read configuration: %w", err)
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return Settings{}, err
	}
	return parseSettings(file, filepath.Dir(abs), string(b))
}

// reader goes through the lines of a file.
type reader struct {
	set    Settings
	base   string         // relative file names begin here
	seen   map[string]int // line of directives that stand once
	delete bool           // a directive has spoken of it
}

func parseSettings(file, base, text string) (Settings, error) {
	r := &reader{base: base, seen: map[string]int{}}
	var errs []error
	line := 0
	for l := range strings.Lines(text) {
		line++
		words, err := splitWords(strings.TrimRight(l, "\r\n"))
		if err == nil && len(words) > 0 {
			err = r.directive(line, words[0], words[1:])
		}
		if err != nil {
			errs = append(errs, fault.Invalidf("%s:%d: %w", file, line, err))
		}
	}
	if len(errs) == 0 {
		if l, err := r.finish(); err != nil {
			errs = append(errs, fault.Invalidf("%s:%d: %w", file, max(l, 1), err))
		}
	}
	return r.set, fault.As(fault.Invalid, errors.Join(errs...))
}

// splitWords splits a line; a word in double quotes is read as Go reads it.
func splitWords(s string) (words []string, err error) {
	for {
		s = strings.TrimLeft(s, " \t")
		if s == "" || s[0] == '#' {
			return words, nil
		}
		if s[0] == '"' {
			q, err := strconv.QuotedPrefix(s)
			if err != nil {
				return nil, errors.New("a quote is not closed")
			}
			w, err := strconv.Unquote(q)
			if err != nil {
				return nil, err
			}
			words, s = append(words, w), s[len(q):]
			continue
		}
		end := strings.IndexAny(s, " \t")
		if end < 0 {
			end = len(s)
		}
		words, s = append(words, s[:end]), s[end:]
	}
}

// directives that stand at most once, and how many words they take.
var once = [...]struct {
	name     string
	min, max int
	usage    string
}{
	{"listen", 1, 1, "listen HOST:PORT"},
	{"dir", 1, 1, `dir DIRECTORY, or "dir engine"`},
	{"tls", 2, 2, "tls CERTIFICATE KEY"},
	{"htpasswd", 1, 1, "htpasswd FILE"},
	{"tokens", 0, 4, "tokens [realm=URL] [service=NAME] [key=FILE] [life=5m]"},
	{"delete", 1, 1, "delete on|off"},
	{"read-only", 1, 1, "read-only on|off"},
	{"sparse", 1, 1, "sparse on|off"},
	{"metrics", 1, 1, "metrics on|off"},
	{"log", 1, 1, "log on|off"},
	{"collect", 1, 2, "collect every=1h [grace=1h]"},
	{"connections", 1, 1, "connections NUMBER"},
}

func (r *reader) directive(line int, name string, args []string) error {
	for _, d := range once {
		if d.name != name {
			continue
		}
		if before := r.seen[name]; before > 0 {
			return fmt.Errorf("%s stands already in line %d", name, before)
		}
		r.seen[name] = line
		if len(args) < d.min || len(args) > d.max {
			return fmt.Errorf("want: %s", d.usage)
		}
		return r.single(name, args)
	}
	if r.seen[name] == 0 {
		r.seen[name] = line
	}
	o := &r.set.Options
	switch name {
	case "allow":
		rules, err := parseRules(args)
		o.Rules = append(o.Rules, rules...)
		return err
	case "immutable":
		if len(args) == 0 {
			return errors.New("want: immutable REPOSITORIES [TAGS...]")
		}
		o.Immutable = append(o.Immutable, Immutable{args[0], args[1:]})
		return checkPatterns(args[0], args[1:])
	case "quota":
		if len(args) != 2 {
			return errors.New("want: quota REPOSITORIES SIZE")
		}
		n, err := parseSize(args[1])
		o.Quotas = append(o.Quotas, Quota{args[0], n})
		return errors.Join(checkPattern(args[0]), err)
	case "keep":
		k, err := parseKeep(args)
		o.Keep = append(o.Keep, k)
		return err
	case "upstream":
		if len(args) < 2 {
			return errors.New("want: upstream PREFIX/ REGISTRY [fresh=1m]")
		}
		u := Upstream{Prefix: args[0], Registry: args[1]}
		err := options(args[2:], map[string]func(string) error{"fresh": duration(&u.Fresh)})
		o.Upstreams = append(o.Upstreams, u)
		return errors.Join(u.check(), err)
	}
	return fmt.Errorf("unknown directive %q", name)
}

func (r *reader) single(name string, args []string) (err error) {
	o := &r.set.Options
	switch name {
	case "listen":
		_, _, err = net.SplitHostPort(args[0])
		r.set.Addr = args[0]
	case "dir":
		if args[0] != "engine" {
			r.set.Dir = r.file(args[0])
		}
	case "tls":
		o.Cert, o.Key = r.file(args[0]), r.file(args[1])
		_, err = newKeyPair(o.Cert, o.Key, nil)
	case "htpasswd":
		o.Htpasswd = r.file(args[0])
		_, err = readHtpasswd(o.Htpasswd)
	case "tokens":
		o.Tokens = &TokenOptions{}
		err = options(args, map[string]func(string) error{
			"realm": func(v string) error {
				u, err := url.Parse(v)
				if err == nil && (u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.ContainsAny(v, "\"\\")) {
					err = fmt.Errorf("realm %q is not an http or https address", v)
				}
				o.Tokens.Realm = v
				return err
			},
			"service": func(v string) error {
				o.Tokens.Service = v
				if strings.ContainsAny(v, "\"\\ ") || v == "" {
					return fmt.Errorf("invalid service %q", v)
				}
				return nil
			},
			"key":  func(v string) error { o.Tokens.Key = r.file(v); return nil },
			"life": duration(&o.Tokens.Life),
		})
	case "delete":
		r.delete = true
		err = onOff(args[0], &o.Delete)
	case "read-only":
		err = onOff(args[0], &o.ReadOnly)
	case "sparse":
		err = onOff(args[0], &o.Sparse)
	case "metrics":
		err = onOff(args[0], &o.Metrics)
	case "log":
		on := true
		err = onOff(args[0], &on)
		r.set.Quiet = !on
	case "collect":
		err = options(args, map[string]func(string) error{"every": duration(&o.Collect.Every), "grace": duration(&o.Collect.Grace)})
	case "connections":
		o.MaxConns, err = strconv.Atoi(args[0])
		if err != nil || o.MaxConns < 1 {
			err = fmt.Errorf("connections: %q is not a number above 0", args[0])
		}
	}
	return err
}

// finish fills in what follows from what is written, and finds what does not go together.
func (r *reader) finish() (line int, err error) {
	o := &r.set.Options
	public, named, deletes := false, false, false
	for _, rule := range o.Rules {
		for _, w := range rule.Who {
			public = public || w == Anyone
			named = named || w != Anyone
		}
		deletes = deletes || rule.Rights&Delete != 0
	}
	if named && o.Htpasswd == "" {
		return r.seen["allow"], errors.New("allow names users, and there is no htpasswd file to know them by")
	}
	if o.Tokens != nil && o.Htpasswd == "" {
		return r.seen["tokens"], errors.New("tokens need an htpasswd file")
	}
	// With a password challenge alone, Docker's clients would not pull without a password.
	if public && named && o.Tokens == nil {
		o.Tokens = &TokenOptions{}
	}
	if deletes && !r.delete {
		o.Delete = true
	}
	if len(o.Keep) > 0 && o.Collect.Every == 0 {
		o.Collect.Every = time.Hour
	}
	return 0, nil
}

func (r *reader) file(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(r.base, name)
}

// parseRules reads "REPOSITORIES WHO RIGHTS [WHO RIGHTS ...]".
func parseRules(args []string) (rules []Rule, err error) {
	if len(args) < 3 || len(args)%2 == 0 {
		return nil, errors.New("want: allow REPOSITORIES WHO RIGHTS [WHO RIGHTS ...], such as: allow ** anyone pull users push")
	}
	if err := checkPattern(args[0]); err != nil {
		return nil, err
	}
	for i := 1; i < len(args); i += 2 {
		rule := Rule{Repos: args[0], Who: strings.Split(args[i], ",")}
		for _, w := range rule.Who {
			if w == "" || strings.Contains(w, ":") {
				return nil, fmt.Errorf("invalid user %q", w)
			}
		}
		for _, word := range strings.Split(args[i+1], ",") {
			before := rule.Rights
			for _, n := range rightNames {
				if n.name == word {
					rule.Rights |= n.right
				}
			}
			if rule.Rights == before && !(word == "pull" && before != 0) {
				return nil, fmt.Errorf("unknown right %q: there are pull, push, delete and all", word)
			}
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func parseKeep(args []string) (k Keep, err error) {
	if len(args) < 2 {
		return k, errors.New("want: keep REPOSITORIES [tags=PATTERN,...] [last=N] [age=30d] [pulled=14d] [untagged=1d]")
	}
	k.Repos = args[0]
	err = options(args[1:], map[string]func(string) error{
		"tags": func(v string) error { k.Tags = strings.Split(v, ","); return nil },
		"last": func(v string) (err error) {
			if k.Last, err = strconv.Atoi(v); err != nil || k.Last < 0 {
				err = fmt.Errorf("last: %q is not a number", v)
			}
			return err
		},
		"age": duration(&k.Age), "pulled": duration(&k.Pulled), "untagged": duration(&k.Untagged),
	})
	if err == nil && k.Last == 0 && k.Age == 0 && k.Pulled == 0 {
		err = errors.New("this keeps nothing: say last=, age= or pulled=")
	}
	return k, errors.Join(checkPatterns(k.Repos, k.Tags), err)
}

func checkPatterns(repos string, tags []string) error {
	for _, t := range tags {
		if _, err := path.Match(t, "x"); err != nil || t == "" {
			return fmt.Errorf("invalid tag pattern %q", t)
		}
	}
	return checkPattern(repos)
}

// options reads key=value words.
func options(args []string, known map[string]func(string) error) error {
	for _, a := range args {
		key, value, ok := strings.Cut(a, "=")
		set := known[key]
		if !ok || set == nil {
			return fmt.Errorf("unknown option %q", a)
		}
		if err := set(value); err != nil {
			return err
		}
	}
	return nil
}

func onOff(v string, to *bool) error {
	if v != "on" && v != "off" {
		return fmt.Errorf(`want "on" or "off", not %q`, v)
	}
	*to = v == "on"
	return nil
}

// duration reads what time.ParseDuration does, and days.
func duration(to *time.Duration) func(string) error {
	return func(v string) error {
		days, isDays := strings.CutSuffix(v, "d")
		n, err := strconv.ParseUint(days, 10, 16)
		if isDays && err == nil {
			*to = time.Duration(n) * 24 * time.Hour
			return nil
		}
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return fmt.Errorf("%q is not a time such as 90s, 12h or 30d", v)
		}
		*to = d
		return nil
	}
}

// parseSize reads bytes with a unit: KB, MB, GB, TB or KiB, MiB, GiB, TiB.
func parseSize(v string) (int64, error) {
	units := [...]struct {
		suffix string
		bytes  int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1}}
	for _, u := range units {
		digits, ok := strings.CutSuffix(v, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, fmt.Errorf("%q is not a size such as 500MB or 10GiB", v)
}
