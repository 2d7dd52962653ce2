package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func (b *bench) rows() []*row {
	return []*row{b.coldSteps(), b.unchanged(), b.lastCopy(), b.realBuild(), b.manyFiles(), b.runAfter(), b.copyLarge(), b.addTars()}
}

func must(dir string, err error) string {
	if err != nil {
		panic(err)
	}
	return dir
}

const multi = `FROM busy AS go
WORKDIR /src
COPY go/ ./
RUN go build -o /out/app main.go
FROM busy AS web
WORKDIR /w
COPY web/package.json ./
RUN node -e "require('fs').mkdirSync('node_modules/dep',{recursive:true})"
COPY web/ ./
RUN node bundle.js
FROM busy AS py
WORKDIR /p
COPY py/ ./
RUN python3 -c "import json; json.dump({'a': 1}, open('lock.json', 'w'))"
RUN python3 gen.py > generated.txt
FROM busy
RUN mkdir -p /srv/site && echo 'app:x:1000:1000::/srv:/bin/sh' >> /etc/passwd
COPY --from=go /out/app /usr/bin/app
COPY --from=web /w/dist /srv/site
COPY --from=py /p/generated.txt /srv/
RUN app 2> /srv/ran && ls -R /srv > /srv/list
USER app
ENTRYPOINT ["app"]
`

func (b *bench) steps() string {
	text := "FROM busy\n"
	for i := range 19 {
		text += fmt.Sprintf("RUN echo %d > /step%d\n", i, i)
	}
	return must(b.context("steps", map[string]string{"Dockerfile": text}))
}

func (b *bench) coldSteps() *row {
	dir := b.steps()
	return &row{name: "19 trivial RUN steps, cold", aim: "1/6", rounds: 3, do: func(e *engine) error {
		return e.run("build", "--no-cache", "-q", "-t", "steps", dir)
	}}
}

func (b *bench) unchanged() *row {
	dir := b.steps()
	build := func(e *engine) error { return e.run("build", "-q", "-t", "steps", dir) }
	return &row{name: "the same, nothing changed", aim: "30 ms", rounds: b.rounds * 3, before: build, do: build}
}

func (b *bench) lastCopy() *row {
	text := "FROM busy\n"
	for i := range 19 {
		text += fmt.Sprintf("RUN echo %d > /step%d\n", i, i)
	}
	files := map[string]string{"Dockerfile": text + "COPY app /app\n", "app/main": "0"}
	for i := range 50 {
		files[fmt.Sprintf("app/f%d", i)] = strings.Repeat("x", 1000)
	}
	dir := must(b.context("last", files))
	build := func(e *engine) error { return e.run("build", "-q", "-t", "last", dir) }
	return &row{name: "a change in a last COPY", aim: "60 ms", rounds: b.rounds * 2, before: func(e *engine) error {
		if err := build(e); err != nil {
			return err
		}
		b.changes++
		return os.WriteFile(filepath.Join(dir, "app/main"), fmt.Appendf(nil, "%d", b.changes), 0o644)
	}, do: build}
}

func (b *bench) realBuild() *row {
	dir := must(b.context("real", map[string]string{
		"Dockerfile":       multi,
		"go/main.go":       "package main\n\nimport \"os\"\n\nfunc main() { os.Stderr.WriteString(\"hello\\n\") }\n",
		"web/package.json": "{}", "web/a.js": "let a = 1",
		"web/bundle.js": "const fs=require('fs');fs.mkdirSync('dist');fs.writeFileSync('dist/b.js',fs.readFileSync('a.js'))",
		"py/gen.py":     "print('generated')",
	}))
	return &row{name: "Go, Node and Python stages, cold", aim: "1/1.5", rounds: 3, do: func(e *engine) error {
		return e.run("build", "--no-cache", "-q", "-t", "real", dir)
	}}
}

// large makes a context with one directory of mb MiB.
func (b *bench) large(name, text string, mb int) string {
	dir := must(b.context(name, map[string]string{"Dockerfile": text}))
	if _, err := os.Stat(dir + "/data"); err == nil {
		return dir
	}
	if err := os.Mkdir(dir+"/data", 0o755); err != nil {
		panic(err)
	}
	block := []byte(strings.Repeat(name, 1<<20/len(name)))
	for i := range mb / 10 {
		f, err := os.Create(fmt.Sprintf("%s/data/f%d", dir, i))
		if err != nil {
			panic(err)
		}
		for range 10 {
			f.Write(block)
		}
		f.Close()
	}
	return dir
}

func (b *bench) runAfter() *row {
	var dir string
	n := 0
	return &row{name: "from \"built\" to the container's exit, 2 GB image", aim: "50 ms", rounds: 2, before: func(e *engine) error {
		if dir == "" {
			dir = b.large("two", "FROM busy\nARG N\nENV N=$N\nCOPY data /data\nRUN echo $N > /n\n", 2000)
		}
		n++
		return e.run("build", "-q", "-t", "two", "--build-arg", fmt.Sprintf("N=%d", n), dir)
	}, do: func(e *engine) error { return e.run("run", "--rm", "--network", "none", "two", "true") }}
}

func (b *bench) copyLarge() *row {
	var dir string
	return &row{name: "COPY of 5 GB", aim: "200 MiB", rounds: 1, alone: true, before: func(*engine) error {
		if dir == "" {
			dir = b.large("five", "FROM busy\nCOPY data /data\n", 5000)
		}
		return nil
	}, do: func(e *engine) error { return e.run("build", "-q", "-t", "five", dir) }}
}

func (b *bench) addTars() *row {
	var dir string
	return &row{name: fmt.Sprintf("ADD of four tars of %d MB", b.mb), aim: "1/5", rounds: 1, before: func(*engine) error {
		if dir != "" {
			return nil
		}
		dir = must(b.context("tars", map[string]string{"Dockerfile": "FROM busy\nADD t0.tar /a/\nADD t1.tar /b/\nADD t2.tar /c/\nADD t3.tar /d/\n"}))
		return b.tars(dir, 4, b.mb)
	}, do: func(e *engine) error { return e.run("build", "-q", "-t", "tars", dir) }}
}

// manyFiles checks an unchanged context of 50,000 files, whose change times have rested.
func (b *bench) manyFiles() *row {
	var dir string
	build := func(e *engine) error { return e.run("build", "-q", "-t", "many", dir) }
	return &row{name: "context of 50,000 files, nothing changed", aim: "well under 1 s", rounds: 3, before: func(e *engine) error {
		if dir == "" {
			dir = must(b.context("many", map[string]string{"Dockerfile": "FROM busy\nCOPY . /all\n"}))
			for i := range 50_000 {
				p := fmt.Sprintf("%s/d%02d/f%05d", dir, i/500, i)
				os.MkdirAll(filepath.Dir(p), 0o755)
				if err := os.WriteFile(p, fmt.Append(nil, i), 0o644); err != nil {
					return err
				}
			}
			time.Sleep(3 * time.Second)
		}
		return build(e)
	}, do: build}
}
