// The plan of a build: which stages the target needs, on what they stand, in which
// order. Resolving base images is the only thing that it asks of the world.
package builder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/suggest"
	"golang.org/x/sync/errgroup"

	"keg/internal/dockerfile"
	"keg/internal/fault"
	"keg/internal/image"
)

// plan is a build as a value.
type plan struct {
	o        Options
	file     *dockerfile.File
	lex      *shell.Lex
	args     map[string]string // --build-arg
	global   environ
	build    image.Platform
	platform image.Platform // of the target
	epoch    *time.Time
	stages   []*stage // of the file, then images used by --from
	target   *stage
}

// stage is one FROM, or an image that --from names.
type stage struct {
	src      instructions.Stage
	name     string // as shown: its own, "stage-1", or "" for the only one
	index    int
	base     *stage // FROM an earlier stage
	platform image.Platform
	given    bool // --platform
	image    *Base
	commands []command
	deps     []*stage
	external bool   // not a FROM of this file
	local    string // an external one that is a directory of the caller's
	built    Built  // its image, when another build made it
	needed   bool
	resolved bool
	ready    bool // evaluated
	triggers bool // ONBUILD commands were put in front

	// What evaluation gives.
	config  *image.Config
	env     environ
	args    []argument
	steps   []*step // own ones; the base's come before
	fromMsg string  // "[1/3] FROM ..."; "" without an image
	shown   int
	total   int
	hasCmd  bool
}

// command is an instruction with the stages that it reads.
type command struct {
	instructions.Command
	from    []*stage // COPY: one or none; RUN: one a mount, nil for the context
	onbuild bool
}

func newPlan(file *dockerfile.File, o Options) (*plan, error) {
	p := &plan{o: o, file: file, lex: file.Lex(), args: buildArgs(o), build: image.Host()}
	p.platform = p.build
	if o.Platform != nil {
		p.platform = *o.Platform
	}
	targetName := o.Target
	if targetName == "" {
		targetName = file.Stages[len(file.Stages)-1].Name
	}
	var err error
	p.global, err = globalArgs(platformArgs(p.build, p.platform, targetName, p.args), file, p.lex, p.args)
	if err != nil {
		return nil, err
	}
	epoch := p.args["SOURCE_DATE_EPOCH"]
	if epoch == "" {
		epoch, _ = p.global.Get("SOURCE_DATE_EPOCH")
	}
	if p.epoch, err = parseEpoch(epoch); err != nil {
		return nil, err
	}
	for i := range file.Stages {
		if err := p.addStage(i); err != nil {
			return nil, file.At(file.Stages[i].Location, err)
		}
	}
	if p.target, err = p.findTarget(); err != nil {
		return nil, err
	}
	for _, s := range p.stages[:len(file.Stages)] {
		for _, c := range s.src.Commands {
			linked, err := p.link(s, c)
			if err != nil {
				return nil, file.At(c.Location(), err)
			}
			s.commands = append(s.commands, linked)
		}
	}
	if err := p.checkCycles(); err != nil {
		return nil, err
	}
	if len(p.stages) == 1 {
		p.stages[0].name = ""
	}
	return p, nil
}

func (p *plan) addStage(i int) error {
	s := &stage{src: p.file.Stages[i], index: i, platform: p.platform}
	s.name = s.src.Name
	if s.name == "" {
		s.name = fmt.Sprintf("stage-%d", i)
	}
	base, err := expand(p.lex, s.src.BaseName, p.global)
	if err != nil {
		return err
	}
	if base == "" {
		return fault.Invalidf("base name (%s) should not be blank", s.src.BaseName)
	}
	s.src.BaseName = base
	if s.src.Platform != "" {
		v, err := expand(p.lex, s.src.Platform, p.global)
		if err != nil {
			return fault.Invalidf("failed to process arguments for platform %s: %w", s.src.Platform, err)
		}
		if v == "" {
			return fault.Invalidf("empty platform value from expression %s", s.src.Platform)
		}
		if s.platform, err = image.ParsePlatform(v); err != nil {
			return fault.Invalidf("failed to parse platform %s: %w", s.src.Platform, err)
		}
		s.given = true
	}
	if named, ok, err := p.namedBase(base); err != nil {
		return err
	} else if ok && named.Built != nil {
		s.built = named.Built
	} else if ok {
		s.src.BaseName = named.Image
	} else if b := p.byName(base); b != nil {
		s.base = b
	}
	p.stages = append(p.stages, s)
	return nil
}

// byName finds the last stage so far with this name; names ignore case.
func (p *plan) byName(name string) *stage {
	for _, s := range slices.Backward(p.stages) {
		if s.src.Name != "" && strings.EqualFold(s.src.Name, name) {
			return s
		}
	}
	return nil
}

func (p *plan) findTarget() (*stage, error) {
	if p.o.Target == "" {
		return p.stages[len(p.stages)-1], nil
	}
	if s := p.byName(p.o.Target); s != nil {
		return s, nil
	}
	if n, err := strconv.Atoi(p.o.Target); err == nil && n >= 0 && n < len(p.stages) {
		return p.stages[n], nil
	}
	var names []string
	for _, s := range p.stages {
		names = append(names, s.src.Name)
	}
	err := suggest.WrapError(fmt.Errorf("target stage %q could not be found", p.o.Target), p.o.Target, names, true)
	return nil, fault.As(fault.NotFound, err)
}

// link finds the stages that a command reads.
func (p *plan) link(s *stage, ic instructions.Command) (command, error) {
	c := command{Command: ic}
	switch ic := ic.(type) {
	case *instructions.CopyCommand:
		if ic.From == "" {
			return c, nil
		}
		if w, _, err := p.lex.ProcessWord(ic.From, environ(nil)); err != nil || w != ic.From {
			return c, fault.Invalidf("variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround")
		}
		from, err := p.source(ic.From, ic.Location())
		if err != nil {
			return c, err
		}
		c.from = []*stage{from}
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(ic) {
			var from *stage
			var err error
			if m.From != "" {
				if from, err = p.source(m.From, ic.Location()); err != nil {
					return c, err
				}
			}
			c.from = append(c.from, from)
		}
	}
	for _, f := range c.from {
		if f != nil && !slices.Contains(s.deps, f) {
			s.deps = append(s.deps, f)
		}
	}
	return c, nil
}

// source is the stage that --from names: by name, by number, else an image.
func (p *plan) source(from string, at []parser.Range) (*stage, error) {
	named, isNamed := p.named(from)
	if s := p.byName(from); s != nil && !isNamed {
		return s, nil
	}
	if isNamed && !named.local() && named.Built == nil {
		from = named.Image
	}
	if n, err := strconv.Atoi(from); err == nil && !isNamed {
		if n < 0 || n >= len(p.file.Stages) {
			return nil, fault.Invalidf("invalid stage index %d", n)
		}
		return p.stages[n], nil
	}
	for _, s := range p.stages {
		if s.external && s.src.BaseName == from {
			return s, nil
		}
	}
	s := &stage{src: instructions.Stage{BaseName: from, Location: at}, index: len(p.stages),
		platform: p.platform, external: true, local: named.Dir, built: named.Built}
	p.stages = append(p.stages, s)
	return s, nil
}

func (s *stage) needs() []*stage {
	if s.base == nil {
		return s.deps
	}
	return append([]*stage{s.base}, s.deps...)
}

func (p *plan) checkCycles() error {
	const visiting, done = 1, 2
	state := map[*stage]int{}
	var visit func(s *stage) error
	visit = func(s *stage) error {
		switch state[s] {
		case visiting:
			return p.file.At(s.src.Location, fault.Invalidf("circular dependency detected on stage: %s", s.name))
		case done:
			return nil
		}
		state[s] = visiting
		for _, n := range s.needs() {
			if err := visit(n); err != nil {
				return err
			}
		}
		state[s] = done
		return nil
	}
	for _, s := range p.stages {
		if err := visit(s); err != nil {
			return err
		}
	}
	for _, s := range p.stages {
		for _, c := range s.commands {
			for _, f := range c.from {
				if f != nil && !f.external && f.index >= s.index {
					return p.file.At(c.Location(), fault.Invalidf(
						"cannot copy from stage %q, it needs to be defined before current stage %q", f.name, s.name))
				}
			}
		}
	}
	return nil
}

// reach marks what the target needs.
func (p *plan) reach() []*stage {
	var order []*stage
	var visit func(s *stage)
	visit = func(s *stage) {
		if s.needed {
			return
		}
		s.needed = true
		for _, n := range s.needs() {
			visit(n)
		}
	}
	for _, s := range p.stages {
		s.needed = false
	}
	visit(p.target)
	for _, s := range p.stages {
		if s.needed {
			order = append(order, s)
		}
	}
	return order
}

// loadBases resolves the images of all needed stages, and again while ONBUILD
// triggers of a base bring in further stages.
func (d deps) loadBases(ctx context.Context, p *plan) error {
	for {
		if err := d.resolveBases(ctx, p); err != nil {
			return err
		}
		more, err := p.addTriggers()
		if err != nil || !more {
			return err
		}
		if err := p.checkCycles(); err != nil {
			return err
		}
	}
}

func (d deps) resolveBases(ctx context.Context, p *plan) error {
	type want struct{ ref, platform string }
	wanted := map[want][]*stage{}
	refs := map[want]image.Reference{}
	for _, s := range p.reach() {
		if s.base != nil || s.resolved {
			continue
		}
		s.resolved = true
		if s.local != "" || s.src.BaseName == "scratch" && s.built == nil {
			continue
		}
		if s.built != nil {
			base, err := s.built(ctx, s.platform)
			if err == nil {
				err = checkBase(base)
			}
			if err != nil {
				return p.file.At(s.src.Location, fmt.Errorf("context %s: %w", s.src.BaseName, err))
			}
			s.image = &base
			continue
		}
		ref, err := image.ParseReference(s.src.BaseName)
		if err != nil {
			return p.file.At(s.src.Location, fault.Invalidf("failed to parse stage name %q: %w", s.src.BaseName, err))
		}
		w := want{ref.String(), image.FormatPlatform(s.platform)}
		wanted[w], refs[w] = append(wanted[w], s), ref
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range slices.SortedFunc(maps.Keys(wanted), func(a, b want) int { return strings.Compare(a.ref+a.platform, b.ref+b.platform) }) {
		stages := wanted[w]
		g.Go(func() error {
			v := d.progress.start("[internal] load metadata for " + w.ref)
			base, err := d.images.Base(ctx, refs[w], stages[0].platform, p.o.Pull)
			if err == nil {
				err = checkBase(base)
			}
			if err == nil && p.o.Approve != nil {
				err = p.o.Approve(ctx, "docker-image://"+refs[w].String(), stages[0].platform, &base)
			}
			v.done(err)
			if err != nil {
				return p.file.At(stages[0].src.Location, p.baseError(stages[0].src.BaseName, err))
			}
			for _, s := range stages {
				s.image = &base
			}
			return nil
		})
	}
	return g.Wait()
}

func (p *plan) baseError(name string, err error) error {
	if !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("%s: %w", name, err)
	}
	var names []string
	for _, s := range p.stages {
		if !s.external && s.src.Name != "" {
			names = append(names, s.src.Name)
		}
	}
	return suggest.WrapError(fmt.Errorf("%s: %w", name, err), name, names, true)
}

func checkBase(b Base) error {
	if b.Config == nil {
		return errors.New("the image has no config")
	}
	if b.Config.OS != "" && b.Config.OS != "linux" {
		return fault.Unsupportedf("the image is for %s, not for linux", b.Config.OS)
	}
	return nil
}

// addTriggers puts the ONBUILD commands of the bases in front of the stages that stand
// on them, and reports whether those read stages that nobody needed before.
func (p *plan) addTriggers() (more bool, err error) {
	for _, s := range p.reach() {
		if s.triggers || s.external {
			continue
		}
		s.triggers = true
		var triggers []string
		if s.image != nil {
			triggers = s.image.Config.Config.OnBuild
		} else if s.base != nil {
			for _, c := range s.base.commands {
				if t, ok := c.Command.(*instructions.OnbuildCommand); ok {
					triggers = append(triggers, t.Expression)
				}
			}
		}
		var front []command
		for _, t := range triggers {
			ic, err := dockerfile.ParseTrigger(t, s.src.Location)
			if err != nil {
				return false, p.file.At(s.src.Location, err)
			}
			c, err := p.link(s, ic)
			if err != nil {
				return false, p.file.At(s.src.Location, err)
			}
			c.onbuild = true
			more = more || len(c.from) > 0
			front = append(front, c)
		}
		s.commands = append(front, s.commands...)
	}
	return more, nil
}
