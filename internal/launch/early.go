package launch

// The monitor of `keg run` takes milliseconds to start, as every start of a large program does. It begins here, while this
// process has yet to initialise most of its packages, to read its flags and to make the container's record. The runtime,
// which has to execute itself again, does it before it has initialised them for nothing.

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
)

// spare is the early process while nobody has asked for it.
var spare atomic.Pointer[promise]

type promise struct {
	root, run string
	process   chan *Process // one; nil when it could not be started: whoever tries again will say why
}

func init() {
	if words, ok := Runtime(os.Args); ok && clones(words) {
		_ = FromSafePlace(words) // whoever tries again, once the words are understood, will say why not
		return
	}
	root, run, ok := expect(os.Args, os.Getenv)
	if !ok || os.Geteuid() != 0 {
		return
	}
	s := &promise{root, run, make(chan *Process, 1)}
	spare.Store(s)
	go func() {
		p, _ := monitor(root, run)
		s.process <- p
	}()
}

// clones guesses whether the runtime is to clone. Where it is wrong the runtime is executed twice, without harm.
func clones(words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return w == "create" || w == "run" || w == "exec" })
}

// expect tells whether the command is a run in an engine that is known without looking further: no word moves it elsewhere or
// asks for help. What it gets wrong costs a process that ends with this one.
func expect(args []string, env func(string) string) (root, run string, ok bool) {
	if len(args) < 3 || args[1] != "run" || env("DOCKER_HOST") != "" || env("DOCKER_CONTEXT") != "" {
		return "", "", false
	}
	switch filepath.Base(args[0]) {
	case "keg", "docker", "podman":
	default:
		return "", "", false
	}
	for _, w := range args[2:] {
		if w == "--help" || strings.HasPrefix(w, "--root") || strings.HasPrefix(w, "--run-root") {
			return "", "", false
		}
	}
	root, run = place(env("KEG_ROOT"), "/var/lib/keg"), place(env("KEG_RUN_ROOT"), "/run/keg")
	return root, run, filepath.IsAbs(root) && filepath.IsAbs(run)
}

func place(asked, usual string) string {
	if asked == "" {
		return usual
	}
	return filepath.Clean(asked)
}

// early is the early process, when it is the engine's in root and run. It is given away once.
func early(root, run string) *Process {
	s := spare.Swap(nil)
	if s == nil {
		return nil
	}
	p := <-s.process
	if p != nil && (s.root != root || s.run != run) {
		go p.close()
		return nil
	}
	return p
}
