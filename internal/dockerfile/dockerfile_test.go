package dockerfile

import (
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"keg/internal/fault"
)

func TestParseStagesArgsAndEscape(t *testing.T) {
	f, err := Parse([]byte("# syntax=docker/dockerfile:1\n# escape=`\nARG V=1\nFROM a:$V AS one\nRUN x `\n  y\nFROM --platform=linux/arm64 one\nCOPY --from=one a b\n"), "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Stages) != 2 || f.Stages[0].Name != "one" || f.Stages[1].Platform != "linux/arm64" || len(f.Args) != 1 || f.Escape != '`' {
		t.Fatalf("%+v", f)
	}
	run := f.Stages[0].Commands[0].(*instructions.RunCommand)
	if got := run.CmdLine[0]; got != "x   y" {
		t.Errorf("continued line: %q", got)
	}
	if l := run.Location(); l[0].Start.Line != 5 || l[len(l)-1].End.Line != 6 {
		t.Errorf("location: %v", l)
	}
}

func TestErrorsAreDockers(t *testing.T) {
	for name, c := range map[string]struct {
		text, msg string
		line      int
	}{
		"unknown":   {"FROM x\n\nCOPYY . .\n", "dockerfile parse error on line 3: unknown instruction: COPYY (did you mean COPY?)", 3},
		"flag":      {"FROM x\nCOPY --frm=a b c\n", "dockerfile parse error on line 2: unknown flag: --frm (did you mean from?)", 2},
		"no from":   {"RUN x\n", "dockerfile parse error on line 1: no build stage in current context", 1},
		"heredoc":   {"FROM x\nRUN <<E\nfoo\n", "dockerfile parse error on line 2: unterminated heredoc", 2},
		"nul":       {"FROM x\nRUN a\x00b\n", "dockerfile parse error on line 2: the line has a NUL byte: this is not a text file", 2},
		"long line": {"FROM x\nRUN " + strings.Repeat("a", 10<<20) + "\n", "dockerfile parse error on line 2: the line has 10485765 bytes, more than the 65534 allowed", 2},
		"empty":     {" \n", "the Dockerfile cannot be empty", 0},
		"comments":  {"# only\n", "dockerfile parse error on line 1: file with no instructions", 1},
		"frontend":  {"# syntax=evil/frontend\nFROM x\n", `syntax "evil/frontend" is not supported: only docker/dockerfile is built in`, 1},
		"one arg":   {"FROM x\nCOPY a\n", "dockerfile parse error on line 2: COPY requires at least two arguments, but only one was provided. Destination could not be determined", 2},
		"stage":     {"FROM x AS 1a\n", `dockerfile parse error on line 1: invalid name for build stage: "1a", name can't start with a number or contain symbols`, 1},
		"only arg":  {"ARG x\n", "dockerfile contains no stages to build: it needs a FROM", 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.text), "Dockerfile")
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T %v", err, err)
			}
			if e.Error() != c.msg || e.Line != c.line {
				t.Errorf("got line %d %q\nwant line %d %q", e.Line, e, c.line, c.msg)
			}
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.Unsupported {
				t.Errorf("kind %v", k)
			}
			if len(e.Excerpt) > 4096 {
				t.Errorf("excerpt of %d bytes", len(e.Excerpt))
			}
		})
	}
}

func TestExcerpt(t *testing.T) {
	_, err := Parse([]byte("FROM x\n\nCOPYY . .\n"), "Dockerfile")
	var e *Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	want := "Dockerfile:3\n--------------------\n" +
		"   1 |     FROM x\n   2 |     \n   3 | >>> COPYY . .\n   4 |     \n--------------------\n"
	if e.Excerpt != want {
		t.Errorf("got\n%s\nwant\n%s", e.Excerpt, want)
	}
	f := File{Name: "D", Text: []byte("a\nb\nc\nd\x1b[2Je\nf\ng\nh\ni")}
	want = "D:4\n--------------------\n   2 |     b\n   3 |     c\n   4 | >>> d\uFFFD[2Je\n   5 |     f\n   6 |     g\n--------------------\n"
	if got := f.Excerpt(4, 4); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestBOMAndCRLF(t *testing.T) {
	f, err := Parse([]byte("\xef\xbb\xbfFROM x\r\nRUN <<EOF\r\necho a\r\nEOF\r\nENV A=b\r\n"), "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if f.Stages[0].BaseName != "x" || len(f.Stages[0].Commands) != 2 {
		t.Fatalf("%+v", f.Stages[0])
	}
	if env := f.Stages[0].Commands[1].(*instructions.EnvCommand); env.Env[0].Value != "b" {
		t.Errorf("env %q", env.Env[0].Value)
	}
}

func TestWarningsAndCheck(t *testing.T) {
	text := "FROM x as y\nMAINTAINER me\n"
	f, err := Parse([]byte(text), "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Warnings) != 2 || f.Warnings[0].Line != 1 || f.Warnings[0].Rule != "FromAsCasing" {
		t.Fatalf("%v", f.Warnings)
	}
	if f, err = Parse([]byte("# check=skip=all\n"+text), "Dockerfile"); err != nil || len(f.Warnings) != 0 {
		t.Fatalf("%v %v", f.Warnings, err)
	}
	var e *Error
	if _, err = Parse([]byte("# check=skip=all;nonsense=1\n"+text), "Dockerfile"); !errors.As(err, &e) || e.Line != 1 {
		t.Fatalf("%v", err)
	}
}

func TestParseTrigger(t *testing.T) {
	c, err := ParseTrigger("COPY . /app", nil)
	if err != nil || c.Name() != "copy" && c.Name() != "COPY" {
		t.Fatalf("%v %v", c, err)
	}
	for _, bad := range []string{"NONSENSE x", "", "RUN a\nRUN b", "FROM x"} {
		if _, err := ParseTrigger(bad, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"FROM x\nRUN <<E\nE\n", "# escape=`\nFROM a\nENV a b", "FROM a\nRUN --mount=type=cache,target=/x y\nHEALTHCHECK --interval=1s CMD x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, err := Parse([]byte(s), "Dockerfile")
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("error without place: %v", err)
		}
	})
}

func TestCommands(t *testing.T) {
	for line, want := range map[string]string{
		"apt-get update && apt-get install -y 'a b' \\\n  c": "apt-get,update / apt-get,install,-y,a b,c",
		"a > /dev/null 2>&1; b 2>x c &":                      "a / b,c",
		"set -e\n# note; not run\nx \"y;z\" \"it's\" 'a\"b'": "set,-e / x,y;z,it's,a\"b",
		"echo $(cat f) | (sort <in)":                         "echo,$ / cat,f / sort",
		"a ''":                                               "a,",
		"":                                                   "",
		"a\\":                                                "a\\",
		"'open":                                              "open",
	} {
		var got []string
		for _, words := range Commands(line) {
			got = append(got, strings.Join(words, ","))
		}
		if g := strings.Join(got, " / "); g != want {
			t.Errorf("%q is %q, want %q", line, g, want)
		}
	}
}
