// Evaluating a stage: instructions one after the other change its config, its
// environment and its list of steps. Pure.
package builder

import (
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/sys/signal"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"keg/internal/fault"
	"keg/internal/image"
)

const historyComment = "buildkit.dockerfile.v0"

// step is a piece of work that makes a layer.
type step struct {
	name    string // "[build 2/5] RUN make"
	stage   *stage
	n       int // position in its stage
	at      []parser.Range
	op      op
	noCache bool
}

// evaluate goes through the needed stages in the order of the file.
func (p *plan) evaluate() error {
	for _, s := range p.reach() {
		if err := p.evaluateStage(s); err != nil {
			return err
		}
	}
	t := p.target.config
	if len(p.o.Labels) > 0 && t.Config.Labels == nil {
		t.Config.Labels = map[string]string{}
	}
	maps.Copy(t.Config.Labels, p.o.Labels)
	if p.o.Platform != nil {
		t.OS, t.Architecture = p.platform.OS, p.platform.Architecture
		t.Variant = p.platform.Variant
	}
	return nil
}

func (p *plan) evaluateStage(s *stage) error {
	s.begin()
	for _, c := range s.commands {
		switch c.Command.(type) {
		case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
			s.total++
		}
	}
	if s.image != nil {
		s.total++
		name := s.image.Ref.String()
		if s.image.Ref.Digest == "" && s.image.Digest != "" {
			name += "@" + s.image.Digest.String()
		}
		s.fromMsg = s.numbered("FROM "+name, false)
	}
	for _, c := range s.commands {
		if err := p.command(s, c); err != nil {
			return p.file.At(c.Location(), err)
		}
	}
	s.ready = true
	return nil
}

// begin takes over what the base gives.
func (s *stage) begin() {
	switch {
	case s.base != nil:
		s.platform = s.base.platform
		s.config = cloneConfig(s.base.config)
		s.env, s.args = s.base.env, slices.Clone(s.base.args)
	case s.image != nil:
		s.config = cloneConfig(s.image.Config)
	default:
		s.config = emptyConfig(s.platform)
	}
	c := s.config
	c.Created = nil
	c.Config.OnBuild = nil
	if s.base == nil {
		s.env = nil
		if environ(c.Config.Env).index("PATH") < 0 {
			c.Config.Env = append(c.Config.Env, "PATH="+defaultPath)
		}
		for _, kv := range c.Config.Env {
			k, v, _ := strings.Cut(kv, "=")
			s.env = s.env.with(k, v)
		}
		if c.Config.WorkingDir != "" {
			c.Config.WorkingDir = path.Join("/", c.Config.WorkingDir)
		}
	}
}

func emptyConfig(p image.Platform) *image.Config {
	c := &image.Config{}
	c.Platform = p
	c.RootFS.Type = "layers"
	c.Config.WorkingDir = "/"
	return c
}

func cloneConfig(src *image.Config) *image.Config {
	c := *src
	c.Config.Env = slices.Clone(c.Config.Env)
	c.Config.Cmd = slices.Clone(c.Config.Cmd)
	c.Config.Entrypoint = slices.Clone(c.Config.Entrypoint)
	c.Config.OnBuild = slices.Clone(c.Config.OnBuild)
	c.Config.Shell = slices.Clone(c.Config.Shell)
	c.Config.ExposedPorts = maps.Clone(c.Config.ExposedPorts)
	c.Config.Volumes = maps.Clone(c.Config.Volumes)
	c.Config.Labels = maps.Clone(c.Config.Labels)
	c.RootFS.DiffIDs = slices.Clone(c.RootFS.DiffIDs)
	c.History = slices.Clone(c.History)
	return &c
}

// numbered prefixes a step's name as BuildKit does.
func (s *stage) numbered(text string, onbuild bool) string {
	s.shown++
	prefix := "["
	if s.name != "" {
		prefix += s.name + " "
	}
	prefix += fmt.Sprintf("%*d/%d] ", int(1+math.Log10(float64(s.total))), s.shown, s.total)
	if onbuild {
		prefix += "ONBUILD "
	}
	return prefix + text
}

func (s *stage) addStep(name string, c command, o op, noCache bool) {
	s.steps = append(s.steps, &step{name: s.numbered(name, c.onbuild), stage: s, n: len(s.steps), at: c.Location(), op: o, noCache: noCache})
}

func (s *stage) history(text string, layer bool) {
	s.config.History = append(s.config.History, ocispec.History{CreatedBy: text, Comment: historyComment, EmptyLayer: !layer})
}

// command evaluates one instruction.
func (p *plan) command(s *stage, c command) error {
	if err := p.expand(s, c.Command); err != nil {
		return err
	}
	cfg := &s.config.Config
	switch c2 := c.Command.(type) {
	case *instructions.RunCommand:
		return p.evalRun(s, c, c2)
	case *instructions.CopyCommand:
		return p.evalCopy(s, c, copyOf(c2))
	case *instructions.AddCommand:
		return p.evalCopy(s, c, addOf(c2))
	case *instructions.WorkdirCommand:
		return p.evalWorkdir(s, c, c2)
	case *instructions.ArgCommand:
		return p.evalArg(s, c2)
	case *instructions.EnvCommand:
		text := "ENV"
		for _, kv := range c2.Env {
			text += " " + kv.String()
			s.env = s.env.with(kv.Key, kv.Value)
			cfg.Env = environ(cfg.Env).with(kv.Key, kv.Value)
		}
		s.history(text, false)
	case *instructions.LabelCommand:
		if cfg.Labels == nil {
			cfg.Labels = map[string]string{}
		}
		text := "LABEL"
		for _, kv := range c2.Labels {
			text += " " + kv.String()
			cfg.Labels[kv.Key] = kv.Value
		}
		s.history(text, false)
	case *instructions.CmdCommand:
		cfg.Cmd = s.commandLine(c2.ShellDependantCmdLine)
		//lint:ignore SA1019 Docker writes it, scripts compare configs
		cfg.ArgsEscaped = true
		s.hasCmd = true
		s.history(fmt.Sprintf("CMD %q", cfg.Cmd), false)
	case *instructions.EntrypointCommand:
		cfg.Entrypoint = s.commandLine(c2.ShellDependantCmdLine)
		if !s.hasCmd {
			cfg.Cmd = nil
		}
		s.history(fmt.Sprintf("ENTRYPOINT %q", cfg.Entrypoint), false)
	case *instructions.HealthCheckCommand:
		h := *c2.Health
		cfg.Healthcheck = &h
		s.history(fmt.Sprintf("HEALTHCHECK %+v", dockerspec.HealthcheckConfig(h)), false)
	case *instructions.ExposeCommand:
		return p.evalExpose(s, c2)
	case *instructions.UserCommand:
		cfg.User = c2.User
		s.history("USER "+c2.User, false)
	case *instructions.VolumeCommand:
		if cfg.Volumes == nil {
			cfg.Volumes = map[string]struct{}{}
		}
		for _, v := range c2.Volumes {
			if v == "" {
				return fault.Invalidf("VOLUME specified can not be an empty string")
			}
			cfg.Volumes[v] = struct{}{}
		}
		s.history(fmt.Sprintf("VOLUME %v", c2.Volumes), false)
	case *instructions.StopSignalCommand:
		if _, err := signal.ParseSignal(c2.Signal); err != nil {
			return fault.As(fault.Invalid, err)
		}
		cfg.StopSignal = c2.Signal
		s.history("STOPSIGNAL "+c2.Signal, false)
	case *instructions.ShellCommand:
		cfg.Shell = c2.Shell
		s.history(fmt.Sprintf("SHELL %v", c2.Shell), false)
	case *instructions.OnbuildCommand:
		cfg.OnBuild = append(cfg.OnBuild, c2.Expression)
	case *instructions.MaintainerCommand:
		s.config.Author = c2.Maintainer
		s.history("MAINTAINER "+c2.Maintainer, false)
	default:
		return fault.Unsupportedf("instruction %s is not supported", strings.ToUpper(c.Name()))
	}
	return nil
}

// expand replaces variables. ARG is left to evalArg, since a given value makes its
// default irrelevant.
func (p *plan) expand(s *stage, c instructions.Command) error {
	word := func(w string) (string, error) { return expand(p.lex, w, s.env) }
	if e, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		if _, isArg := c.(*instructions.ArgCommand); !isArg {
			if err := e.Expand(word); err != nil {
				return fault.As(fault.Invalid, err)
			}
		}
	}
	if e, ok := c.(instructions.SupportsSingleWordExpansionRaw); ok {
		err := e.ExpandRaw(func(w string) (string, error) {
			lex := shell.NewLex('\\')
			lex.SkipProcessQuotes = true
			return expand(lex, w, s.env)
		})
		return fault.As(fault.Invalid, err)
	}
	return nil
}

// shown is the source of a command as progress shows it: variables that are set are
// replaced, quotes stay.
func (p *plan) shown(source string, env environ, raw bool) string {
	lex := p.file.Lex()
	if raw {
		lex.RawQuotes, lex.RawEscapes, lex.SkipUnsetEnv = true, true, true
	}
	if w, err := expand(lex, source, env); err == nil {
		source = w
	}
	name, rest, _ := strings.Cut(source, " ")
	return strings.TrimSuffix(strings.ToUpper(name)+" "+rest, " ")
}

// commandLine puts the shell in front of a shell form.
func (s *stage) commandLine(c instructions.ShellDependantCmdLine) []string {
	if !c.PrependShell {
		return c.CmdLine
	}
	return append(slices.Clone(s.shell()), strings.Join(c.CmdLine, " "))
}

// shell is that of SHELL, or what there is without one.
func (s *stage) shell() []string {
	if shell := s.config.Config.Shell; len(shell) > 0 {
		return shell
	}
	return []string{"/bin/sh", "-c"}
}

func (p *plan) evalArg(s *stage, c *instructions.ArgCommand) error {
	var told []argument
	for _, a := range c.Args {
		arg := argument{Key: a.Key}
		if v, ok := p.args[a.Key]; ok {
			arg.Value = &v
		} else if a.Value != nil {
			v, err := expand(p.lex, *a.Value, s.env)
			if err != nil {
				return err
			}
			arg.Value = &v
		} else if v, ok := p.global.Get(a.Key); ok {
			arg.Value = &v
		}
		if arg.Value != nil {
			s.env = s.env.with(arg.Key, *arg.Value)
		}
		s.args, told = append(s.args, arg), append(told, arg)
	}
	s.history(argHistory(told), false)
	return nil
}

func (p *plan) evalExpose(s *stage, c *instructions.ExposeCommand) error {
	var ports []string
	for _, w := range c.Ports {
		words, err := expandWith(s.env, func(r *rationed) ([]string, error) { return p.lex.ProcessWords(w, r) })
		if err != nil {
			return err
		}
		for _, word := range words {
			got, err := exposedPorts(word)
			if err != nil {
				return err
			}
			ports = append(ports, got...)
		}
	}
	cfg := &s.config.Config
	if cfg.ExposedPorts == nil {
		cfg.ExposedPorts = map[string]struct{}{}
	}
	for _, port := range ports {
		cfg.ExposedPorts[port] = struct{}{}
	}
	s.history(fmt.Sprintf("EXPOSE %v", ports), false)
	return nil
}

func (p *plan) evalWorkdir(s *stage, c command, w *instructions.WorkdirCommand) error {
	dir := w.Path
	if !path.IsAbs(dir) {
		dir = path.Join("/", s.config.Config.WorkingDir, dir)
	}
	dir = path.Clean(dir)
	s.config.Config.WorkingDir = dir
	if dir == "/" {
		s.history("WORKDIR /", false)
		return nil
	}
	o := &workdirOp{dir: dir, user: s.config.Config.User}
	s.addStep(p.shown(sourceOf(w), s.env, false), c, o, p.uncached(s))
	s.history("WORKDIR "+dir, true)
	return nil
}

// uncached reports whether --no-cache or --no-cache-filter means this stage.
func (p *plan) uncached(s *stage) bool {
	return p.o.NoCache || slices.ContainsFunc(p.o.NoCacheFilter, func(n string) bool {
		return strings.EqualFold(n, s.src.Name) || n == s.name && n != ""
	})
}

// sourceOf is the text of an instruction.
func sourceOf(c instructions.Command) string {
	if s, ok := c.(fmt.Stringer); ok {
		return s.String()
	}
	return c.Name()
}
