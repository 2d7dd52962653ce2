// RUN: evaluation, what goes into its key, its mounts, and running it.
package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/weakness"
)

// runOp is an evaluated RUN.
type runOp struct {
	args       []string
	shell      string // the stage's, for who looks into a failure
	env        environ
	declared   map[string]bool // keys of env that come from ARG
	proxies    []string        // in the environment, not in the key
	dir, user  string
	network    string
	privileged bool
	hosts      []string
	shm        int64
	ulimits    []Ulimit
	limits     Limits
	script     *heredocFile // a heredoc that starts with #!
	mounts     []runMount
	platform   image.Platform
}

type heredocFile struct{ name, data string }

// scriptDir is where BuildKit shows a heredoc with a shebang; it is in the history.
const scriptDir = "/dev/pipes/"

type runMount struct {
	kind     instructions.MountType
	from     *stage // nil: the context
	source   string
	target   string
	readOnly bool
	size     int64
	id       string
	sharing  instructions.ShareMode
	required bool
	env      string // secret as a variable
	asFile   bool
	mode     *uint64
	uid, gid *uint64
}

func (p *plan) evalRun(s *stage, c command, run *instructions.RunCommand) error {
	o := &runOp{env: s.env, dir: s.config.Config.WorkingDir, user: s.config.Config.User,
		hosts: p.o.ExtraHosts, shm: p.o.ShmSize, ulimits: p.o.Ulimits, limits: p.o.Limits, platform: s.platform, proxies: proxyEnv(p.args)}
	name := sourceOf(run)
	line := run.ShellDependantCmdLine
	if len(run.Files) > 0 {
		var summary string
		if line, summary, o.script = heredocLine(run); summary != "" {
			name += " (" + summary + ")"
		}
	}
	o.args, o.shell = s.commandLine(line), s.shell()[0]
	if p.epoch != nil {
		if _, ok := o.env.Get("SOURCE_DATE_EPOCH"); !ok {
			o.env = o.env.with("SOURCE_DATE_EPOCH", strconv.FormatInt(p.epoch.Unix(), 10))
		}
	}
	o.declared = map[string]bool{}
	for _, a := range s.args {
		o.declared[a.Key] = true
	}
	if err := o.setNetwork(run, p.o); err != nil {
		return err
	}
	for i, m := range instructions.GetMounts(run) {
		rm, err := s.evalMount(m, c.from[i])
		if err != nil {
			return err
		}
		o.mounts = append(o.mounts, rm)
	}
	s.addStep(p.shown(name, maskSecrets(s.env, o.mounts), true), c, o, p.uncached(s))
	s.history("RUN "+runHistory(o.args, s.args, s.env)+" # buildkit", true)
	return nil
}

func maskSecrets(env environ, mounts []runMount) environ {
	for _, m := range mounts {
		if m.env != "" {
			env = env.with(m.env, "****")
		}
	}
	return env
}

// heredocLine turns RUN <<EOF into what is run: the document itself as the command of
// the shell, a file of its own when it has a shebang, or the whole text for a shell
// that knows heredocs.
func heredocLine(run *instructions.RunCommand) (line instructions.ShellDependantCmdLine, summary string, script *heredocFile) {
	line = run.ShellDependantCmdLine
	if parser.MustParseHeredoc(line.CmdLine[0]) == nil {
		var b strings.Builder
		b.WriteString(line.CmdLine[0])
		for _, f := range run.Files {
			b.WriteString("\n" + f.Data + f.Name)
		}
		line.CmdLine = []string{b.String()}
		return line, "", nil
	}
	f := run.Files[0]
	data := f.Data
	if f.Chomp {
		data = parser.ChompHeredocContent(data)
	}
	summary, rest, _ := strings.Cut(strings.TrimSpace(f.Data), "\n")
	summary = strings.TrimSuffix(summary, "\r")
	if rest != "" {
		summary += "..."
	}
	if strings.HasPrefix(data, "#!") {
		script = &heredocFile{f.Name, data}
		line.CmdLine = []string{scriptDir + path.Base(path.Clean("/"+f.Name))}
		return line, summary, script
	}
	line.CmdLine = []string{data}
	return line, summary, nil
}

func (o *runOp) setNetwork(run *instructions.RunCommand, asked Options) error {
	if d := instructions.GetDevices(run); len(d) > 0 {
		return fault.Unsupportedf("RUN --device=%s: builds have no devices of the host", d[0].Name)
	}
	o.network = asked.Network
	switch n := instructions.GetNetwork(run); n {
	case instructions.NetworkDefault:
	case instructions.NetworkNone:
		o.network = n
	case instructions.NetworkHost:
		if !asked.HostNetwork && asked.Network != n {
			return fault.Deniedf("RUN --network=host is not allowed: grant it with --allow network.host")
		}
		o.network = n
	default:
		return fault.Invalidf("network mode %q is not known", n)
	}
	switch instructions.GetSecurity(run) {
	case instructions.SecuritySandbox:
		return nil
	case instructions.SecurityInsecure:
		if !asked.Insecure && !weakness.Of("BL3") {
			return fault.Deniedf("RUN --security=insecure is not allowed: grant it with --allow security.insecure")
		}
		o.privileged = true
		return nil
	default:
		return fault.Invalidf("security mode %q is not known", instructions.GetSecurity(run))
	}
}

func (s *stage) evalMount(m *instructions.Mount, from *stage) (runMount, error) {
	rm := runMount{kind: m.Type, from: from, source: m.Source, target: m.Target, readOnly: m.ReadOnly,
		size: m.SizeLimit, id: m.CacheID, sharing: m.CacheSharing, required: m.Required, mode: m.Mode, uid: m.UID, gid: m.GID}
	switch m.Type {
	case instructions.MountTypeBind, instructions.MountTypeTmpfs:
	case instructions.MountTypeCache:
		if rm.id == "" {
			rm.id = path.Clean(m.Target)
		}
		if rm.sharing == "" {
			rm.sharing = instructions.MountSharingShared
		}
	case instructions.MountTypeSecret:
		return rm.secret(m)
	case instructions.MountTypeSSH:
		if rm.id == "" {
			rm.id = sshDefault
		}
		return rm, nil
	default:
		return rm, fault.Unsupportedf("RUN --mount=type=%s is not supported", m.Type)
	}
	if m.Target == "" {
		return rm, fault.Invalidf("RUN --mount=type=%s needs a target", m.Type)
	}
	if !path.IsAbs(rm.target) {
		rm.target = path.Join("/", s.config.Config.WorkingDir, rm.target)
	}
	if rm.target = path.Clean(rm.target); rm.target == "/" {
		return rm, fault.Invalidf("invalid mount target %q", m.Target)
	}
	return rm, nil
}

func (rm runMount) secret(m *instructions.Mount) (runMount, error) {
	if m.Source != "" {
		rm.id = m.Source
	}
	if rm.id == "" {
		rm.id = path.Base(m.Target)
	}
	if m.Env != nil {
		if rm.env = *m.Env; rm.env == "" {
			rm.env = rm.id
		}
	}
	if rm.asFile = m.Target != "" || m.Env == nil; rm.asFile && m.Target == "" {
		rm.target = "/run/secrets/" + path.Base(rm.id)
	}
	return rm, nil
}

func (o *runOp) reads() []*stage {
	var from []*stage
	for _, m := range o.mounts {
		if m.from != nil {
			from = append(from, m.from)
		}
	}
	return from
}

func (o *runOp) inputs(ctx context.Context, s *solver, in *inputs) error {
	argv, err := json.Marshal(o.args)
	if err != nil {
		return err
	}
	in.add(kindInstruction, "RUN", string(argv))
	if o.script != nil {
		in.add(kindHeredoc, o.script.name, o.script.data)
	}
	for _, kv := range o.env {
		k, v, _ := strings.Cut(kv, "=")
		kind := kindEnv
		if o.declared[k] {
			kind = kindArg
		}
		in.add(kind, k, v)
	}
	in.add(kindUser, "", o.user)
	in.add(kindWorkdir, "", o.dir)
	in.add(kindNetwork, "", o.network)
	for _, h := range o.hosts {
		in.add(kindHost, "", h)
	}
	if o.shm != 0 {
		in.add(kindShm, "", strconv.FormatInt(o.shm, 10))
	}
	for _, u := range o.ulimits {
		in.add(kindUlimit, u.Name, fmt.Sprintf("%d:%d", u.Soft, u.Hard))
	}
	if o.privileged {
		in.add(kindSecurity, "", instructions.SecurityInsecure)
	}
	for i := range o.mounts {
		if err := o.mounts[i].inputs(ctx, s, in); err != nil {
			return err
		}
	}
	return nil
}

// inputs of a mount: contents count for bind, only the shape for the others.
func (m *runMount) inputs(ctx context.Context, s *solver, in *inputs) error {
	in.add(kindMount, m.target, fmt.Sprintf("%s id=%s source=%s ro=%v size=%d sharing=%s env=%s mode=%s uid=%s gid=%s",
		m.kind, m.id, m.source, m.readOnly, m.size, m.sharing, m.env, number(m.mode), number(m.uid), number(m.gid)))
	if m.kind != instructions.MountTypeBind {
		return nil
	}
	_, err := s.files(ctx, m.from, m.selector(), in)
	return err
}

func number(n *uint64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatUint(*n, 10)
}

func (m *runMount) selector() selector {
	return selector{Path: path.Join("/", m.source), Follow: true}
}

// perform runs the command on the active snapshot.
func (o *runOp) perform(ctx context.Context, s *solver, w *work) (err error) {
	step := Step{Key: w.key, Dir: o.dir, User: o.user, Hostname: "buildkitsandbox", Network: o.network,
		Args: o.args, Env: append(slices.Clone(o.env), o.proxies...), ExtraHosts: o.hosts,
		ShmSize: o.shm, Ulimits: o.ulimits, Limits: o.limits, Privileged: o.privileged}
	var undo cleanup
	defer undo.run()
	for i := range o.mounts {
		if err := o.mounts[i].prepare(ctx, s, &step, &undo); err != nil {
			return err
		}
	}
	if o.script != nil {
		if err := o.script.prepare(ctx, s, &step, &undo); err != nil {
			return err
		}
	}
	if w.places, err = places(ctx, s, w.below, step.Mounts); err != nil {
		return err
	}
	if err := o.run(ctx, s, step, w.v); err != nil {
		s.fail(ctx, Failure{Step: step, Name: w.name, Shell: o.shell, Err: err})
		return err
	}
	return nil
}

func (o *runOp) run(ctx context.Context, s *solver, step Step, out io.Writer) error {
	code, err := s.runner.Run(ctx, step, out)
	if err != nil {
		return o.explain(err)
	}
	if code != 0 {
		return &ExitError{Args: o.args, Code: code}
	}
	return nil
}

// fail tells of the first failure, and only when it is not the end of the whole build that made the step fail.
func (s *solver) fail(ctx context.Context, f Failure) {
	if s.failed != nil && ctx.Err() == nil {
		s.once.Do(func() { s.failed(ctx, f) })
	}
}

// places lists where mounts go, as BuildKit's executor/stubs.go does: what only stands
// there for a mount is not part of the image.
func places(ctx context.Context, s *solver, below []digest.Digest, mounts []Mount) ([]string, error) {
	list := []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
	if len(mounts) == 0 {
		return list, nil
	}
	t, err := s.view(ctx, below)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		real, _, err := follow(int(t.root.Fd()), m.Target, true, nil)
		if err != nil {
			return nil, err
		}
		list = append(list, real)
	}
	return list, nil
}

// ExitError is a RUN that ended with another code than 0.
type ExitError struct {
	Args []string
	Code int
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("process %q did not complete successfully: exit code: %d", strings.Join(e.Args, " "), e.Code)
}

// explain says how to run a foreign platform's programs when that is what failed.
func (o *runOp) explain(err error) error {
	host := image.Host()
	if o.platform.Architecture != host.Architecture && strings.Contains(err.Error(), "exec format error") {
		return fault.Unsupportedf("cannot run programs of %s on %s: %w; register an emulator with binfmt_misc (package qemu-user-static)",
			image.FormatPlatform(o.platform), image.FormatPlatform(host), err)
	}
	return err
}

// cleanup undoes things in reverse order.
type cleanup struct{ fns []func() }

func (c *cleanup) add(f func()) { c.fns = append(c.fns, f) }
func (c *cleanup) run() {
	for _, f := range slices.Backward(c.fns) {
		f()
	}
}

// prepare gives a document with a shebang as a program of its own.
func (f *heredocFile) prepare(ctx context.Context, s *solver, step *Step, undo *cleanup) error {
	dir, err := s.scratch(ctx, undo)
	if err != nil {
		return err
	}
	p := path.Join(dir, path.Base(path.Clean("/"+f.name)))
	if err := os.WriteFile(p, []byte(f.data), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(p, 0o755); err != nil {
		return err
	}
	step.Mounts = append(step.Mounts, Mount{Type: "bind", Source: dir, Target: strings.TrimSuffix(scriptDir, "/"), ReadOnly: true})
	return nil
}

func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
