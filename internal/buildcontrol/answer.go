package buildcontrol

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/grpc"
	"keg/internal/image"
)

func appendMap[T string | []byte](b []byte, number int, m map[string]T) []byte {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = grpc.AppendMessage(b, number, grpc.AppendText(grpc.AppendText(nil, 1, k), 2, m[k]))
	}
	return b
}

// Solved is the answer of Control/Solve: what the exporters tell.
func Solved(response map[string]string) []byte { return appendMap(nil, 1, response) }

// Result is the answer of LLBBridge/Solve: a reference, with a definition that stands for it where LLB is wanted, and
// what a request about the Dockerfile gave.
type Result struct {
	Ref        string
	Definition []byte
	Metadata   map[string][]byte
}

// Encode writes it.
func (r Result) Encode() []byte {
	var b []byte
	ref := grpc.AppendText(nil, 1, r.Ref)
	if r.Definition != nil {
		ref = grpc.AppendMessage(ref, 2, r.Definition)
	}
	b = grpc.AppendMessage(b, 3, ref)
	return grpc.AppendMessage(nil, 3, appendMap(b, 10, r.Metadata))
}

// Worker is who builds.
type Worker struct {
	ID        string
	Labels    map[string]string
	Platforms []image.Platform
	Version   string
}

func (w Worker) encode() []byte {
	b := appendMap(grpc.AppendText(nil, 1, w.ID), 2, w.Labels)
	for _, p := range w.Platforms {
		b = grpc.AppendMessage(b, 3, grpc.AppendText(grpc.AppendText(grpc.AppendText(nil, 1, p.Architecture), 2, p.OS), 3, p.Variant))
	}
	return grpc.AppendMessage(b, 5, version(w.Version))
}

func version(v string) []byte {
	return grpc.AppendText(grpc.AppendText(nil, 1, "keg"), 2, v)
}

// Workers is the answer of Control/ListWorkers.
func Workers(w Worker) []byte { return grpc.AppendMessage(nil, 1, w.encode()) }

// Info is the answer of Control/Info.
func Info(v string) []byte { return grpc.AppendMessage(nil, 1, version(v)) }

// Abilities of the bridge and of builds that clients ask for (frontend/gateway/pb/caps.go, solver/pb/caps.go).
var (
	bridgeCaps = []string{"solve.base", "readfile", "return", "returnmap", "readdir", "statfile", "importcaches",
		"proto.refarray", "reference.output", "frontend.inputs", "gateway.solve.metadata", "frontend.caps", "gateway.solve.evaluate",
		"gateway.evaluate", "gateway.warnings"}
	buildCaps = []string{"source.image", "source.image.resolvemode", "source.local", "source.local.unique", "source.local.sessionid",
		"source.local.includepatterns", "source.local.followpaths", "source.local.excludepatterns", "source.local.sharedkeyhint", "source.local.differ",
		"source.git", "source.git.keepgitdir", "source.git.fullurl", "source.git.httpauth", "source.git.knownsshhosts", "source.git.mountsshsock",
		"source.git.subdir", "source.git.checksum", "source.http", "source.http.auth", "source.http.checksum", "source.http.perm", "soruce.http.uidgid",
		"source.ocilayout", "source.buildop.llbfilename", "exec.meta.base", "exec.meta.cgroup.parent", "exec.meta.network", "exec.meta.proxyenv",
		"exec.meta.security", "exec.meta.setsdefaultpath", "exec.meta.ulimit", "exec.meta.linux.resources", "exec.mount.bind",
		"exec.mount.bind.readwrite-nooutput", "exec.mount.cache", "exec.mount.cache.sharing", "exec.mount.selector", "exec.mount.tmpfs",
		"exec.mount.tmpfs.size", "exec.mount.secret", "exec.mount.ssh", "exec.secretenv", "file.base", "file.rm.wildcard",
		"file.copy.includeexcludepatterns", "constraints", "platform", "meta.ignorecache", "meta.description", "meta.exportcache",
		"exporter.image.annotations", "exporter.image.attestations", "exporter.sourcedateepoch", "exporter.multiple"}
)

// Pong is the answer of LLBBridge/Ping.
func Pong(w Worker) []byte {
	var b []byte
	for number, caps := range [][]string{1: bridgeCaps, 2: buildCaps} {
		for _, c := range caps {
			b = grpc.AppendMessage(b, number, grpc.AppendNumber(grpc.AppendText(nil, 1, c), 2, 1))
		}
	}
	return grpc.AppendMessage(b, 3, w.encode())
}

func digestOf(b []byte) string { return digest.FromBytes(b).String() }

// Source is a definition of LLB that is one source.
func Source(identifier string) []byte {
	op := grpc.AppendMessage(nil, 3, grpc.AppendText(nil, 1, identifier))
	last := grpc.AppendMessage(nil, 1, grpc.AppendText(nil, 1, digestOf(op)))
	b := grpc.AppendMessage(grpc.AppendMessage(nil, 1, op), 1, last)
	for _, o := range [][]byte{op, last} {
		b = grpc.AppendMessage(b, 2, grpc.AppendMessage(grpc.AppendText(nil, 1, digestOf(o)), 2, ""))
	}
	return b
}

// Usage is an entry of the build cache.
type Usage struct {
	ID, Type, Description string
	Size                  int64
	Mutable, Shared       bool
	Created, Used         time.Time
}

// Encode writes it.
func (u Usage) Encode() []byte {
	b := grpc.AppendNumber(grpc.AppendText(nil, 1, u.ID), 2, flag(u.Mutable))
	b = grpc.AppendTime(grpc.AppendNumber(b, 4, uint64(u.Size)), 6, &u.Created)
	b = grpc.AppendText(grpc.AppendTime(b, 7, &u.Used), 9, strings.ToValidUTF8(u.Description, "\uFFFD"))
	return grpc.AppendNumber(grpc.AppendText(b, 10, u.Type), 11, flag(u.Shared))
}

func flag(v bool) uint64 {
	if v {
		return 1
	}
	return 0
}

// Usages is the answer of Control/DiskUsage.
func Usages(list []Usage) (b []byte) {
	for _, u := range list {
		b = grpc.AppendMessage(b, 1, u.Encode())
	}
	return b
}
