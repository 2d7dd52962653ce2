package builder

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A first build, a change, a second build: what is said of the order of lines.
func TestAdviceOnTheOrderOfLines(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		changes string   // file of the context
		wants   []string // one advice each; "": none
	}{
		"two lines to be swapped": {"FROM base\nCOPY . .\nRUN apt-get update && apt-get install -y gcc\n", "main.go",
			[]string{"these two lines swapped would have saved 14 s: main.go changed, and line 3 ran again only because it stands below"}},
		"a blank line and a comment between":  {"FROM base\nCOPY . .\n\n# tools\nRUN apk add --no-cache gcc\n", "main.go", []string{"these two lines swapped would have saved 14 s"}},
		"an ENV between":                      {"FROM base\nCOPY . .\nENV A=b\nRUN apk add gcc\n", "main.go", []string{"line 4 moved above line 2 would have saved 14 s"}},
		"something else between":              {"FROM base\nCOPY . .\nRUN make\nRUN apk add gcc\n", "main.go", []string{"line 4 moved above line 2"}},
		"two of them":                         {"FROM base\nCOPY . .\nRUN pip install flask\nRUN gem install rake\n", "main.go", []string{"these two lines swapped", "line 4 moved above line 2"}},
		"an install that a file describes":    {"FROM base\nWORKDIR /app\nCOPY . .\nRUN npm ci\n", "main.go", []string{"package-lock.json and package.json copied first, then line 4, and line 3 after it would have saved 14 s"}},
		"requirements of pip":                 {"FROM base\nCOPY . /app\nWORKDIR /app\nRUN pip install --no-cache-dir -r requirements.txt\n", "main.go", []string{"requirements.txt copied first, then line 4, and line 2"}},
		"the description changed":             {"FROM base\nCOPY . .\nRUN npm ci\n", "package.json", nil},
		"what is installed is copied":         {"FROM base\nCOPY . .\nRUN pip install .\n", "main.go", nil},
		"there is no description":             {"FROM base\nCOPY main.go .\nRUN npm ci\n", "main.go", nil},
		"a build needs its sources":           {"FROM base\nCOPY . .\nRUN make\n", "main.go", nil},
		"an install with a build in its line": {"FROM base\nCOPY . .\nRUN npm ci && npm run build\n", "main.go", nil},
		"a script of the context":             {"FROM base\nCOPY . .\nRUN ./install.sh && apk add gcc\n", "main.go", nil},
		"the right order":                     {"FROM base\nRUN apk add gcc\nCOPY . .\n", "main.go", nil},
		"nothing changed":                     {"FROM base\nCOPY . .\nRUN apk add gcc\n", "", nil},
		"exec form":                           {"FROM base\nCOPY . .\nRUN [\"apk\",\"add\",\"gcc\"]\n", "main.go", []string{"these two lines swapped"}},
		"in a stage before":                   {"FROM base AS a\nADD main.go /\nRUN <<E\nset -e\napk add gcc\nE\nFROM base\nCOPY --from=a /main.go /\n", "main.go", []string{"these two lines swapped"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.addImage("base", nil, "f=1")
				w.runner = func(s Step, _ io.Writer) (int, error) {
					time.Sleep(14 * time.Second)
					return 0, os.WriteFile(filepath.Join(w.snaps.Upper(s.Key), "made"), []byte(time.Now().String()), 0o644)
				}
				writeFiles(t, w.dir, "main.go=1", "package.json=1", "package-lock.json=1", "requirements.txt=1", "install.sh=1")
				if r := w.mustBuild(c.text); len(r.Advice) > 0 {
					t.Errorf("a first build advises %+v", r.Advice)
				}
				if c.changes != "" {
					writeFiles(t, w.dir, c.changes+"=22")
				}
				r := w.mustBuild(c.text)
				if len(r.Advice) != len(c.wants) {
					t.Fatalf("%d pieces of advice: %+v", len(r.Advice), r.Advice)
				}
				for i, a := range r.Advice {
					if !strings.Contains(a.Text, c.wants[i]) || a.Saved != 14*time.Second || strings.Count(a.Excerpt, "\n") != 2 {
						t.Errorf("%+v", a)
					}
				}
			})
		})
	}
}
