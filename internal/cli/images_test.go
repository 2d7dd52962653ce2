package cli

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dimage "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	"keg/internal/dockerfile"
	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestPull(t *testing.T) {
	f := &fake{pullEvents: []engine.PullEvent{{ID: "latest", Status: "Pulling from library/nginx"}, {Status: "Digest: " + someDigest}}}
	keg(t, f, "pull", "nginx").want(t, 0, "Using default tag: latest\nlatest: Pulling from library/nginx\nDigest: "+someDigest+"\ndocker.io/library/nginx:latest\n", "")
	keg(t, f, "pull", "-q", "nginx:1").want(t, 0, "docker.io/library/nginx:1\n", "")
	keg(t, f, "pull", "-q", "localhost:5000/x@"+someDigest).want(t, 0, "localhost:5000/x@"+someDigest+"\n", "")
	if keg(t, f, "pull", "-q", "--platform", "linux/arm64", "nginx"); f.pull.Platform == nil || f.pull.Platform.Architecture != "arm64" {
		t.Errorf("platform %v", f.pull.Platform)
	}
	if kegWith(t, f, "", map[string]string{"DOCKER_DEFAULT_PLATFORM": "linux/386"}, "pull", "-q", "nginx"); f.pull.Platform.Architecture != "386" {
		t.Errorf("DOCKER_DEFAULT_PLATFORM: %v", f.pull.Platform)
	}
	if r := keg(t, f, "pull", "UPPER"); r.code != 1 || !strings.Contains(r.err, "must be lowercase") || strings.Contains(r.err, "daemon") {
		t.Errorf("%+v", r)
	}
	f = &fake{err: fault.Errorf(fault.Denied, "pull access denied for x, repository does not exist or may require 'docker login'")}
	keg(t, f, "pull", "-q", "x").want(t, 1, "", "Error response from daemon: pull access denied for x, repository does not exist or may require 'docker login'\n")
}

func TestPush(t *testing.T) {
	f := &fake{pushed: image.Descriptor{Digest: someDigest, Size: 528}, pullEvents: []engine.PullEvent{
		{ID: "aaaaaaaaaaaa", Status: "Preparing"}, {ID: "aaaaaaaaaaaa", Status: "Pushing", Current: 5, Total: 9}, {ID: "aaaaaaaaaaaa", Status: "Pushed", Current: 9, Total: 9},
	}}
	keg(t, f, "push", "localhost:5000/x:1").want(t, 0, "The push refers to repository [localhost:5000/x]\naaaaaaaaaaaa: Preparing\naaaaaaaaaaaa: Pushed\n1: digest: "+someDigest+" size: 528\n", "")
	keg(t, f, "push", "-q", "x").want(t, 0, "docker.io/library/x:latest\n", "")
	f.images = []dimage.Summary{{RepoTags: []string{"x:1", "x:2", "y:1"}}}
	keg(t, f, "push", "-q", "-a", "x").want(t, 0, "docker.io/library/x:1\ndocker.io/library/x:2\n", "")
	keg(t, f, "push", "-a", "x:1").want(t, 1, "", "tag can't be used with --all-tags/-a\n")
	keg(t, f, "push", "-a", "z").want(t, 1, "", "Error response from daemon: An image does not exist locally with the tag: z\n")
}

func TestTagAndRmi(t *testing.T) {
	f := &fake{deleted: []dimage.DeleteResponse{{Untagged: "x:1"}, {Deleted: someDigest}}, errFor: map[string]error{"nope": fault.NotFoundf("No such image: nope"), "used": fault.Conflictf("conflict: unable to remove")}}
	keg(t, f, "tag", "x", "y:1").want(t, 0, "", "")
	if f.calls[0] != "tag x y:1" {
		t.Errorf("calls %q", f.calls)
	}
	keg(t, f, "rmi", "x:1").want(t, 0, "Untagged: x:1\nDeleted: "+someDigest+"\n", "")
	f.deleted = nil
	keg(t, f, "image", "rm", "nope", "used").want(t, 1, "", "Error response from daemon: No such image: nope\nError response from daemon: conflict: unable to remove\n")
	keg(t, f, "rmi", "-f", "nope").want(t, 0, "", "Error response from daemon: No such image: nope\n")
	keg(t, f, "rmi", "-f", "nope", "used").want(t, 1, "", "Error response from daemon: No such image: nope\nError response from daemon: conflict: unable to remove\n")
}

func TestImagesPassesOptionsAndHints(t *testing.T) {
	f := &fake{}
	keg(t, f, "images", "-a", "-f", "dangling=true", "-f", "label=x", "-f", "label=y", "kv-*").want(t, 0, "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n", "")
	if o := f.imageList; !o.All || o.Ref != "kv-*" || strings.Join(o.Filter["label"], ",") != "x,y" || o.Filter["dangling"][0] != "true" {
		t.Errorf("options %+v", o)
	}
	keg(t, f, "images", "ls").want(t, 0, "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n", "No images found matching \"ls\": did you mean \"keg image ls\"?\n")
	keg(t, f, "images", "-f", "x").want(t, 125, "", "invalid argument \"x\" for \"-f, --filter\" flag: bad format of filter (expected name=value)\n\nUsage:  keg images [OPTIONS] [REPOSITORY[:TAG]]\n\nRun 'keg images --help' for more information\n")
}

func buildEvents(now time.Time) []builder.Event {
	s, e := now.Add(-3*time.Second), now.Add(-500*time.Millisecond)
	return []builder.Event{
		{Vertex: 1, Name: "[internal] load build definition from Dockerfile", Started: &s}, {Vertex: 1, Status: "transferring dockerfile: 31B done"}, {Vertex: 1, Finished: &e},
		{Vertex: 2, Name: "[1/2] FROM base", Started: &s}, {Vertex: 3, Name: "[2/2] RUN make\x1b[31m", Started: &s, Reason: "COPY of a.c differs"},
		{Vertex: 2, Cached: true, Finished: &e},
		{Vertex: 3, Log: []byte("one\ntw")}, {Vertex: 3, Log: []byte("o\nthree")}, {Vertex: 3, Finished: &e},
	}
}

func TestBuild(t *testing.T) {
	dir := t.TempDir()
	iid := filepath.Join(dir, "iid")
	f := &fake{built: &builder.Result{ConfigID: someDigest, Warnings: []string{"FromAsCasing"}}, events: buildEvents(fixedNow)}
	r := kegWith(t, f, "", map[string]string{"TOKEN": "t"}, "build", "--explain", "--progress", "plain", "-t", "kv-web:1.0", "-t", "x", "--build-arg", "A=1", "--build-arg", "TOKEN", "--label", "l=v",
		"--target", "dev", "--no-cache", "--pull", "--platform", "linux/arm64", "--network", "host", "--add-host", "a:1.2.3.4", "--shm-size", "1m", "-f", "Other", "--iidfile", iid, "--load", dir)
	r.want(t, 0, "", `#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 31B done
#1 DONE 2.5s

#2 [1/2] FROM base
#2 CACHED

#3 [2/2] RUN make
#3 not cached: COPY of a.c differs
#3 3.000 one
#3 3.000 two
#3 3.000 three
#3 DONE 2.5s
WARNING: FromAsCasing
`)
	o := f.build
	if o.Context != dir || o.Dockerfile != "Other" || o.Target != "dev" || !o.NoCache || !o.Pull || o.Network != "host" || o.ShmSize != 1<<20 ||
		o.Platform.Architecture != "arm64" || *o.Args["A"] != "1" || o.Args["TOKEN"] != nil || o.Env["TOKEN"] != "t" || o.Labels["l"] != "v" || o.ExtraHosts[0] != "a:1.2.3.4" || len(o.Tags) != 2 {
		t.Errorf("options %+v", o)
	}
	if _, ok := o.Args["TOKEN"]; !ok {
		t.Error("--build-arg NAME is lost")
	}
	if b, _ := os.ReadFile(iid); string(b) != someDigest {
		t.Errorf("iidfile holds %q", b)
	}
	f.built.Warnings = nil
	keg(t, f, "build", "-q", dir).want(t, 0, someDigest+"\n", "")
	keg(t, f, "builder", "build", "--progress", "x", dir).want(t, 1, "", "invalid progress type \"x\": must be one of \"auto\", \"plain\", \"tty\" or \"quiet\"\n")
}

func TestBuildRequest(t *testing.T) {
	f := &fake{built: &builder.Result{ConfigID: digest.Digest(someDigest)}}
	dir := t.TempDir()
	keg(t, f, "build", "-q", "--platform", "linux/amd64,linux/arm64", "--platform", "linux/riscv64", "-o", "type=oci,dest="+dir+"/x.tar,name=a:1",
		"-o", dir+"/tree", "-o", `type=image,"name=b:1,c:1",compression=zstd`, "--push", "--provenance=mode=max", dir).want(t, 0, someDigest+"\n", "")
	q := f.request
	if len(q.Platforms) != 3 || q.Platforms[1].Architecture != "arm64" || q.Provenance != "max" {
		t.Errorf("%+v", q)
	}
	if o := q.Outputs; len(o) != 3 || o[0].Type != "oci" || o[0].Open == nil || o[0].Names[0].Tag != "1" || o[1].Type != "local" || o[1].Dir != dir+"/tree" ||
		len(o[2].Names) != 2 || !o[2].Push || o[2].Compression != "zstd" {
		t.Errorf("%+v", o)
	}
	keg(t, f, "build", "-q", "--push", "-t", "x", dir).want(t, 0, someDigest+"\n", "")
	if o := f.request.Outputs; len(o) != 1 || o[0].Type != "registry" {
		t.Errorf("%+v", o)
	}
}

func TestBuildContexts(t *testing.T) {
	f := &fake{built: &builder.Result{ConfigID: digest.Digest(someDigest)}}
	dir := t.TempDir()
	kegWith(t, f, "FROM scratch\n", nil, "build", "-q", "-f", "-", dir).want(t, 0, someDigest+"\n", "")
	if f.build.Dockerfile != "-" || string(f.build.Text) != "FROM scratch\n" || f.build.Context != dir {
		t.Errorf("options %+v", f.build)
	}
	kegWith(t, f, "FROM scratch\n", nil, "build", "-q", "-").want(t, 0, someDigest+"\n", "")
	if _, err := os.Stat(f.build.Context); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the empty context %q is left behind: %v", f.build.Context, err)
	}
	file := filepath.Join(dir, "f")
	os.WriteFile(file, nil, 0o600)
	for args, want := range map[string]string{
		"-f - -":                    "ERROR: invalid argument: can't use stdin for both build context and dockerfile\n",
		"/nope":                     "ERROR: unable to prepare context: path \"/nope\" not found\n",
		file:                        "ERROR: unable to prepare context: \"" + file + "\" is not a directory\n",
		"ssh://example.com/x.git":   "ERROR: git address \"ssh://example.com/x.git\": only https, http and file are supported; use https\n",
		"https://h/x.git#a:../../b": "ERROR: git address \"https://h/x.git#a:../../b\": the directory \"../../b\" leads out of the repository\n",
		"--allow all " + dir:        "ERROR: invalid --allow \"all\": want security.insecure or network.host\n",
		"-t UPPER " + dir:           "ERROR: invalid tag \"UPPER\": invalid reference format: repository name (library/UPPER) must be lowercase\n",
		"-o type=x " + dir:          "ERROR: invalid --output \"type=x\": unknown type \"x\": want image, registry, local, tar, oci or docker\n",
		"-o type=local " + dir:      "ERROR: invalid --output \"type=local\": type=local needs dest=DIRECTORY\n",
		"-o type=tar,a=b " + dir:    "ERROR: invalid --output \"type=tar,a=b\": unknown key \"a\": want type, dest, name, push, tar, compression or platform-split\n",
		"--platform x/y/z/w " + dir: "ERROR: invalid platform \"x/y/z/w\": want os/arch[/variant], such as linux/amd64\n",
		"-":                         "ERROR: the Dockerfile on stdin is empty\n",
		"--sbom=true " + dir:        "ERROR: keg has no SBOM generator: leave --sbom out, and scan the image with a tool of your choice\n",
	} {
		keg(t, f, append([]string{"build"}, strings.Fields(args)...)...).want(t, 1, "", want)
	}
	kegWith(t, f, "\x1f\x8b\x08", nil, "build", "-f", "-", dir).want(t, 1, "", "ERROR: stdin holds an archive: name it as the context (-), not as the Dockerfile\n")
	meta := filepath.Join(dir, "meta.json")
	kegWith(t, f, "FROM scratch\n", nil, "build", "-q", "--metadata-file", meta, "--allow", "security.insecure,network.host", "--ulimit", "nofile=10:20", "--annotation", "a=b", "-t", "x", "-").want(t, 0, someDigest+"\n", "")
	if b, _ := os.ReadFile(meta); !strings.Contains(string(b), `"containerimage.config.digest": "`+someDigest) || !strings.Contains(string(b), `"image.name": "docker.io/library/x:latest"`) {
		t.Errorf("metadata %s", b)
	}
	if o := f.build; !o.Insecure || !o.HostNetwork || len(o.Ulimits) != 1 || o.Ulimits[0].Hard != 20 || o.Annotations["a"] != "b" {
		t.Errorf("options %+v", o)
	}
	now := fixedNow
	failed := &fake{err: errors.New("exit code: 1"), events: append(buildEvents(now)[:7], builder.Event{Vertex: 3, Err: errors.New("exit code: 1"), Finished: &now})}
	if r := keg(t, failed, "build", dir); r.code != 1 || !strings.HasSuffix(r.err, "#3 3.000 tw\n#3 ERROR: exit code: 1\n------\n > [2/2] RUN make:\n3.000 one\n3.000 tw\n------\nERROR: failed to build: failed to solve: exit code: 1\n") {
		t.Errorf("%+v", r)
	}
	at := &builder.Error{File: "Dockerfile", Line: 2, Excerpt: "Dockerfile:2\n--------------------\n   2 | >>> RUN false\n--------------------\n", Err: errors.New("exit code: 1")}
	keg(t, &fake{err: at}, "build", "-q", dir).want(t, 1, "", at.Excerpt+"ERROR: failed to build: failed to solve: exit code: 1\n")
	kegWith(t, f, "", map[string]string{"TOKEN": "t0p"}, "build", "-q", "--secret", "id=TOKEN", "--secret", "id=a,src="+filepath.Join(dir, "f"), "--secret", "id=b,env=TOKEN", dir).want(t, 0, someDigest+"\n", "")
	if s := f.build.Secrets; string(s["TOKEN"]) != "t0p" || s["a"] == nil || string(s["b"]) != "t0p" {
		t.Errorf("secrets %q", s)
	}
	keg(t, f, "build", "-q", "--secret", "id=x,env=NOPE", dir).want(t, 1, "", "ERROR: --secret \"id=x,env=NOPE\": the variable NOPE is not set\n")
	keg(t, &fake{err: errors.New("process failed")}, "build", "-q", dir).want(t, 1, "", "ERROR: failed to build: failed to solve: process failed\n")
}

// A line of progress on a terminal is redrawn in place and never wraps.
func TestPullProgressOnATerminal(t *testing.T) {
	var out strings.Builder
	p := &progress{w: &out, tty: true, width: 60, now: func() time.Time { return fixedNow }, lines: map[string]int{}, last: map[string]drawn{}}
	p.event(engine.PullEvent{ID: "a", Status: "Pulling fs layer"})
	p.event(engine.PullEvent{ID: "b\x1b[2J", Status: "Pulling fs layer"})
	p.event(engine.PullEvent{ID: "a", Status: "Downloading", Current: 50, Total: 100})
	p.event(engine.PullEvent{ID: "a", Status: "Downloading", Current: 60, Total: 100}) // too soon
	p.event(engine.PullEvent{ID: "a", Status: "Pull complete"})
	want := "a: Pulling fs layer\nb\\x1b[2J: Pulling fs layer\n" +
		"\x1b[2A\x1b[2K\ra: Downloading [===========>          ]  50B/100B\x1b[2B\r" +
		"\x1b[2A\x1b[2K\ra: Pull complete\x1b[2B\r"
	if out.String() != want {
		t.Errorf("%q\nwant\n%q", out.String(), want)
	}
}

// Bytes, rate and the time that is left; what an earlier download left does not count as fast.
func TestPullProgressTellsRateAndTime(t *testing.T) {
	var out strings.Builder
	now := fixedNow
	p := &progress{w: &out, tty: true, width: 100, now: func() time.Time { return now }, lines: map[string]int{}, last: map[string]drawn{}}
	step := func(status string, after time.Duration, at int64) string {
		now = now.Add(after)
		out.Reset()
		p.event(engine.PullEvent{ID: "a", Status: status, Current: at, Total: 100e6})
		_, text, _ := strings.Cut(out.String(), "]")
		return strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\x1b[1B\r")
	}
	for _, s := range []struct {
		after time.Duration
		at    int64
		want  string
	}{
		{0, 20e6, "  20MB/100MB"},
		{time.Second, 30e6, "  30MB/100MB  10MB/s  7s left"},
		{time.Second, 60e6, "  60MB/100MB  20MB/s  2s left"},
		{2 * time.Second, 100e6, "  100MB/100MB  20MB/s"},
	} {
		if got := step("Downloading", s.after, s.at); got != s.want {
			t.Errorf("%q, not %q", got, s.want)
		}
	}
	if got := step("Pushing", time.Second, 50e6); got != "  50MB/100MB" {
		t.Errorf("another act begins anew: %q", got)
	}
}

func TestLogin(t *testing.T) {
	f := &fake{}
	kegWith(t, f, "s3cret\n", nil, "login", "-u", "me", "--password-stdin", "localhost:5000").want(t, 0, "Login Succeeded\n", "")
	if f.login != (registry.Credentials{Username: "me", Password: "s3cret"}) || f.calls[0] != "login localhost:5000" {
		t.Errorf("%+v %q", f.login, f.calls)
	}
	keg(t, f, "login", "-u", "me", "-p", "x", "https://index.docker.io/v1/").want(t, 0, "Login Succeeded\n", "WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n")
	if f.calls[1] != "login docker.io" {
		t.Errorf("calls %q", f.calls)
	}
	f.stored = registry.Credentials{Username: "old", Password: "y"}
	keg(t, f, "login").want(t, 0, "Login Succeeded\n", "Authenticating with existing credentials... [Username: old]\n")
	for args, want := range map[string]string{
		"--password-stdin":           "the --password-stdin option requires --username to be set\n",
		"-u x -p y --password-stdin": "conflicting options: cannot specify both --password and --password-stdin\n",
		"-u x --password-stdin":      "password is empty\n",
		"-u x":                       "Error: Cannot perform an interactive login from a non TTY device\n",
	} {
		keg(t, f, append([]string{"login"}, strings.Fields(args)...)...).want(t, 1, "", want)
	}
	keg(t, f, "logout", "localhost:5000").want(t, 0, "Removing login credentials for localhost:5000\n", "")
	keg(t, &fake{err: fault.Errorf(fault.NotModified, "Not logged in to x")}, "logout", "x").want(t, 0, "Removing login credentials for x\n", "")
	keg(t, f, "logout").want(t, 0, "Removing login credentials for https://index.docker.io/v1/\n", "")
}

func TestImageInspectRemote(t *testing.T) {
	f := &fake{}
	keg(t, f, "image", "inspect", "--remote", "-f", "{{.Id}} {{.Os}}", "nginx:1").want(t, 0, "remote any\n", "")
	keg(t, f, "image", "inspect", "--remote", "--platform", "linux/arm64", "-f", "{{.Os}}", "localhost:5000/x").want(t, 0, "linux/arm64\n", "")
	if want := []string{"inspect remote docker.io/library/nginx:1", "inspect remote localhost:5000/x:latest"}; !slices.Equal(f.calls, want) {
		t.Errorf("%q", f.calls)
	}
	keg(t, f, "image", "inspect", "nginx:1").want(t, 1, "[]\n", "Error response from daemon: No such image: nginx:1\n")
}

func TestRegistryServe(t *testing.T) {
	f := &fake{}
	t.Chdir(t.TempDir())
	os.WriteFile("users", nil, 0o600)
	keg(t, f, "registry", "serve", "--addr", ":0", "--dir", "reg", "--htpasswd", "users", "--read-only", "--delete").want(t, 0, "registry is listening on 127.0.0.1:5000\n", "")
	wd, _ := os.Getwd()
	if f.serveAddr != ":0" || f.serveDir != filepath.Join(wd, "reg") || f.serve.Htpasswd != "users" || !f.serve.ReadOnly || !f.serve.Delete || f.serve.Log == nil {
		t.Errorf("%q %q %+v", f.serveAddr, f.serveDir, f.serve)
	}
	if keg(t, f, "registry", "serve", "-q"); f.serveAddr != ":5000" || f.serveDir != "" || f.serve.Log != nil {
		t.Errorf("defaults %q %q %+v", f.serveAddr, f.serveDir, f.serve)
	}
	keg(t, f, "registry", "serve", "--htpasswd", "none").want(t, 1, "", "--htpasswd: stat none: no such file or directory\n")
}

func TestBuildCheck(t *testing.T) {
	dir := t.TempDir()
	f := &fake{checked: &builder.Checked{Name: "Dockerfile"}}
	keg(t, f, "build", "--check", dir).want(t, 0, "Check complete, no warnings found.\n", "")
	f.checked.Warnings = []dockerfile.Warning{{Rule: "JSONArgsRecommended", URL: "https://x", Message: "JSON", Line: 2, LastLine: 3, Excerpt: "Dockerfile:2\n-----\n"}}
	text := "Check complete, 1 warning has been found!\n\nWARNING: JSONArgsRecommended - https://x\nJSON\nDockerfile:2\n-----\n"
	failed := "ERROR: lint violation found for rules: JSONArgsRecommended (Dockerfile:2)\n"
	keg(t, f, "build", "--call", "check", dir).want(t, 0, text, "")
	keg(t, f, "build", "--check=error", dir).want(t, 1, text, failed)
	if r := keg(t, f, "build", "--check=json,error", dir); r.code != 1 || !strings.Contains(r.out, `"ruleName": "JSONArgsRecommended"`) || r.err != failed {
		t.Errorf("%+v", r)
	}
	keg(t, f, "build", "--check=loud", dir).want(t, 1, "", "invalid --check \"loud\": want error, json, or both with a comma\n")
	f.checked.Strict = true
	keg(t, f, "build", "--check", dir).want(t, 1, text, failed)
}

// Advice is given when it was asked for, or when it is worth some seconds.
func TestBuildAdvises(t *testing.T) {
	dir := t.TempDir()
	const text = "\nADVICE: these two lines swapped would have saved 2 s: a changed\n   1 | COPY . .\n"
	advice := builder.Advice{Saved: 2 * time.Second, Text: "these two lines swapped would have saved 2 s: a changed", Excerpt: "   1 | COPY . .\n"}
	f := &fake{built: &builder.Result{ConfigID: digest.Digest(someDigest), Advice: []builder.Advice{advice}}}
	keg(t, f, "build", dir).want(t, 0, "", "")
	keg(t, f, "build", "--explain", dir).want(t, 0, "", text)
	f.built.Advice = append(f.built.Advice, advice)
	keg(t, f, "build", dir).want(t, 0, "", text+text)
	keg(t, f, "build", "-q", dir).want(t, 0, someDigest+"\n", "")
	keg(t, f, "build", "-q", "--explain", dir).want(t, 0, someDigest+"\n", text+text)
}
