//go:build buildx

package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// buildx is Docker's client with buildx as its plugin, and keg serve.
type buildx struct {
	t               *testing.T
	sock, root, run string
	config          string
}

func startBuildx(t *testing.T) *buildx {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: steps run in containers")
	}
	plugin := os.Getenv("KEG_TEST_BUILDX")
	b := &buildx{t: t, sock: startServe(t), config: t.TempDir()}
	b.run = filepath.Dir(b.sock)
	b.root = filepath.Join(filepath.Dir(b.run), "root")
	plugins := filepath.Join(b.config, "cli-plugins")
	if err := os.Mkdir(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(plugin, filepath.Join(plugins, "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *buildx) docker(args ...string) *exec.Cmd {
	cmd := exec.Command(dockerClients(b.t)[0].path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.config, "DOCKER_CONFIG=" + b.config, "DOCKER_HOST=unix://" + b.sock, "NO_COLOR=1"}
	return cmd
}

func (b *buildx) keg(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "keg"), append([]string{"--root", b.root, "--run-root", b.run}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.config, "DOCKER_CONFIG=" + b.config}
	return cmd
}

// must runs docker in a directory, with what it reads, and returns both streams.
func (b *buildx) must(t *testing.T, dir, stdin string, args ...string) string {
	t.Helper()
	out, code := b.try(dir, stdin, args...)
	if code != 0 {
		t.Fatalf("docker %q: %d\n%s", args, code, out)
	}
	return out
}

func (b *buildx) try(dir, stdin string, args ...string) (out string, code int) {
	cmd := b.docker(args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	text, _ := cmd.CombinedOutput()
	return string(text), cmd.ProcessState.ExitCode()
}

// TestBuildxBuild has buildx build through keg serve, and then keg build, which finds each step in the cache and makes the
// very same image, if the first had the same files and options.
func TestBuildxBuild(t *testing.T) {
	b := startBuildx(t)
	dir := t.TempDir()
	writeSessionFiles(t, dir)
	archive := packDir(t, dir)
	other := t.TempDir()
	agent, err := net.Listen("unix", filepath.Join(other, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	word := filepath.Join(other, "word")
	for name, text := range map[string]string{"word": "hidden", "n/ok": "named", "n/no": "ignored", "n/.dockerignore": "no\n"} {
		p := filepath.Join(other, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := exec.Command("sh", "-ec", `mkdir -p "$0/work/sub"; cd "$0/work"; git init -q -b main .; printf 'FROM scratch\nCOPY f /\n' >Dockerfile; cp Dockerfile sub; echo f >f; echo g >sub/f
		printf 'target "default" {\n tags = ["remote"]\n}\n' >docker-bake.hcl
		git add -A; git -c user.name=a -c user.email=a@b commit -qm x; git clone -q --bare . "$0/r.git"; cd "$0/r.git"; git update-server-info`, other).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/Dockerfile" {
			io.WriteString(w, "FROM scratch\nCOPY app /x\n")
			return
		}
		if strings.HasPrefix(r.URL.Path, "/r.git/") {
			http.FileServerFS(os.DirFS(other)).ServeHTTP(w, r)
			return
		}
		w.Write(archive)
	}))
	defer web.Close()
	stages := "FROM scratch AS one\nADD root.tar /\nRUN echo 1 > /1\nFROM scratch AS two\nADD root.tar /\nRUN echo 2 > /2\nFROM one\nCOPY --from=two /2 /\n"
	for _, c := range []struct {
		what  string
		job   buildJob
		words string // in what both write
	}{
		{"a tree", buildJob{flags: []string{"--build-arg", "WORD=spoken", "--label", "l=m"}}, ""},
		{"a stage", buildJob{flags: []string{"--target", "tools"}}, ""},
		{"without the cache of a stage", buildJob{flags: []string{"--target", "tools", "--pull"}}, ""},
		{"an ignore file of its own", buildJob{flags: []string{"-f", filepath.Join(dir, "Own")}}, ""},
		{"a Dockerfile on stdin", buildJob{flags: []string{"-f", "-"}, stdin: []byte("FROM scratch\nCOPY app /x\n")}, ""},
		{"stages at once", buildJob{flags: []string{"-f", "-"}, stdin: []byte(stages)}, ""},
		{"a Dockerfile without a context", buildJob{context: "-", stdin: []byte("FROM scratch\nLABEL a=b\nWORKDIR /w\n")}, ""},
		{"an archive on stdin", buildJob{context: "-", stdin: archive, flags: []string{"--target", "tools"}}, ""},
		{"an archive of a server", buildJob{context: web.URL + "/c.tar", flags: []string{"--target", "tools"}}, ""},
		{"a repository", buildJob{context: web.URL + "/r.git"}, ""},
		{"a part of it", buildJob{context: web.URL + "/r.git#main:sub"}, ""},
		{"in other words", buildJob{context: web.URL + "/r.git?branch=main&subdir=sub"}, ""},
		{"a secret", buildJob{flags: []string{"-f", filepath.Join(dir, "Secret"), "--secret", "id=s,src=" + word}}, ""},
		{"an agent", buildJob{flags: []string{"-f", filepath.Join(dir, "Agent"), "--ssh", "default=" + agent.Addr().String()}}, ""},
		{"a named directory", buildJob{flags: []string{"-f", "-", "--build-context", "n=" + filepath.Join(other, "n")}, stdin: []byte("FROM scratch\nCOPY --from=n . /\n")}, ""},
		{"a named image", buildJob{flags: []string{"-f", "-", "--build-context", "n=docker-image://keg/shell"}, stdin: []byte("FROM n\nCOPY app /x\n")}, ""},
		{"hosts and sizes", buildJob{flags: []string{"-f", "-", "--add-host", "h:1.2.3.4", "--shm-size", "5m", "--ulimit", "nofile=100:200", "--memory", "100m"},
			stdin: []byte("FROM scratch\nADD root.tar /\nRUN grep 1.2.3.4 /etc/hosts && grep 'open files *100 *200' /proc/self/limits > /l\n")}, ""},
		{"an annotation", buildJob{flags: []string{"-f", filepath.Join(dir, "Own"), "--annotation", "a=b", "--annotation", "manifest:c=d"}}, ""},
		{"a network of the host, allowed", buildJob{flags: []string{"-f", "-", "--allow", "network.host"},
			stdin: []byte("FROM scratch\nADD root.tar /\nRUN --network=host echo > /h\n")}, ""},
		{"and not", buildJob{flags: []string{"-f", "-"}, stdin: []byte("FROM scratch\nADD root.tar /\nRUN --network=host echo > /no\n")}, "network.host"},
		{"no secret", buildJob{flags: []string{"-f", filepath.Join(dir, "Secret"), "--no-cache"}}, "not found"},
		{"a command that fails", buildJob{flags: []string{"-f", filepath.Join(dir, "Failing")}}, "some words"},
		{"its code", buildJob{flags: []string{"-f", filepath.Join(dir, "Failing")}}, "exit code: 9"},
		{"its place", buildJob{flags: []string{"-f", filepath.Join(dir, "Failing")}}, ">>> RUN echo some words; exit 9"},
		{"a file that is not there", buildJob{flags: []string{"-f", filepath.Join(dir, "Wrong")}}, "not found"},
		{"an unknown stage", buildJob{flags: []string{"--target", "none"}}, "none"},
		{"a Dockerfile that is none", buildJob{flags: []string{"-f", "-"}, stdin: []byte("FORM scratch\n")}, "unknown instruction: FORM"},
		{"a warning", buildJob{flags: []string{"-f", "-"}, stdin: []byte("FROM scratch\nMAINTAINER me\n")}, "MaintainerDeprecated"},
	} {
		t.Run(c.what, func(t *testing.T) {
			j := c.job
			j.tag = "tagged"
			if j.context == "" {
				j.context = dir
			}
			build := func(cmd *exec.Cmd, iid string) *built {
				r, err := j.run(cmd, iid)
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(r.out, c.words) {
					t.Errorf("%q is not in:\n%s", c.words, r.out)
				}
				return r
			}
			iid := filepath.Join(t.TempDir(), "iid")
			got := build(b.docker(append([]string{"buildx"}, j.args(iid)...)...), iid)
			want := build(b.keg(j.args(iid)...), iid)
			if got.code != want.code || got.id != want.id || (want.code == 0) != (want.id != "") {
				t.Errorf("%d %s, keg build: %d %s\n%s\nkeg build: %s", got.code, got.id, want.code, want.id, got.out, want.out)
			}
			if want.code == 0 && strings.Contains(want.out, "RUN") && !strings.Contains(want.out, "CACHED") {
				t.Errorf("keg build ran the steps again:\n%s", want.out)
			}
		})
	}
	t.Run("docker build", func(t *testing.T) {
		out := b.must(t, dir, "", "build", "--progress", "plain", "-t", "plain", "--target", "tools", ".")
		for _, words := range []string{"[internal] load build definition from Dockerfile", "RUN echo \"none\" > /word", "naming to docker.io/library/plain:latest"} {
			if !strings.Contains(out, words) {
				t.Errorf("%q is not in:\n%s", words, out)
			}
		}
		id := strings.TrimSpace(b.must(t, dir, "", "build", "-q", "--target", "tools", "."))
		if got := strings.TrimSpace(b.must(t, dir, "", "image", "inspect", "-f", "{{.Id}}", "plain")); got != id || len(id) != len("sha256:")+64 {
			t.Errorf("%q, quiet %q", got, id)
		}
		if out := b.must(t, dir, "FROM scratch\nCOPY logs/keep.log app/link /\n", "build", "--progress", "plain", "-f", "-", "."); !strings.Contains(out, "receive build context") || strings.Contains(out, "MB") {
			t.Errorf("more came than is read:\n%s", out)
		}
		own := b.must(t, dir, "FROM scratch\nCOPY app /x\n", "build", "-q", "-f", "-", ".")
		if got := b.must(t, dir, "", "build", "-q", "-f", web.URL+"/Dockerfile", "."); got != own {
			t.Errorf("with the Dockerfile of a server %s, with the same %s", got, own)
		}
		if out := b.must(t, dir, "", "buildx", "bake", "--progress", "plain", web.URL+"/r.git"); !strings.Contains(out, "naming to docker.io/library/remote:latest") {
			t.Errorf("bake of a repository: %s", out)
		}
		if raw := b.must(t, dir, "", "buildx", "build", "--progress", "rawjson", "--target", "tools", "."); !strings.Contains(raw, `"vertexes":[{"digest":"sha256:`) {
			t.Errorf("%s", raw)
		}
	})
}

// TestBuildxOutputs: what a build gives goes to the client, as from keg build.
func TestBuildxOutputs(t *testing.T) {
	b := startBuildx(t)
	dir, out := t.TempDir(), t.TempDir()
	writeSessionFiles(t, dir)
	ours, theirs := filepath.Join(out, "ours"), filepath.Join(out, "theirs")
	for _, how := range []struct {
		what, output string
		flags        []string
	}{
		{"a tree", "type=local,dest=%s", nil},
		{"a tree of two platforms", "type=local,dest=%s", []string{"--platform", "linux/amd64,linux/arm64", "-f", "Own"}},
		{"a tar", "type=tar,dest=%s", nil},
		{"an OCI archive", "type=oci,dest=%s", nil},
		{"an OCI archive of two platforms", "type=oci,dest=%s", []string{"--platform", "linux/amd64,linux/arm64", "-f", "Own"}},
		{"an archive of Docker", "type=docker,name=box:1,dest=%s", nil},
		{"an archive with a provenance", "type=oci,dest=%s", []string{"-f", "Own", "--provenance=mode=max"}},
	} {
		t.Run(how.what, func(t *testing.T) {
			defer os.RemoveAll(ours)
			defer os.RemoveAll(theirs)
			args := append([]string{"build", "--progress", "plain", "--network", "none", "--output"}, fmt.Sprintf(how.output, ours))
			b.must(t, dir, "", slices.Concat([]string{"buildx"}, args, how.flags, []string{"."})...)
			if list := b.must(t, dir, "", "images", "-q"); list != "" {
				t.Errorf("it left an image here: %s", list)
			}
			args[len(args)-1] = fmt.Sprintf(how.output, theirs)
			cmd := b.keg(slices.Concat(args, how.flags, []string{"."})...)
			cmd.Dir = dir
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			for _, p := range []string{ours, theirs} {
				if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
					if text, err := exec.Command("sh", "-ec", `mkdir "$0.d"; tar -xf "$0" -C "$0.d"; rm "$0"; mv "$0.d" "$0"`, p).CombinedOutput(); err != nil {
						t.Fatalf("%v %s", err, text)
					}
				}
			}
			got, err := listTree(ours + "/")
			if err != nil {
				t.Fatal(err)
			}
			want, err := listTree(theirs + "/")
			if err != nil {
				t.Fatal(err)
			}
			delete(got, "/")
			delete(want, "/")
			if len(want) < 3 {
				t.Fatalf("%q", want)
			}
			if strings.Contains(how.what, "provenance") { // has times and a name of the build
				if len(got) != len(want) {
					t.Errorf("%q\nkeg build: %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
				}
				return
			}
			for _, at := range got.differ(want) {
				t.Errorf("%s: %s, keg build: %s", at, got[at], want[at])
			}
		})
	}
	t.Run("a layout, and a build that stands on it", func(t *testing.T) {
		layout := filepath.Join(out, "layout")
		b.must(t, dir, "", "buildx", "build", "-q", "--network", "none", "-t", "box:1", "--output", "type=oci,tar=false,dest="+layout, "--target", "tools", ".")
		text := b.must(t, dir, "FROM laid\nRUN cat /word\n", "buildx", "build", "--progress", "plain", "--network", "none", "--build-context", "laid=oci-layout://"+layout+":1", "-f", "-", ".")
		if !strings.Contains(text, " none\n") {
			t.Errorf("%s", text)
		}
	})
	t.Run("metadata", func(t *testing.T) {
		file, iid := filepath.Join(out, "md"), filepath.Join(out, "iid")
		b.must(t, dir, "", "buildx", "build", "--metadata-file", file, "--iidfile", iid, "-f", "Own", "-t", "box:2", "-t", "box:3", ".")
		var m map[string]any
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		id, err2 := os.ReadFile(iid)
		got := strings.TrimSpace(b.must(t, dir, "", "image", "inspect", "-f", "{{.Id}}", "box:2", "box:3"))
		if err != nil || err2 != nil || m["containerimage.digest"] != string(id) || m["image.name"] != "docker.io/library/box:2,docker.io/library/box:3" || got != string(id)+"\n"+string(id) {
			t.Errorf("%s %s %s", text, id, got)
		}
	})
	t.Run("caches", func(t *testing.T) {
		cache := filepath.Join(out, "cache")
		build := func(flags ...string) string {
			return b.must(t, dir, "", slices.Concat([]string{"buildx", "build", "--progress", "plain", "--network", "none", "--target", "tools"}, flags, []string{"."})...)
		}
		build("--cache-to", "type=local,mode=max,dest="+cache)
		b.must(t, dir, "", "buildx", "prune", "-af")
		b.must(t, dir, "", "image", "prune", "-af")
		if text := build("--output", "type=cacheonly", "--cache-from", "type=local,src="+cache); strings.Count(text, "importing layer") != 2 || strings.Contains(text, "contexts/") {
			t.Errorf("%s", text)
		}
		if text := build("--cache-from", "type=local,src="+filepath.Join(out, "none")); !strings.Contains(text, "exporting to image") {
			t.Errorf("without the cache: %s", text)
		}
	})
	t.Run("a registry", func(t *testing.T) {
		addr := accountRegistry(t)
		ref := addr + "/box:1"
		if text, code := b.try(dir, "", "buildx", "build", "--push", "-t", ref, "-f", "Own", "."); code == 0 || !strings.Contains(text, "401 Unauthorized") {
			t.Errorf("without an account: %d %s", code, text)
		}
		if out := b.must(t, dir, "word", "login", "-u", "me", "--password-stdin", addr); !strings.Contains(out, "Succeeded") {
			t.Fatal(out)
		}
		file := filepath.Join(out, "pushed")
		b.must(t, dir, "", "buildx", "build", "--push", "--metadata-file", file, "-t", ref, "--cache-to", "type=registry,ref="+addr+"/cache", "-f", "Own", ".")
		text, err := os.ReadFile(file)
		digest := strings.TrimSpace(b.must(t, dir, "", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", ref))
		if err != nil || !strings.Contains(string(text), `"containerimage.digest": "`+digest+`"`) {
			t.Errorf("%v %s; the registry has %s", err, text, digest)
		}
		b.must(t, dir, "", "rmi", "-f", ref)
		b.must(t, dir, "", "buildx", "prune", "-af")
		if said := b.must(t, dir, "", "buildx", "build", "--progress", "plain", "--cache-from", "type=registry,ref="+addr+"/cache", "-f", "Own", "."); !strings.Contains(said, "importing layer") {
			t.Errorf("from the cache: %s", said)
		}
		if said := b.must(t, dir, "FROM "+ref+"\nLABEL a=b\n", "buildx", "build", "--progress", "plain", "--pull", "-f", "-", "."); !strings.Contains(said, "exporting to image") {
			t.Errorf("from the base: %s", said)
		}
	})
}

// TestBuildxBake: targets that stand on one another and share a context, variables, a Dockerfile in the file.
func TestBuildxBake(t *testing.T) {
	b := startBuildx(t)
	dir := t.TempDir()
	writeSessionFiles(t, dir)
	bake := `
variable "WORD" { default = "unset" }
group "default" { targets = ["app", "tools"] }
target "base" {
  dockerfile-inline = "FROM scratch\nADD root.tar /\nRUN echo based > /based\nENV B=1\n"
}
target "tools" {
  target = "tools"
  args = { WORD = WORD }
  tags = ["tools"]
}
target "app" {
  contexts = { base = "target:base", n = "app" }
  dockerfile-inline = "FROM base\nCOPY --from=base /based /copied\nCOPY --from=n main /\nCOPY app/main /own\nRUN cat /copied && test $B = 1\n"
  tags = ["app"]
}
target "failing" {
  contexts = { base = "target:fails" }
  dockerfile-inline = "FROM base\n"
}
target "fails" { dockerfile = "Failing" }
`
	if err := os.WriteFile(filepath.Join(dir, "docker-bake.hcl"), []byte(bake), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := b.docker("buildx", "bake", "--progress", "plain")
	cmd.Env, cmd.Dir = append(cmd.Env, "WORD=varied"), dir
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, words := range []string{"RUN echo based", " based\n", "naming to docker.io/library/app:latest", "naming to docker.io/library/tools:latest"} {
		steps := map[string]bool{} // a step that was interrupted by another is named again
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, words) {
				steps[strings.Fields(line)[0]] = true
			}
		}
		if len(steps) != 1 {
			t.Errorf("%q is in the steps %q:\n%s", words, slices.Sorted(maps.Keys(steps)), text)
		}
	}
	if got := b.must(t, dir, "", "run", "--rm", "--network", "none", "app", "sh", "-c", "cat /copied /own /main"); got != "based\nprogramprogram" {
		t.Errorf("%q", got)
	}
	if got := b.must(t, dir, "", "image", "inspect", "-f", "{{.Config.Labels}}", "tools"); !strings.Contains(got, "word:varied") {
		t.Errorf("%q", got)
	}
	if list := strings.Fields(b.must(t, dir, "", "images", "-q")); len(list) != 2 {
		t.Errorf("images %q", list)
	}
	if out, code := b.try(dir, "", "buildx", "bake", "--progress", "plain", "failing"); code != 1 || !strings.Contains(out, "exit code: 9") {
		t.Errorf("%d %s", code, out)
	}
}

// TestBuildxQuestions: what is asked about Dockerfiles and the builder, without building.
func TestBuildxQuestions(t *testing.T) {
	b := startBuildx(t)
	dir := t.TempDir()
	writeSessionFiles(t, dir)
	for _, c := range []struct {
		what, dockerfile string
		args             []string
		code             int
		words            string
	}{
		{"a check that finds something", "FROM scratch\nMAINTAINER me\n", []string{"build", "--check", "-f", "-", "."}, 1, "WARNING: MaintainerDeprecated - https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/"},
		{"with the place", "FROM scratch\nMAINTAINER me\n", []string{"build", "--check", "-f", "-", "."}, 1, "   2 | >>> MAINTAINER me"},
		{"a check that finds nothing", "FROM scratch\nCOPY app /\n", []string{"build", "--check", "-f", "-", "."}, 0, "no warnings found"},
		{"a check as JSON", "FROM scratch\nMAINTAINER me\n", []string{"build", "--call", "check,format=json", "-f", "-", "."}, 1, `"ruleName": "MaintainerDeprecated"`},
		{"an outline", "# BASE is below\nARG BASE=scratch\nFROM ${BASE}\n# WORD is said\nARG WORD=w\nRUN --mount=type=secret,id=s,required --mount=type=ssh echo\n", []string{"build", "--call", "outline", "-f", "-", "."}, 0, "WORD        w         is said"},
		{"its secrets", "FROM scratch\nRUN --mount=type=secret,id=s,required echo\n", []string{"build", "--call", "outline", "-f", "-", "."}, 0, "s"},
		{"targets", "# one is first\nFROM scratch AS one\nFROM one\n", []string{"build", "--call", "targets", "-f", "-", "."}, 0, "one       is first"},
		{"requests", "FROM scratch\n", []string{"build", "--call", "subrequests.describe", "-f", "-", "."}, 0, "targets"},
		{"an unknown request", "FROM scratch\n", []string{"build", "--call", "nothing", "-f", "-", "."}, 1, "nothing"},
		{"an SBOM", "FROM scratch\n", []string{"build", "--sbom", "true", "-f", "-", "."}, 1, "keg has no SBOM generator"},
		{"a foreign frontend", "FROM scratch\n", []string{"build", "--build-arg", "BUILDKIT_SYNTAX=mine/own:1", "-f", "-", "."}, 1, "mine/own:1"},
		{"Docker's frontend", "# syntax=docker/dockerfile:1\nFROM scratch\nLABEL a=b\n", []string{"build", "--build-arg", "BUILDKIT_SYNTAX=docker/dockerfile:1", "-f", "-", "."}, 0, "exporting to image"},
		{"the history", "", []string{"history", "ls"}, 0, "Completed"},
		{"a build of it", "", []string{"history", "inspect"}, 0, "Build Steps:"},
		{"what it wrote", "", []string{"history", "logs"}, 0, "exporting to image"},
		{"forgetting all", "", []string{"history", "rm", "--all"}, 0, ""},
		{"which is empty", "", []string{"history", "logs"}, 1, "no records found"},
		{"the builder", "", []string{"inspect", "default"}, 0, "Driver:        docker"},
		{"builders", "", []string{"ls"}, 0, "running"},
		{"the build cache", "", []string{"du"}, 0, "Total:"},
		{"some of it", "", []string{"du", "--filter", "type=source.local"}, 0, ""},
		{"pruning", "", []string{"prune", "-f", "--filter", "until=24h"}, 0, "Total:"},
		{"pruning all", "", []string{"prune", "-af"}, 0, "Total:"},
		{"a wrong filter", "", []string{"du", "--filter", "wrong=1"}, 1, "invalid filter 'wrong'"},
	} {
		t.Run(c.what, func(t *testing.T) {
			out, code := b.try(dir, c.dockerfile, append([]string{"buildx"}, c.args...)...)
			if code != c.code || !strings.Contains(out, c.words) {
				t.Errorf("%d, not %d, with %q in\n%s", code, c.code, c.words, out)
			}
		})
	}
}

// TestBuildxPolicy: buildx's policy is asked about each source, and what it denies is not built.
func TestBuildxPolicy(t *testing.T) {
	b := startBuildx(t)
	for _, c := range []struct {
		what, dockerfile, allow string
		code                    int
		words                   string
	}{
		{"all that is read is allowed", "FROM keg/shell\nCOPY Dockerfile /\n", `input.image.fullRepo == "docker.io/keg/shell"`, 0, "source docker-image://docker.io/keg/shell:latest (linux/amd64): ALLOW"},
		{"another image", "FROM keg/shell\n", `input.image.fullRepo == "docker.io/keg/web"`, 1, `source "docker-image://docker.io/keg/shell:latest" not allowed by policy: action DENY`},
		{"the image of a copy", "FROM scratch\nCOPY --from=keg/shell /bin /\n", `input.image.fullRepo == "docker.io/keg/web"`, 1, "not allowed by policy"},
		{"an address", "FROM scratch\nADD http://127.0.0.1:1/x /\n", `input.image`, 1, `source "http://127.0.0.1:1/x" not allowed by policy`},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			policy := "package docker\ndefault allow := false\nallow if input.local\nallow if { " + c.allow + " }\ndecision := {\"allow\": allow}\n"
			for name, text := range map[string]string{"Dockerfile": c.dockerfile, "Dockerfile.rego": policy} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if out, code := b.try(dir, "", "buildx", "build", "--progress", "plain", "."); code != c.code || !strings.Contains(out, c.words) {
				t.Errorf("%d, not %d, with %q in\n%s", code, c.code, c.words, out)
			}
		})
	}
}

// TestBuildxCancel: a build that its user interrupts ends, and nothing of it is left.
func TestBuildxCancel(t *testing.T) {
	b := startBuildx(t)
	dir := t.TempDir()
	writeSessionFiles(t, dir)
	for _, sig := range []os.Signal{os.Interrupt, os.Kill} {
		cmd := b.docker("buildx", "build", "--progress", "plain", "--network", "none", "-f", "Slow", ".")
		cmd.Dir = dir
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = w, w
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		stop := time.AfterFunc(30*time.Second, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		var out bytes.Buffer
		for p := make([]byte, 4096); !strings.Contains(out.String(), " begun"); {
			n, err := r.Read(p)
			out.Write(p[:n])
			if err != nil {
				t.Fatalf("it does not begin: %s", out.String())
			}
		}
		syscall.Kill(-cmd.Process.Pid, sig.(syscall.Signal))
		r.Close()
		cmd.Wait()
		stop.Stop()
		if cmd.ProcessState.ExitCode() == 0 {
			t.Errorf("%v: all is well", sig)
		}
		contexts := filepath.Join(b.root, "contexts")
		for end := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if left, _ := os.ReadDir(contexts); len(left) == 0 {
				break
			} else if time.Now().After(end) {
				t.Fatalf("%v: the build goes on: %v", sig, left)
			}
		}
	}
}
