package cli

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/moby/moby/api/types/container"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"keg/internal/engine"
	"keg/internal/event"
	"keg/internal/rootless"
)

func TestUnknownWords(t *testing.T) {
	keg(t, nil, "foo").want(t, 1, "", "keg: unknown command: keg foo\n\nRun 'keg --help' for more information\n")
	keg(t, nil, "container", "foo").want(t, 1, "", "keg: unknown command: keg container foo\n\nUsage:  keg container\n\nRun 'keg container --help' for more information\n")
	keg(t, nil, "ps", "--foo").want(t, 125, "", "unknown flag: --foo\n\nUsage:  keg ps [OPTIONS]\n\nRun 'keg ps --help' for more information\n")
	keg(t, nil, "--foo").want(t, 125, "", "unknown flag: --foo\n\nUsage:  keg [OPTIONS] COMMAND [ARG...]\n\nRun 'keg --help' for more information\n")
	keg(t, nil, "help", "foo").want(t, 1, "", "unknown help topic: foo\n")
	keg(t, nil, "ps", "x").want(t, 1, "", "keg: 'keg ps' accepts no arguments\n\nUsage:  keg ps [OPTIONS]\n\nRun 'keg ps --help' for more information\n")
	keg(t, nil, "images", "x", "y").want(t, 1, "", "keg: 'keg images' requires at most 1 argument\n\nUsage:  keg images [OPTIONS] [REPOSITORY[:TAG]]\n\nRun 'keg images --help' for more information\n")
	keg(t, nil, "tag", "x").want(t, 1, "", "keg: 'keg tag' requires 2 arguments\n\nUsage:  keg tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]\n\nRun 'keg tag --help' for more information\n")
}

func TestNamesFollowTheProgram(t *testing.T) {
	var out, errs bytes.Buffer
	a := &app{name: "docker", now: time.Now, out: &out, err: &errs, in: strings.NewReader(""), env: map[string]string{}}
	if code := a.main(t.Context(), []string{"--version"}); code != 0 || out.String() != "Docker version "+version+", build "+commit+"\n" {
		t.Errorf("%d %q", code, out.String())
	}
	a = &app{name: "docker", now: time.Now, out: &out, err: &errs, env: map[string]string{}}
	a.main(t.Context(), []string{"run"})
	if !strings.HasPrefix(errs.String(), "docker: 'docker run' requires") {
		t.Errorf("%q", errs.String())
	}
}

func TestRoots(t *testing.T) {
	var got engine.Options
	var entered rootless.Entry
	open := func(args []string, env map[string]string, uid int) string {
		var out, errs bytes.Buffer
		a := &app{name: "keg", now: time.Now, out: &out, err: &errs, env: env, uid: uid, open: func(o engine.Options) (backend, error) { got = o; return &fake{}, nil },
			become: func(e rootless.Entry) error { entered = e; return errors.New("not in a test") }}
		got = engine.Options{}
		a.main(t.Context(), args)
		return errs.String()
	}
	open([]string{"volume", "ls"}, map[string]string{}, 0)
	if got.Root != "/var/lib/keg" || got.Run != "/run/keg" || got.Version != version {
		t.Errorf("defaults %+v", got)
	}
	env := map[string]string{"KEG_ROOT": "/e", "KEG_RUN_ROOT": "/er"}
	if open([]string{"volume", "ls"}, env, 0); got.Root != "/e" || got.Run != "/er" {
		t.Errorf("environment %+v", got)
	}
	if open([]string{"--root", "/f", "volume", "ls", "--run-root=/fr"}, env, 0); got.Root != "/f" || got.Run != "/fr" {
		t.Errorf("flags %+v", got)
	}
	t.Chdir(t.TempDir())
	wd, _ := os.Getwd()
	if open([]string{"ps", "--root", "x"}, env, 0); got.Root != wd+"/x" {
		t.Errorf("relative: %+v", got)
	}
	if open([]string{"--config", "/c", "ps"}, map[string]string{"DOCKER_CONFIG": "/d", "A": "1"}, 0); got.Env["DOCKER_CONFIG"] != "/c" || got.Env["A"] != "1" {
		t.Errorf("--config: %+v", got)
	}
	open([]string{"ps"}, map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1000"}, 1000)
	if entered.Root != "/home/u/.local/share/keg" || entered.Run != "/run/user/1000/keg" || got.Root != "" {
		t.Errorf("not root: entered %+v, opened %+v", entered, got)
	}
	for _, env := range []map[string]string{{"DOCKER_HOST": "tcp://ci:2375"}, {"DOCKER_CONTEXT": "prod"}} {
		if said := open([]string{"ps"}, env, 0); said == "" || got.Root != "" {
			t.Errorf("%v: works here although another machine was asked for (%q)", env, said)
		}
	}
	if said := open([]string{"-H", "unix:///var/run/docker.sock", "-c", "default", "ps"}, map[string]string{}, 0); said != "" {
		t.Errorf("%q", said)
	}
}

// Every command must be found alone as it is found in the whole tree, with help.
func TestEachCommandIsWhole(t *testing.T) {
	a := &app{name: "keg", now: time.Now, env: map[string]string{}, completing: true}
	var walk func(c *cobra.Command, words []string)
	walk = func(c *cobra.Command, words []string) {
		if len(words) > 0 {
			if c.Short == "" {
				t.Errorf("%v has no description", words)
			}
			r := keg(t, nil, append(words, "--help")...)
			if r.code != 0 || !strings.HasPrefix(r.out, "Usage:  keg "+strings.Join(words, " ")) || !strings.Contains(r.out, c.Short) && c.Long == "" {
				t.Errorf("%v --help: %+v", words, r)
			}
			c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
				if f.Usage == "" && !f.Hidden {
					t.Errorf("%v: --%s says nothing of itself", words, f.Name)
				}
			})
		}
		for _, s := range c.Commands() {
			walk(s, append(append([]string{}, words...), s.Name()))
		}
	}
	walk(a.tree(), nil)
}

func TestHelp(t *testing.T) {
	r := keg(t, nil, "--help")
	for _, part := range []string{"Usage:  keg [OPTIONS] COMMAND\n", "\nCommon Commands:\n  run        Create and run", "\nManagement Commands:\n  builder ", "\nCommands:\n  attach ", "\nGlobal Options:\n", "      --root string"} {
		if !strings.Contains(r.out, part) {
			t.Errorf("help lacks %q:\n%s", part, r.out)
		}
	}
	if none := keg(t, nil); none.out != "" || none.err != r.out || none.code != 0 {
		t.Errorf("keg alone: %+v", none)
	}
	if r := keg(t, nil, "ps", "--help"); !strings.Contains(r.out, "Aliases:\n  keg container ls, keg container list, keg container ps, keg ps\n") || strings.Contains(r.out, "--root") {
		t.Errorf("%s", r.out)
	}
	if r := keg(t, nil, "help", "volume", "ls"); !strings.HasPrefix(r.out, "Usage:  keg volume ls [OPTIONS]\n\nList volumes\n\nAliases:\n  keg volume ls, keg volume list\n\nOptions:\n") {
		t.Errorf("%s", r.out)
	}
	if r := keg(t, nil, "volume", "rm", "-h"); !strings.HasPrefix(r.out, "Usage:  keg volume rm ") {
		t.Errorf("-h: %+v", r)
	}
	if f := (&fake{}); keg(t, f, "create", "-h", "name", "img").code != 0 || f.create.Config.Hostname != "name" {
		t.Errorf("-h of create is not the host name: %+v", f.create.Config)
	}
}

func TestCompletion(t *testing.T) {
	n := network.Inspect{}
	n.Name = "mynet"
	f := &fake{
		containers: []container.Summary{{Names: []string{"/web"}, State: "running"}, {Names: []string{"/old"}, State: "exited"}},
		images:     []dimage.Summary{{RepoTags: []string{"nginx:1", "nginx:2"}}}, volumes: []volume.Volume{{Name: "data"}}, networks: []network.Inspect{n},
	}
	for words, want := range map[string]string{
		"stop ": "web", "start ": "old", "rm ": "old", "rm -f ": "web old", "exec ": "web", "container logs ": "web old", "rmi nginx:1 ": "nginx:2", "run ": "nginx:1 nginx:2",
		"run nginx:1 ": "", "volume rm ": "data", "network inspect ": "mynet", "run --network ": "mynet", "run --volumes-from ": "web old", "run --pull ": "always missing never",
		"inspect ": "web old nginx:1 nginx:2 data mynet", "ps ": "", "inspect --type ": "container image network volume",
	} {
		args := strings.Split("__completeNoDesc "+words, " ")
		r := keg(t, f, args...)
		got, _, _ := strings.Cut(r.out, ":"+"4\n")
		lines := strings.Fields(got)
		if len(lines) > 0 && strings.HasPrefix(lines[len(lines)-1], ":") {
			lines = lines[:len(lines)-1]
		}
		if strings.Join(lines, " ") != want {
			t.Errorf("%q: %q, want %q (%s)", words, lines, want, r.err)
		}
	}
	if r := keg(t, f, "__completeNoDesc", "vol"); !strings.HasPrefix(r.out, "volume\n") {
		t.Errorf("%+v", r)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := keg(t, f, "completion", shell); r.code != 0 || !strings.Contains(r.out, "__complete") {
			t.Errorf("%s: exit %d, %s", shell, r.code, r.err)
		}
	}
}

// What strangers wrote reaches a terminal without control characters.
func TestQuoting(t *testing.T) {
	for in, want := range map[string]string{
		"plain größe 日本\n\ttab": "plain größe 日本\n\ttab", "a\x1b[31mb": `a\x1b[31mb`, "bell\x07": `bell\x07`, "\r": `\x0d`, "\x9b1m": `\x9b1m`, "\u009b": `\x9b`,
		"a\u202eb\u2066": `a\u202eb\u2066`, "\xff\xfe": `\xff\xfe`, "\x7f": `\x7f`,
	} {
		for split := range len(in) + 1 {
			var b bytes.Buffer
			q := &quoting{w: &b}
			q.Write([]byte(in[:split]))
			q.Write([]byte(in[split:]))
			if b.String() != want {
				t.Errorf("%q cut at %d: %q, want %q", in, split, b.String(), want)
			}
		}
	}
}

// No command lets through what a stranger put into a name, a label or an error.
func TestNoCommandObeysStrangers(t *testing.T) {
	const evil = "a\x1b]0;title\x07\u202eb\x9b1m"
	n := network.Inspect{}
	n.Name, n.Driver = evil, evil
	f := &fake{
		containers: []container.Summary{{Names: []string{"/" + evil}, Image: evil, Command: evil, Status: evil, Labels: map[string]string{evil: evil}}},
		images:     []dimage.Summary{{RepoTags: []string{evil}}}, history: []dimage.HistoryResponseItem{{CreatedBy: evil, Comment: evil}},
		volumes: []volume.Volume{{Name: evil, Driver: evil, Labels: map[string]string{evil: evil}}}, networks: []network.Inspect{n},
		inspect: map[string]container.InspectResponse{"web": {Name: evil}}, imageInfo: map[string]dimage.InspectResponse{"img": {Comment: evil}},
		messages: []event.Message{{Action: evil}}, deleted: []dimage.DeleteResponse{{Untagged: evil}}, warnings: []string{evil},
		info: engine.Info{Name: evil, Warnings: []string{evil}}, usage: []engine.Usage{{Type: evil}}, problems: []engine.Problem{{Object: evil, Text: evil}},
		pruned: engine.Pruned{Containers: []string{evil}}, errFor: map[string]error{"bad": errors.New(evil)},
	}
	for _, line := range []string{
		"ps -a", "ps --no-trunc", "ps --format {{.Labels}}", "images", "history img", "volume ls", "network ls", "inspect web", "inspect -f {{.Name}} web", "image inspect -f {{.Comment}} img",
		"events --until 1s", "rmi img", "create img", "info", "system df", "system check", "system prune -f", "stop bad", "rm bad", "pull bad", "run bad", "exec bad ls", "run --nosuch\x1b[2J x", "\x1b[2J", "inspect \x1b[2J", "run --mount \x1b[2J x",
	} {
		var out bytes.Buffer
		a := &app{
			name: "keg", in: strings.NewReader(""), out: &quoting{w: &out}, err: &quoting{w: &out}, rawOut: io.Discard, rawErr: io.Discard,
			env: map[string]string{}, now: func() time.Time { return fixedNow }, open: func(engine.Options) (backend, error) { return f, nil },
		}
		a.main(t.Context(), strings.Split(line, " "))
		if i := strings.IndexAny(out.String(), "\x07\x1b\u009b\u202e"); i >= 0 || out.Len() == 0 || !utf8.Valid(out.Bytes()) {
			t.Errorf("%q prints %q", line, out.String())
		}
	}
}

func TestNaturalOrder(t *testing.T) {
	for _, c := range []struct{ a, b string }{{"web2", "web10"}, {"a", "b"}, {"a", "ab"}, {"a1b2", "a1b10"}, {"x09", "x10"}} {
		if compareNatural(c.a, c.b) >= 0 || compareNatural(c.b, c.a) <= 0 || compareNatural(c.a, c.a) != 0 {
			t.Errorf("%q is not before %q", c.a, c.b)
		}
	}
}
