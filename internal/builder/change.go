// Instructions outside of a build: commit --change and import --change.
package builder

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"keg/internal/dockerfile"
	"keg/internal/fault"
	"keg/internal/image"
)

// changeable are the instructions that only touch the config.
var changeable = [...]string{"cmd", "entrypoint", "env", "expose", "healthcheck", "label", "onbuild", "stopsignal", "user", "volume", "workdir"}

// Change applies instructions, one a line of a Dockerfile, to a copy of a config.
func Change(cfg *image.Config, changes []string) (*image.Config, error) {
	s := &stage{config: cloneConfig(cfg)}
	for _, kv := range cfg.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		s.env = s.env.with(k, v)
	}
	p := &plan{lex: shell.NewLex('\\')}
	for _, text := range changes {
		if err := p.change(s, text); err != nil {
			return nil, err
		}
	}
	s.config.History = slices.Clone(cfg.History) // what changed is told by whoever asked
	s.config.Author = cfg.Author
	return s.config, nil
}

func (p *plan) change(s *stage, text string) error {
	word, _, _ := strings.Cut(strings.TrimSpace(text), " ")
	if !slices.Contains(changeable[:], strings.ToLower(word)) {
		return fault.Invalidf("%s is not a valid change command", word)
	}
	c, err := dockerfile.ParseChange(text)
	if err != nil {
		return err
	}
	if w, ok := c.(*instructions.WorkdirCommand); ok {
		if err := p.expand(s, w); err != nil {
			return err
		}
		dir := w.Path
		if !path.IsAbs(dir) {
			dir = path.Join("/", s.config.Config.WorkingDir, dir)
		}
		s.config.Config.WorkingDir = path.Clean(dir)
		return nil
	}
	return p.command(s, command{Command: c})
}
