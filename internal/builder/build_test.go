package builder

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keg/internal/image"
)

func TestBuildRunCopyAndMetadata(t *testing.T) {
	w := newWorld(t)
	w.addImage("nginx:1.27-alpine", func(c *image.Config) {
		c.Config.Cmd = []string{"nginx"}
		c.Config.Labels = map[string]string{"a": "b"}
	}, "etc/passwd=root:x:0:0::/:/bin/sh\n", "usr/share/nginx/html/index.html=old")
	writeFiles(t, w.dir, "index.html=hello", "conf/a=1")
	text := `FROM nginx:1.27-alpine
ARG V=1
ENV W=$V
COPY index.html /usr/share/nginx/html/index.html
RUN echo "$W" > out && echo seen
WORKDIR /srv/app
COPY conf .
EXPOSE 80 53/udp
LABEL x=y
USER nobody
ENTRYPOINT ["/bin/server"]
CMD ["-v"]
`
	r := w.mustBuild(text)
	want := []string{"[internal] load build definition from Dockerfile DONE",
		"[internal] load metadata for docker.io/library/nginx:1.27-alpine DONE", "[internal] load .dockerignore DONE",
		"[1/5] FROM docker.io/library/nginx:1.27-alpine@" + w.images["docker.io/library/nginx:1.27-alpine"].Digest.String() + " CACHED",
		"[internal] load build context DONE", "[2/5] COPY index.html /usr/share/nginx/html/index.html DONE",
		`[3/5] RUN echo "1" > out && echo seen DONE`, "[4/5] WORKDIR /srv/app DONE", "[5/5] COPY conf . DONE", "exporting to image DONE"}
	if got := w.progress(); !slices.Equal(got, want) {
		t.Errorf("progress\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := w.file(r, "usr/share/nginx/html/index.html") + w.file(r, "out") + w.file(r, "srv/app/a"); got != "hello1\n1" {
		t.Errorf("files %q", got)
	}
	if w.output() != "seen\n" {
		t.Errorf("output %q", w.output())
	}
	c := w.config(r)
	var history []string
	for _, h := range c.History {
		line := h.CreatedBy
		if h.EmptyLayer {
			line += " (empty)"
		}
		if h.Created == nil {
			t.Errorf("%s has no time", h.CreatedBy)
		}
		history = append(history, line)
	}
	wantHistory := []string{"base", "ARG V=1 (empty)", "ENV W=1 (empty)", "COPY index.html /usr/share/nginx/html/index.html # buildkit",
		`RUN |1 V=1 /bin/sh -c echo "$W" > out && echo seen # buildkit`, "WORKDIR /srv/app", "COPY conf . # buildkit",
		"EXPOSE [53/udp 80/tcp] (empty)", "LABEL x=y (empty)", "USER nobody (empty)", `ENTRYPOINT ["/bin/server"] (empty)`, `CMD ["-v"] (empty)`}
	if !slices.Equal(history, wantHistory) {
		t.Errorf("history\n%s\nwant\n%s", strings.Join(history, "\n"), strings.Join(wantHistory, "\n"))
	}
	if c.Config.User != "nobody" || c.Config.WorkingDir != "/srv/app" || c.Config.Labels["a"] != "b" || c.Config.Labels["x"] != "y" ||
		!slices.Equal(c.Config.Env, []string{"PATH=/bin", "W=1"}) || len(c.Config.ExposedPorts) != 2 || len(c.RootFS.DiffIDs) != 5 {
		t.Errorf("config %+v", c.Config)
	}
	b, _ := w.blobs.Bytes(r.Manifest.Digest, 0)
	m, err := image.ParseManifest(b)
	if err != nil || len(m.Layers) != 5 || m.Layers[4].MediaType != image.MediaLayer || m.Layers[4].Digest != c.RootFS.DiffIDs[4] {
		t.Errorf("manifest %s %v", b, err)
	}

	// Again: every step is cached, nothing is written, nothing runs.
	w.snaps.uses, w.blobs.writes, w.runs = 0, 0, nil
	again := w.mustBuild(text)
	if again.ConfigID != r.ConfigID || again.Manifest.Digest != r.Manifest.Digest || w.snaps.uses+w.blobs.writes+len(w.runs) != 0 {
		t.Errorf("rebuild: %v %d snapshots, %d writes, %d runs", again, w.snaps.uses, w.blobs.writes, len(w.runs))
	}
	for _, p := range w.progress() {
		if strings.HasPrefix(p, "[") && !strings.HasPrefix(p, "[internal]") && !strings.HasSuffix(p, "CACHED") {
			t.Errorf("not cached: %s", p)
		}
	}
	if keys, _ := w.snaps.Keys(); len(keys) != 0 {
		t.Errorf("active snapshots left: %v", keys)
	}
}

func TestOnlyWhatTheTargetNeeds(t *testing.T) {
	w := newWorld(t)
	w.addImage("a", nil, "f=1")
	text := "FROM a AS one\nRUN echo one > o\nFROM nowhere AS two\nRUN false\nFROM scratch AS three\nCOPY --from=one /o /o2\nCOPY --from=0 /f /\n"
	r := w.mustBuild(text)
	if w.file(r, "o2") != "one\n" || w.file(r, "f") != "1" || len(w.runs) != 1 {
		t.Errorf("%d runs", len(w.runs))
	}
	// A stage that gives the same files again does not run what stands on them.
	w.runs = nil
	r2 := w.mustBuild(strings.Replace(text, "echo one > o", "echo one > o # differs, the file does not", 1))
	if len(w.runs) != 1 || r2.ConfigID != r.ConfigID {
		t.Errorf("%d runs, %s %s\n%s", len(w.runs), r.ConfigID, r2.ConfigID, strings.Join(w.progress(), "\n"))
	}
	o := w.options(text)
	o.Target = "one"
	if r, err := w.build(o); err != nil || w.file(r, "o") != "one\n" {
		t.Error(err)
	}
	o.Target = "thre"
	if _, err := w.build(o); err == nil || err.Error() != `target stage "thre" could not be found (did you mean three?)` {
		t.Error(err)
	}
}

func TestBuildErrors(t *testing.T) {
	w := newWorld(t)
	w.addImage("a", nil, "f=1")
	writeFiles(t, w.dir, "there=1", "secret/key=1", ".dockerignore=secret\n", "out->../outside", "up->../../..")
	writeFiles(t, filepath.Dir(w.dir), "outside=1")
	for name, c := range map[string]struct {
		text, want string
		line       int
	}{
		"exit":        {"FROM a\nRUN echo broken; exit 3", `process "/bin/sh -c echo broken; exit 3" did not complete successfully: exit code: 3`, 2},
		"missing":     {"FROM a\n\nCOPY missing /x", `failed to compute cache key: failed to calculate checksum of ref: "/missing": not found`, 3},
		"ignored":     {"FROM a\nCOPY secret/key /x", `failed to compute cache key: failed to calculate checksum of ref: "/secret/key": not found (secret/key is in the context, but .dockerignore excludes it)`, 2},
		"ignored dir": {"FROM a\nCOPY secret /x", `failed to compute cache key: failed to calculate checksum of ref: "/secret": not found (secret is in the context, but .dockerignore excludes it)`, 2},
		"from stage":  {"FROM a AS b\nFROM a\nCOPY --from=b /nope /x", `failed to compute cache key: failed to calculate checksum of ref: "/nope": not found`, 3},
		"no image":    {"FROM nothere", `nothere: docker.io/library/nothere:latest: not found`, 1},
		"near stage":  {"FROM a AS build\nFROM buidl", `buidl: docker.io/library/buidl:latest: not found (did you mean build?)`, 2},
		"cycle":       {"FROM a AS x\nCOPY --from=y / /\nFROM a AS y\nCOPY --from=x / /", `circular dependency detected on stage: x`, 1},
		"later":       {"FROM a AS x\nCOPY --from=y / /\nFROM a AS y\n", `cannot copy from stage "y", it needs to be defined before current stage "x"`, 2},
		"self":        {"FROM a AS x\nCOPY --from=x / /", `circular dependency detected on stage: x`, 1},
		"index":       {"FROM a\nCOPY --from=7 / /", `invalid stage index 7`, 2},
		"platform":    {"FROM --platform=a/b/c/d a", `failed to parse platform a/b/c/d: invalid platform "a/b/c/d": want os/arch[/variant], such as linux/amd64`, 1},
		"no platform": {"FROM --platform=$NOPE a", `empty platform value from expression $NOPE`, 1},
		"variable":    {"ARG X\nFROM $X", `base name ($X) should not be blank`, 2},
		"signal":      {"FROM a\nSTOPSIGNAL SIGNOPE", `invalid signal: SIGNOPE`, 2},
		"port":        {"FROM a\nEXPOSE 70000", `invalid containerPort: 70000`, 2},
		"user":        {"FROM a\nCOPY --chown=nosuch there /", `unable to find user nosuch: no matching entries in passwd file`, 2},
		"mode":        {"FROM a\nCOPY --chmod=99 there /", `invalid chmod parameter: '99'. it should be octal string and between 0 and 07777`, 2},
		"url":         {"FROM a\nCOPY http://x/y /", `source can't be a URL for COPY`, 2},
		"from var":    {"FROM a\nARG S=a\nCOPY --from=$S / /", `variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround`, 3},
		"required":    {"FROM a\nARG S\nRUN echo\nENV X=${S:?needed}", `failed to process "${S:?needed}": S: needed`, 4},
		"file over":   {"FROM a\nCOPY there /d/\nCOPY there /d/there/x", "", 3},
		"ssh":         {"FROM a\nRUN --mount=type=ssh,required x", `ssh agent "default": not found; name it with --ssh default`, 2},
		"link out":    {"FROM a\nCOPY out /x", `failed to compute cache key: failed to calculate checksum of ref: "/out": not found ("out" is a link to "../outside", which the context does not have)`, 2},
		"link up":     {"FROM a\nCOPY up/etc/shadow /x", `failed to compute cache key: failed to calculate checksum of ref: "/up/etc/shadow": not found ("up" is a link to "../../..", which the context does not have)`, 2},
		"bind out":    {"FROM a\nRUN --mount=type=bind,source=out,target=/x x", "", 2},
		"bomb":        {"FROM a\nENV A=0123456789" + strings.Repeat("\nENV A=$A$A", 40), `variables expand to more than the 1048576 bytes allowed`, 19},
		"bomb of arg": {"FROM a\nARG A=0123456789" + strings.Repeat("\nARG A=$A$A", 40), `variables expand to more than the 1048576 bytes allowed`, 19},
		"insecure":    {"FROM a\nRUN --security=insecure x", "RUN --security=insecure is not allowed: grant it with --allow security.insecure", 2},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.build(w.options(c.text))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T %v", err, err)
			}
			if c.want != "" && e.Error() != c.want || e.Line != c.line || e.Excerpt == "" {
				t.Errorf("line %d %q\nwant line %d %q", e.Line, e, c.line, c.want)
			}
			if keys, _ := w.snaps.Keys(); len(keys) != 0 {
				t.Errorf("active snapshots left: %v", keys)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(w.steps, "held")); err != nil {
		t.Error(err)
	}
	if ents, _ := os.ReadDir(filepath.Join(w.steps, "held")); len(ents) != 0 {
		t.Errorf("held: %v", ents)
	}
}
