package builder

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/dockerfile"
	"keg/internal/image"
)

// FuzzPlan evaluates any text: it ends in a plan or in an error with its place.
func FuzzPlan(f *testing.F) {
	for _, s := range []string{mutated, "FROM a\nRUN <<E\n#!x\nE\n", "ARG A=b\nFROM $A AS x\nFROM x\nCOPY --from=0 --parents --exclude=*a a/./b* /c",
		"FROM a\nEXPOSE 1-65535/udp [::1]:80:80\nVOLUME [\"a\"]\nONBUILD RUN x\nWORKDIR $HOME/..\nUSER a:b\nADD --chmod=u+x,g=o http://x/y z",
		"FROM a\nRUN --mount=type=cache,target=x,id=../.. --mount=from=b,source=..,target=/y,rw --network=none c"} {
		f.Add(s, "RUN x")
	}
	f.Fuzz(func(t *testing.T, text, trigger string) {
		file, err := dockerfile.Parse([]byte(text), "Dockerfile")
		if err != nil {
			return
		}
		p, err := newPlan(file, Options{})
		if err == nil {
			cfg := emptyConfig(image.Host())
			cfg.Config.OnBuild = []string{trigger}
			cfg.RootFS.DiffIDs = []digest.Digest{digest.FromString("x")}
			for _, s := range p.reach() {
				if s.base == nil && s.src.BaseName != "scratch" {
					s.image = &Base{Config: cfg}
				}
			}
			if _, err = p.addTriggers(); err == nil {
				if err = p.checkCycles(); err == nil {
					for _, s := range p.reach() {
						if s.base == nil && s.image == nil && s.src.BaseName != "scratch" {
							s.image = &Base{Config: cfg}
						}
					}
					err = p.evaluate()
				}
			}
		}
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("error without place: %v", err)
		}
	})
}
