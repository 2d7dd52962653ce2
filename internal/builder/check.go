// keg build --check: Docker's checks by their names, and ours. Nothing is run or pulled.
package builder

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/suggest"
	"golang.org/x/sys/unix"

	"keg/internal/dockerfile"
	"keg/internal/image"
)

// Lookup gives the config of a base image that is here already.
type Lookup func(ref image.Reference, p image.Platform) (*image.Config, bool)

// Checked is the result of Check.
type Checked struct {
	Name     string // of the Dockerfile
	Text     []byte
	Warnings []dockerfile.Warning
	Strict   bool // the file itself asks to take them as errors
}

// own is a check that Docker does not have.
type own = linter.LinterRule[func() string]

var (
	ruleSecretFile   = own{Name: "SecretFileCopied"}
	ruleRootUser     = own{Name: "RootUser"}
	ruleUnpinned     = own{Name: "UnpinnedBaseImage"}
	rulePackageCache = own{Name: "PackageCacheInLayer"}
	ruleHeavyContext = own{Name: "HeavyContextWithoutIgnore"}
)

// checker is one Check under way.
type checker struct {
	p       *plan
	file    *dockerfile.File
	context *buildContext
	images  Lookup
	known   map[*stage]*image.Config // of the base; nil: not known
	envs    map[*stage]environ
	dirs    map[*stage]bool // WORKDIR was set
	users   map[*stage]string
}

// Check reads Dockerfile and context and says what is likely to be a mistake. Checks that
// need the config of a base image are made when the image is here.
func Check(ctx context.Context, o Options, images Lookup) (*Checked, error) {
	bc, err := openContext(o.Context)
	if err != nil {
		return nil, err
	}
	defer bc.close()
	d := deps{progress: &progress{}}
	file, err := d.loadDefinition(o, bc)
	if err != nil {
		return nil, err
	}
	if err := d.loadIgnore(o, bc); err != nil {
		return nil, err
	}
	file.Check()
	c := &checker{file: file, context: bc, images: images, known: map[*stage]*image.Config{},
		envs: map[*stage]environ{}, dirs: map[*stage]bool{}, users: map[*stage]string{}}
	if err := c.froms(o); err != nil {
		return nil, err
	}
	if c.p, err = newPlan(file, o); err != nil {
		return nil, err
	}
	for _, s := range c.p.stages[:len(file.Stages)] {
		c.stage(ctx, s)
	}
	c.rootUser()
	return &Checked{Name: file.Name, Text: file.Text, Warnings: sorted(file.Warnings), Strict: file.Strict}, nil
}

func sorted(ws []dockerfile.Warning) []dockerfile.Warning {
	slices.SortStableFunc(ws, func(a, b dockerfile.Warning) int {
		return cmp.Or(a.Line-b.Line, strings.Compare(a.Rule+a.Message, b.Rule+b.Message))
	})
	return ws
}

// froms checks the variables of FROM lines.
func (c *checker) froms(o Options) error {
	lex := c.file.Lex()
	target := image.Host()
	if o.Platform != nil {
		target = *o.Platform
	}
	given := buildArgs(o)
	platform := platformArgs(image.Host(), target, o.Target, given)
	global, err := globalArgs(platform, c.file, lex, given)
	if err != nil {
		return err
	}
	defaults, err := globalArgs(platform, c.file, lex, nil)
	if err != nil {
		return err
	}
	keys := global.Keys()
	for _, a := range c.file.Args {
		for _, kv := range a.Args {
			keys = append(keys, kv.Key)
		}
	}
	for _, s := range c.file.Stages {
		name, err := lex.ProcessWordWithMatches(s.BaseName, global)
		if err != nil {
			continue // the plan says so
		}
		c.unmatched(name.Unmatched, keys, s.Location)
		if plain, err := lex.ProcessWordWithMatches(s.BaseName, defaults); err == nil {
			if _, err := image.ParseRepository(plain.Result); err != nil {
				c.file.Report(&linter.RuleInvalidDefaultArgInFrom, s.Location, linter.RuleInvalidDefaultArgInFrom.Format(s.BaseName))
			}
		}
		if s.Platform != "" {
			c.platform(s, lex, global, keys)
		}
	}
	return nil
}

func (c *checker) unmatched(names map[string]struct{}, keys []string, at []parser.Range) {
	for name := range names {
		if !slices.Contains(keys, name) {
			hint, _ := suggest.Search(name, keys, true)
			c.file.Report(&linter.RuleUndefinedArgInFrom, at, linter.RuleUndefinedArgInFrom.Format(name, hint))
		}
	}
}

func (c *checker) platform(s instructions.Stage, lex *shell.Lex, global environ, keys []string) {
	m, err := lex.ProcessWordWithMatches(s.Platform, global)
	if err != nil {
		return
	}
	c.unmatched(m.Unmatched, keys, s.Location)
	const predefined = "TARGETPLATFORM"
	if _, used := m.Matched[predefined]; used && len(m.Matched) == 1 && len(m.Unmatched) == 0 {
		if v, _ := global.Get(predefined); v == m.Result {
			c.file.Report(&linter.RuleRedundantTargetPlatform, s.Location, linter.RuleRedundantTargetPlatform.Format(s.Platform))
		}
	}
	if len(m.Matched) == 0 && len(m.Unmatched) == 0 {
		p, err := image.ParsePlatform(m.Result)
		if err == nil && !strings.Contains(s.Name, p.OS) && !strings.Contains(s.Name, p.Architecture) {
			c.file.Report(&linter.RuleFromPlatformFlagConstDisallowed, s.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(m.Result))
		}
	}
}

// stage checks one stage; those that it stands on were checked before.
func (c *checker) stage(ctx context.Context, s *stage) {
	c.base(s)
	for _, cmd := range s.commands {
		c.variables(s, cmd.Command)
		switch i := cmd.Command.(type) {
		case *instructions.WorkdirCommand:
			if !c.dirs[s] && !path.IsAbs(i.Path) {
				c.file.Report(&linter.RuleWorkdirRelativePath, i.Location(), linter.RuleWorkdirRelativePath.Format(i.Path))
			}
			c.dirs[s] = true
		case *instructions.UserCommand:
			c.users[s] = i.User
		case *instructions.CopyCommand:
			if i.From == "" {
				c.sources(ctx, "Copy", i.SourcesAndDest, i.Location())
			}
		case *instructions.AddCommand:
			c.sources(ctx, "Add", i.SourcesAndDest, i.Location())
		case *instructions.RunCommand:
			c.packages(i)
		}
	}
}

// base takes over what the base gives, and checks how it is named.
func (c *checker) base(s *stage) {
	if s.base != nil {
		c.known[s], c.envs[s], c.users[s], c.dirs[s] = c.known[s.base], c.envs[s.base], c.users[s.base], c.dirs[s.base]
		return
	}
	c.envs[s] = environ{"PATH=" + defaultPath}
	if s.src.BaseName == "scratch" {
		c.known[s] = emptyConfig(s.platform)
		return
	}
	ref, err := image.ParseReference(s.src.BaseName)
	if err != nil {
		return // reported as an invalid name
	}
	if ref.Digest == "" && (ref.Tag == "" || ref.Tag == "latest") {
		c.file.Report(&ruleUnpinned, s.src.Location, "Base image "+s.src.BaseName+" is whatever is the latest on the day of the build: name a version, or a digest")
	}
	if c.images == nil {
		return
	}
	cfg, ok := c.images(ref, s.platform)
	if !ok {
		return
	}
	c.known[s] = cfg
	if cfg.OS != s.platform.OS || cfg.Architecture != s.platform.Architecture {
		c.file.Report(&linter.RuleInvalidBaseImagePlatform, s.src.Location,
			linter.RuleInvalidBaseImagePlatform.Format(s.src.BaseName, image.FormatPlatform(s.platform), image.FormatPlatform(cfg.Platform)))
	}
	for _, kv := range cfg.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		c.envs[s] = c.envs[s].with(k, v)
	}
	c.users[s] = cfg.Config.User
}

// variables reports those that nobody defined. What a base has that is not here is not
// known, and nothing is said of stages on it.
func (c *checker) variables(s *stage, cmd instructions.Command) {
	env := c.envs[s]
	var own []string
	if a, ok := cmd.(*instructions.ArgCommand); ok {
		for _, kv := range a.Args {
			own = append(own, kv.Key)
		}
	}
	if e, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		_ = e.Expand(func(w string) (string, error) {
			m, err := c.p.lex.ProcessWordWithMatches(w, env)
			if err != nil {
				return w, nil // the build says so
			}
			for name := range m.Unmatched {
				if c.known[s] != nil && !slices.Contains(own, name) {
					hint, _ := suggest.Search(name, env.Keys(), true)
					c.file.Report(&linter.RuleUndefinedVar, cmd.Location(), linter.RuleUndefinedVar.Format(name, hint))
				}
			}
			return m.Result, nil
		})
	}
	switch i := cmd.(type) {
	case *instructions.EnvCommand:
		for _, kv := range i.Env {
			env = env.with(kv.Key, kv.Value)
		}
	case *instructions.ArgCommand:
		for _, kv := range i.Args {
			v, _ := c.p.global.Get(kv.Key)
			if kv.Value != nil {
				v = *kv.Value
			}
			env = env.with(kv.Key, v)
		}
	}
	c.envs[s] = env
}

// sources checks what is taken from the context.
func (c *checker) sources(ctx context.Context, verb string, from instructions.SourcesAndDest, at []parser.Range) {
	for _, src := range from.SourcePaths {
		if IsRemote(src) {
			continue
		}
		clean := strings.TrimPrefix(path.Clean("/"+src), "/")
		if clean != "" && c.excluded(clean) {
			c.file.Report(&linter.RuleCopyIgnoredFile, at, linter.RuleCopyIgnoredFile.Format(verb, clean))
			continue
		}
		c.contents(ctx, src, clean == "", at)
	}
}

// excluded leaves files with exceptions (!) alone, as Docker's check does.
func (c *checker) excluded(p string) bool {
	ig := c.context.ignore
	if ig == nil || ig.matcher.Exclusions() {
		return false
	}
	ok, err := ig.matcher.MatchesOrParentMatches(p)
	return err == nil && ok
}

// heavy is a context that nobody means to send whole.
const heavy = 100 << 20

func (c *checker) contents(ctx context.Context, src string, whole bool, at []parser.Range) {
	found, err := c.context.find(ctx, selector{Path: path.Join("/", src), Wildcard: true, Follow: true})
	if err != nil {
		return // missing files are for the build
	}
	var sum int64
	said := false
	for i := range found {
		for j := range found[i].entries {
			e := &found[i].entries[j]
			if !e.is(unix.S_IFREG) {
				continue
			}
			sum += e.st.Size
			if name := found[i].at(e); !said && isSecretFile(name) {
				said = true
				c.file.Report(&ruleSecretFile, at, "The file "+name+" looks like a secret and becomes part of the image: use RUN --mount=type=secret, or exclude it by .dockerignore")
			}
		}
	}
	if whole && sum > heavy && c.context.ignore == nil {
		c.file.Report(&ruleHeavyContext, at, "The whole context of "+size(sum)+" is copied and there is no .dockerignore")
	}
}

// isSecretFile goes by names that are used for nothing else.
func isSecretFile(p string) bool {
	base := path.Base(p)
	switch base {
	case ".env", ".netrc", ".npmrc", ".pypirc", ".pgpass", ".git-credentials", "id_rsa", "id_ecdsa", "id_ed25519", "id_dsa", "credentials.json":
		return true
	}
	if dir := path.Base(path.Dir(p)); dir == ".aws" && base == "credentials" || dir == ".docker" && base == "config.json" {
		return true
	}
	return strings.HasPrefix(base, ".env.") && !strings.HasSuffix(base, ".example") && !strings.HasSuffix(base, ".sample") ||
		strings.HasSuffix(base, ".pem") && strings.Contains(base, "key") || strings.HasSuffix(base, ".key") || strings.HasSuffix(base, ".p12")
}

// managers are package managers that leave a cache behind, and what makes them not.
var managers = [...]struct{ install, cleaned, mount, advice string }{
	{"apt-get install", "/var/lib/apt/lists", "/var/lib/apt", "end the RUN with rm -rf /var/lib/apt/lists/*"},
	{"apt install", "/var/lib/apt/lists", "/var/lib/apt", "end the RUN with rm -rf /var/lib/apt/lists/*"},
	{"apk add", "--no-cache", "/var/cache/apk", "use apk add --no-cache"},
	{"pip install", "--no-cache-dir", "/root/.cache", "use pip install --no-cache-dir"},
	{"dnf install", "clean all", "/var/cache/dnf", "end the RUN with dnf clean all"},
	{"yum install", "clean all", "/var/cache/yum", "end the RUN with yum clean all"},
}

func (c *checker) packages(run *instructions.RunCommand) {
	text := strings.Join(run.CmdLine, " ")
	for _, f := range run.Files {
		text += "\n" + f.Data
	}
	text = strings.ReplaceAll(text, " -y ", " ")
	for _, m := range managers {
		if !strings.Contains(text, m.install) || strings.Contains(text, m.cleaned) ||
			slices.ContainsFunc(instructions.GetMounts(run), func(t *instructions.Mount) bool { return strings.HasPrefix(t.Target, m.mount) }) {
			continue
		}
		c.file.Report(&rulePackageCache, run.Location(), "The cache of "+strings.Fields(m.install)[0]+" stays in the layer: "+m.advice+", or mount a cache at "+m.mount)
		return
	}
}

// rootUser looks at the target alone: other stages do not run.
func (c *checker) rootUser() {
	t := c.p.target
	name, _, _ := strings.Cut(c.users[t], ":")
	if c.known[t] == nil && name == "" || name != "" && name != "root" && name != "0" {
		return
	}
	c.file.Report(&ruleRootUser, t.src.Location, "The image runs as root: add a USER")
}
