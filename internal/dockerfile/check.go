package dockerfile

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Report adds a finding, unless "# check=skip=" names its rule.
func (f *File) Report(rule linter.LinterRuleI, at []parser.Range, message string) {
	f.lint.Run(rule, at, message)
}

// Check runs those of Docker's checks that need nothing but the text. (Some run while
// the text is parsed; those that ask for variables or files belong to the builder.)
func (f *File) Check() {
	f.checkCasing()
	f.checkStageNames()
	shells := map[string]bool{} // stages with a SHELL of their own, or of their base
	for i := range f.Stages {
		s := &f.Stages[i]
		shell := f.checkStage(s, shells[strings.ToLower(s.BaseName)])
		shells[strings.ToLower(s.Name)] = shell && s.Name != ""
	}
}

func (f *File) checkCasing() {
	type word struct {
		text string
		at   []parser.Range
	}
	var words []word
	for _, s := range f.Stages {
		words = append(words, word{s.OrigCmd, s.Location})
		for _, c := range s.Commands {
			words = append(words, word{c.Name(), c.Location()})
		}
	}
	balance := 0
	for _, w := range words {
		switch w.text {
		case strings.ToLower(w.text):
			balance--
		case strings.ToUpper(w.text):
			balance++
		}
	}
	want, same := "uppercase", strings.ToUpper
	if balance < 0 {
		want, same = "lowercase", strings.ToLower
	}
	for _, w := range words {
		if same(w.text) != w.text {
			f.Report(&linter.RuleConsistentInstructionCasing, w.at, linter.RuleConsistentInstructionCasing.Format(w.text, want))
		}
	}
}

func (f *File) checkStageNames() {
	var seen []string
	for _, s := range f.Stages {
		if s.Name == "" {
			continue
		}
		if s.Name == "scratch" || s.Name == "context" {
			f.Report(&linter.RuleReservedStageName, s.Location, linter.RuleReservedStageName.Format(s.Name))
		}
		if slices.Contains(seen, s.Name) {
			f.Report(&linter.RuleDuplicateStageName, s.Location, linter.RuleDuplicateStageName.Format(s.Name))
		}
		seen = append(seen, s.Name)
	}
}

// checkStage reports whether a SHELL was set in the end; shell says so of the base.
func (f *File) checkStage(s *instructions.Stage, shell bool) bool {
	once := map[string][]parser.Range{}
	last := func(c instructions.Command) {
		name := strings.ToUpper(c.Name())
		if at, twice := once[name]; twice {
			// The one before is the one that counts for nothing.
			f.Report(&linter.RuleMultipleInstructionsDisallowed, at, linter.RuleMultipleInstructionsDisallowed.Format(c.Name()))
		}
		once[name] = c.Location()
	}
	form := func(c instructions.Command, line instructions.ShellDependantCmdLine) {
		last(c)
		if line.PrependShell && !shell {
			f.Report(&linter.RuleJSONArgsRecommended, c.Location(), linter.RuleJSONArgsRecommended.Format(c.Name()))
		}
	}
	for _, c := range s.Commands {
		switch c := c.(type) {
		case *instructions.ShellCommand:
			shell = true
		case *instructions.CmdCommand:
			form(c, c.ShellDependantCmdLine)
		case *instructions.EntrypointCommand:
			form(c, c.ShellDependantCmdLine)
		case *instructions.HealthCheckCommand:
			last(c)
		case *instructions.EnvCommand:
			f.checkPairs(c, c.Env)
			for _, kv := range c.Env {
				f.checkSecret("ENV", kv.Key, c.Location())
			}
		case *instructions.LabelCommand:
			f.checkPairs(c, c.Labels)
		case *instructions.ArgCommand:
			for _, a := range c.Args {
				f.checkSecret("ARG", a.Key, c.Location())
			}
		case *instructions.ExposeCommand:
			f.checkPorts(c)
		}
	}
	return shell
}

func (f *File) checkPairs(c instructions.Command, pairs instructions.KeyValuePairs) {
	for _, kv := range pairs {
		if kv.NoDelim {
			f.Report(&linter.RuleLegacyKeyValueFormat, c.Location(), linter.RuleLegacyKeyValueFormat.Format(c.Name()))
			return
		}
	}
}

// Words of names that tell a secret, and that tell that it is none.
var (
	secretWords = [...]string{"apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"}
	openWords   = [...]string{"public", "file", "version"}
)

func (f *File) checkSecret(instruction, key string, at []parser.Range) {
	secret := false
	for word := range strings.SplitSeq(strings.ToLower(key), "_") {
		if slices.Contains(openWords[:], word) {
			return
		}
		secret = secret || slices.Contains(secretWords[:], word)
	}
	if secret {
		f.Report(&linter.RuleSecretsUsedInArgOrEnv, at, linter.RuleSecretsUsedInArgOrEnv.Format(instruction, key))
	}
}

func (f *File) checkPorts(c *instructions.ExposeCommand) {
	for _, p := range c.Ports {
		port, proto, _ := strings.Cut(p, "/")
		if proto != strings.ToLower(proto) {
			f.Report(&linter.RuleExposeProtoCasing, c.Location(), linter.RuleExposeProtoCasing.Format(p))
		}
		if strings.Contains(port, ":") && !strings.Contains(port, "$") {
			f.Report(&linter.RuleExposeInvalidFormat, c.Location(), linter.RuleExposeInvalidFormat.Format(p))
		}
	}
}
