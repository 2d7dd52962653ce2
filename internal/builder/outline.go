// What a Dockerfile offers, without building it: its stages, and what a target can be given.
package builder

import (
	"cmp"
	"path"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"keg/internal/dockerfile"
)

// Outline is what a Dockerfile offers.
type Outline struct {
	Text    []byte // of the file
	Stages  []StageInfo
	Target  StageInfo
	Args    []Parameter // of the target and what it stands on
	Secrets []Parameter
	SSH     []Parameter
}

// StageInfo is one stage. Lines count from 1; 0: not known.
type StageInfo struct {
	Name, Description, Base, Platform string
	First, Last                       int
}

// Parameter is an ARG, a secret or an agent of ssh.
type Parameter struct {
	Name, Description, Value string
	Required                 bool
	First, Last              int
}

// Describe reads the Dockerfile of a build. Nothing is pulled.
func Describe(o Options) (*Outline, error) {
	bc, err := openContext(o.Context)
	if err != nil {
		return nil, err
	}
	defer bc.close()
	file, err := (deps{progress: &progress{}}).loadDefinition(o, bc)
	if err != nil {
		return nil, err
	}
	out := &Outline{Text: file.Text}
	for _, s := range file.Stages {
		out.Stages = append(out.Stages, stageInfo(s))
	}
	p, err := newPlan(file, o)
	if err != nil {
		return nil, err
	}
	out.Target = out.Stages[p.target.index]
	c := &outliner{p: p, out: out}
	c.globals(file)
	for _, s := range p.reach() {
		if !s.external {
			c.stage(s)
		}
	}
	for _, list := range [][]Parameter{out.Args, out.Secrets, out.SSH} {
		slices.SortStableFunc(list, func(a, b Parameter) int { return a.First - b.First })
	}
	return out, nil
}

func stageInfo(s instructions.Stage) StageInfo {
	i := StageInfo{Name: s.Name, Description: s.DocComment, Base: s.BaseName, Platform: s.Platform}
	i.First, i.Last = lines(s.Location)
	return i
}

func lines(at []parser.Range) (first, last int) {
	for _, r := range at {
		if first == 0 {
			first = r.Start.Line
		}
		last = max(last, r.End.Line)
	}
	return first, last
}

type outliner struct {
	p   *plan
	out *Outline
}

func add(list *[]Parameter, p Parameter, at []parser.Range) {
	p.First, p.Last = lines(at)
	if !slices.ContainsFunc(*list, func(o Parameter) bool { return o.Name == p.Name }) {
		*list = append(*list, p)
	}
}

// globals are the arguments before the first FROM that one of the needed FROMs uses, or another of them.
func (c *outliner) globals(file *dockerfile.File) {
	used := map[string]bool{}
	use := func(word string) {
		if m, err := c.p.lex.ProcessWordWithMatches(word, c.p.global); err == nil {
			for k := range m.Matched {
				used[k] = true
			}
		}
	}
	for _, s := range c.p.reach() {
		if !s.external {
			from := file.Stages[s.index]
			use(from.BaseName)
			use(from.Platform)
		}
	}
	for _, a := range slices.Backward(file.Args) {
		for _, kv := range a.Args {
			if used[kv.Key] && kv.Value != nil {
				use(*kv.Value)
			}
		}
	}
	for _, a := range file.Args {
		for _, kv := range a.Args {
			if used[kv.Key] {
				v, _ := c.p.global.Get(kv.Key)
				add(&c.out.Args, Parameter{Name: kv.Key, Description: kv.DocComment, Value: v}, a.Location())
			}
		}
	}
}

func (c *outliner) stage(s *stage) {
	for _, cmd := range s.src.Commands {
		switch i := cmd.(type) {
		case *instructions.ArgCommand:
			for _, kv := range i.Args {
				add(&c.out.Args, Parameter{Name: kv.Key, Description: kv.DocComment, Value: c.value(kv)}, i.Location())
			}
		case *instructions.RunCommand:
			// What mounts are is known once their words are evaluated.
			if err := i.Expand(func(w string) (string, error) { return expand(c.p.lex, w, c.p.global) }); err != nil {
				continue
			}
			for _, m := range instructions.GetMounts(i) {
				c.mount(m, i.Location())
			}
		}
	}
}

func (c *outliner) value(kv instructions.KeyValuePairOptional) string {
	if v, ok := c.p.args[kv.Key]; ok {
		return v
	}
	if kv.Value == nil {
		v, _ := c.p.global.Get(kv.Key)
		return v
	}
	if v, err := expand(c.p.lex, *kv.Value, c.p.global); err == nil {
		return v
	}
	return *kv.Value
}

func (c *outliner) mount(m *instructions.Mount, at []parser.Range) {
	p := Parameter{Name: m.CacheID, Required: m.Required}
	switch m.Type {
	case instructions.MountTypeSecret:
		if p.Name == "" {
			p.Name = path.Base(cmp.Or(m.Source, m.Target))
		}
		add(&c.out.Secrets, p, at)
	case instructions.MountTypeSSH:
		if p.Name == "" {
			p.Name = "default"
		}
		add(&c.out.SSH, p, at)
	}
}
