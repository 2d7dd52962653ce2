// What an order of lines costs: an install that ran again only because a copy above it changed.
package builder

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"keg/internal/dockerfile"
)

// Advice names an order of lines that would have saved time in this build.
type Advice struct {
	Line, Below int           // the copy, and what stands below it in vain
	Saved       time.Duration // what the lower line took this time
	Text        string        // one sentence
	Excerpt     string        // the two lines, with their numbers
}

// ran is a step that was done in this build although it was done before, and what differed.
type ran struct {
	took  time.Duration
	diff  change
	files []string // of a copy: what it read
}

// change is what differs between two lists of inputs.
type change struct {
	parent bool     // what the step stands on
	files  []string // these files
	other  bool     // anything else
}

// onlyParent: alone it would have been in the cache.
func (c change) onlyParent() bool { return c.parent && len(c.files) == 0 && !c.other }

// onlyFiles: it stands on what it stood on, and copies something else.
func (c change) onlyFiles() bool { return !c.parent && len(c.files) > 0 && !c.other }

func compare(old, now []Input) (c change) {
	left := map[Input]int{}
	for _, i := range old {
		left[i]++
	}
	for _, i := range now {
		if left[i]--; left[i] < 0 {
			c.add(i)
		}
	}
	for i, n := range left {
		if n > 0 {
			c.add(i)
		}
	}
	return c
}

func (c *change) add(i Input) {
	switch i.Kind {
	case kindParent:
		c.parent = true
	case kindFiles: // the single ones follow
	case kindFile:
		if !slices.Contains(c.files, i.Name) {
			c.files = append(c.files, i.Name)
		}
	default:
		c.other = true
	}
}

// advise looks through the stages for installs below a copy that changed. The first copy is meant: what stands
// between it and the install may stay.
func (s *solver) advise() (all []Advice) {
	for _, st := range s.plan.reach() {
		var above *step
		for _, step := range st.steps {
			r, ok := s.reruns[step]
			if !ok {
				above = nil
				continue
			}
			if o, isCopy := step.op.(*copyOp); isCopy && r.diff.onlyFiles() && len(o.sources) > 0 {
				above = step
			}
			if o, isRun := step.op.(*runOp); isRun && above != nil && r.diff.onlyParent() {
				if a, ok := s.between(above, step, installs(o)); ok {
					all = append(all, a)
				}
			}
		}
	}
	return all
}

// between words what the order of two lines costs; ok is false when the lower one may need what the upper one changed.
func (s *solver) between(copied, below *step, what installed) (a Advice, ok bool) {
	up, down := s.reruns[copied], s.reruns[below]
	a = Advice{Line: firstLine(copied), Below: firstLine(below), Saved: down.took}
	if !what.is || a.Line == 0 || a.Below <= a.Line {
		return a, false
	}
	changed := up.diff.files[0]
	if n := len(up.diff.files); n > 1 {
		changed = fmt.Sprintf("%s and %d more", changed, n-1)
	}
	saved := shortSeconds(a.Saved)
	switch {
	case len(what.needs) > 0:
		var first []string
		for _, f := range up.files {
			if what.wants(f) {
				if slices.Contains(up.diff.files, f) {
					return a, false // it ran again for a good reason
				}
				first = append(first, f)
			}
		}
		if len(first) == 0 {
			return a, false
		}
		slices.Sort(first)
		a.Text = fmt.Sprintf("%s copied first, then line %d, and line %d after it would have saved %s", enumerate(first), a.Below, a.Line, saved)
	case adjacent(copied, below):
		a.Text = fmt.Sprintf("these two lines swapped would have saved %s", saved)
	default:
		a.Text = fmt.Sprintf("line %d moved above line %d would have saved %s", a.Below, a.Line, saved)
	}
	a.Text += fmt.Sprintf(": %s changed, and line %d ran again only because it stands below", changed, a.Below)
	a.Excerpt = s.plan.file.Lines(a.Line, a.Below)
	return a, true
}

// adjacent: there is no instruction between two steps of a stage.
func adjacent(up, down *step) bool {
	return !slices.ContainsFunc(up.stage.src.Commands, func(c instructions.Command) bool {
		at := c.Location()
		return len(at) > 0 && at[0].Start.Line > firstLine(up) && at[0].Start.Line < firstLine(down)
	})
}

func firstLine(s *step) int {
	if len(s.at) == 0 {
		return 0
	}
	return s.at[0].Start.Line
}

func enumerate(names []string) string {
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return names[0]
}

func shortSeconds(d time.Duration) string {
	switch s := d.Seconds(); {
	case s >= 10:
		return fmt.Sprintf("%.0f s", s)
	case s >= 1:
		return fmt.Sprintf("%.1f s", s)
	default:
		return fmt.Sprintf("%.2f s", s)
	}
}

// installed tells what a RUN installs, as far as its words do.
type installed struct {
	is    bool     // it installs, and does nothing that could read other files of the context
	needs []string // base names, or patterns of them, of the files that say what is installed; none: the command says it
}

func (i installed) wants(file string) bool {
	return slices.ContainsFunc(i.needs, func(p string) bool { ok, _ := path.Match(p, path.Base(file)); return ok })
}

// installs reads the command line of a RUN: installers, and what goes with them.
func installs(o *runOp) (all installed) {
	if o.script != nil {
		return installed{}
	}
	line := [][]string{o.args}
	if n := len(o.args); n >= 3 && strings.HasPrefix(o.args[n-2], "-") && strings.HasSuffix(o.args[n-2], "c") {
		line = dockerfile.Commands(o.args[n-1])
	}
	for _, words := range line {
		one, known := installer(words)
		if !known {
			return installed{}
		}
		all.is = all.is || one.is
		all.needs = append(all.needs, one.needs...)
	}
	return all
}

// beside goes with an install and reads nothing of a context, whatever its operands.
var beside = strings.Fields("set true : echo printf export sleep update-ca-certificates locale-gen ldconfig adduser addgroup useradd groupadd curl wget")

// verbs of managers that install what their operands name.
var verbs = map[string]string{"apt-get": "install", "apt": "install", "aptitude": "install", "apk": "add", "dnf": "install", "yum": "install",
	"microdnf": "install", "tdnf": "install", "zypper": "install", "gem": "install", "opkg": "install"}

// upkeep are words of managers that install nothing and go with it.
var upkeep = strings.Fields("update upgrade dist-upgrade clean autoremove autoclean makecache refresh cache config")

// described install what a file says.
var described = []struct {
	words string
	needs string
}{
	{"npm ci", "package.json package-lock.json npm-shrinkwrap.json .npmrc"},
	{"npm install", "package.json package-lock.json npm-shrinkwrap.json .npmrc"},
	{"npm i", "package.json package-lock.json npm-shrinkwrap.json .npmrc"},
	{"yarn", "package.json yarn.lock .yarnrc .yarnrc.yml"},
	{"yarn install", "package.json yarn.lock .yarnrc .yarnrc.yml"},
	{"pnpm install", "package.json pnpm-lock.yaml pnpm-workspace.yaml .npmrc"},
	{"pnpm i", "package.json pnpm-lock.yaml pnpm-workspace.yaml .npmrc"},
	{"go mod download", "go.mod go.sum"},
	{"cargo fetch", "Cargo.toml Cargo.lock"},
	{"bundle install", "Gemfile Gemfile.lock"},
	{"bundle", "Gemfile Gemfile.lock"},
	{"composer install", "composer.json composer.lock"},
	{"poetry install", "pyproject.toml poetry.lock"},
	{"pipenv install", "Pipfile Pipfile.lock"},
	{"uv sync", "pyproject.toml uv.lock"},
	{"mvn dependency:go-offline", "pom.xml"},
	{"mvn dependency:resolve", "pom.xml"},
	{"dotnet restore", "*.csproj *.fsproj *.sln nuget.config"},
	{"mix deps.get", "mix.exs mix.lock"},
}

// installer knows one simple command, or does not.
func installer(words []string) (i installed, known bool) {
	for len(words) > 0 && (words[0] == "sudo" || strings.Contains(words[0], "=") && !strings.HasPrefix(words[0], "-")) {
		words = words[1:]
	}
	if len(words) == 0 {
		return i, true
	}
	name := path.Base(words[0])
	operands, flags := split(words[1:])
	if pip, rest := asPip(name, words[1:]); pip {
		return pipInstall(rest)
	}
	switch {
	case slices.Contains(beside, name):
		return i, true
	case name == "mkdir" || name == "rm" || name == "cd":
		return i, name == "cd" || !slices.ContainsFunc(operands, func(w string) bool { return !strings.HasPrefix(w, "/") })
	case verbs[name] != "":
		if len(operands) > 0 && slices.Contains(upkeep, operands[0]) {
			return i, true
		}
		return named(operands, verbs[name])
	}
	for _, d := range described {
		if strings.Join(append([]string{name}, operands...), " ") == d.words && !slices.Contains(flags, "-g") {
			return installed{true, strings.Fields(d.needs)}, true
		}
	}
	switch name {
	case "npm", "yarn", "pnpm":
		if len(operands) > 0 && slices.Contains(upkeep, operands[0]) {
			return i, true
		}
		if len(operands) > 1 && operands[0] == "global" {
			operands = operands[1:]
		}
		for _, verb := range []string{"install", "i", "add"} {
			if i, known := named(operands, verb); known {
				return i, true
			}
		}
	case "go", "cargo":
		if slices.Contains(flags, "--path") || name == "go" && !strings.Contains(strings.Join(operands, " "), "@") {
			return i, false
		}
		return named(operands, "install")
	}
	return i, false
}

// split tells operands from flags.
func split(words []string) (operands, flags []string) {
	for _, w := range words {
		if strings.HasPrefix(w, "-") {
			flags = append(flags, w)
		} else {
			operands = append(operands, w)
		}
	}
	return operands, flags
}

// named is an install of what the operands after the verb name; files are not.
func named(operands []string, verb string) (installed, bool) {
	if len(operands) < 2 || operands[0] != verb || slices.ContainsFunc(operands[1:], isFile) {
		return installed{}, false
	}
	return installed{is: true}, true
}

func isFile(word string) bool {
	return strings.HasPrefix(word, ".") || strings.HasPrefix(word, "/") || strings.HasPrefix(word, "~") || strings.HasPrefix(word, "file:") || strings.Contains(word, "`")
}

// asPip knows pip by its names; rest is what follows.
func asPip(name string, words []string) (is bool, rest []string) {
	switch {
	case name == "uv" && len(words) > 0 && words[0] == "pip":
		return true, words[1:]
	case strings.HasPrefix(name, "python") && len(words) > 1 && words[0] == "-m" && words[1] == "pip":
		return true, words[2:]
	}
	return name == "pip" || strings.HasPrefix(name, "pip3") || name == "pip2", words
}

func pipInstall(words []string) (i installed, known bool) {
	if len(words) == 0 || words[0] != "install" {
		return i, len(words) > 0 && (words[0] == "cache" || words[0] == "config")
	}
	i.is = true
	for n := 1; n < len(words); n++ {
		w := words[n]
		file, joined := strings.CutPrefix(w, "--requirement=")
		switch {
		case joined:
		case w == "-r" || w == "--requirement" || w == "-c" || w == "--constraint":
			if n++; n == len(words) {
				return installed{}, false
			}
			file = words[n]
		case strings.HasPrefix(w, "-r") && len(w) > 2 && !strings.HasPrefix(w, "--"):
			file = w[2:]
		case w == "-e" || w == "--editable" || isFile(w):
			return installed{}, false
		default:
			continue
		}
		i.needs = append(i.needs, path.Base(file))
	}
	return i, true
}
