package builder

import (
	"strings"
	"testing"

	"keg/internal/dockerfile"
)

func TestReads(t *testing.T) {
	for text, want := range map[string]string{
		"FROM scratch\nLABEL a=b\n":                                               "",
		"FROM scratch\nCOPY a ./b/../c /\nCOPY a /x\n":                            "a c",
		"FROM scratch\nCOPY . /\n":                                                "all",
		"FROM scratch\nCOPY a .. /\n":                                             "all",
		"FROM scratch\nENV d=e\nCOPY ${d}/*.txt /\n":                              "e/*.txt",
		"FROM scratch\nCOPY ünï /\n":                                              "all",
		"FROM scratch\nADD https://a.example/b f.tar /\n":                         "f.tar",
		"FROM scratch\nCOPY <<E /x\ntext\nE\n":                                    "",
		"FROM scratch\nCOPY --parents a/./b/c d /\n":                              "a/b/c d",
		"FROM scratch\nCOPY --parents a/**/c /\n":                                 "all",
		"FROM scratch\nRUN --mount=target=/m,source=s true\n":                     "s",
		"FROM scratch\nRUN --mount=target=/m true\n":                              "all",
		"FROM scratch\nRUN --mount=type=cache,target=/m true\n":                   "",
		"FROM scratch AS one\nCOPY . /\nFROM scratch\nCOPY a /":                   "a",
		"FROM scratch AS o\nCOPY x /\nFROM scratch\nCOPY --from=o /y /\nCOPY a /": "a x",
	} {
		file, err := dockerfile.Parse([]byte(text), "Dockerfile")
		if err != nil {
			t.Fatal(text, err)
		}
		p, err := newPlan(file, Options{})
		if err == nil {
			err = p.evaluate()
		}
		if err != nil {
			t.Fatal(text, err)
		}
		got := "all"
		if paths := p.reads(); paths != nil {
			got = strings.Join(paths, " ")
		}
		if got != want {
			t.Errorf("%q reads %q, not %q", text, got, want)
		}
	}
}

func TestSourceIdentifier(t *testing.T) {
	for address, want := range map[string]string{
		"https://h/r.git":                     "git://h/r.git",
		"https://h/r.git#main:sub":            "git://h/r.git#main:sub",
		"https://h/r.git?ref=main&subdir=sub": "git://h/r.git#main:sub",
		"https://h/r.git?branch=b":            "git://h/r.git#b",
		"https://h/r.git?keep-git-dir=1":      "https://h/r.git?keep-git-dir=1", // refused when it is fetched
		"https://h/r.git?ref=--upload-pack=x": "https://h/r.git?ref=--upload-pack=x",
		"https://h/r.git?subdir=../x":         "https://h/r.git?subdir=../x",
		"https://h/a.tar":                     "https://h/a.tar",
		"github.com/docker/buildx":            "git://github.com/docker/buildx",
	} {
		if got := SourceIdentifier(address); got != want {
			t.Errorf("%s: %s, not %s", address, got, want)
		}
	}
}
