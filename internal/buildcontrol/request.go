// Package buildcontrol has the messages of BuildKit's control protocol: what clients such as buildx ask of builds
// (moby/buildkit api/services/control/control.proto, frontend/gateway/pb/gateway.proto). What comes in is hostile.
//
//	client                          engine
//	Control/Solve REF, exporters -> (waits)
//	Control/Status REF           -> ... Trace, Trace, ...
//	LLBBridge/Solve frontend     -> a reference: what is to be built
//	LLBBridge/Return reference   -> the build: Control/Solve answers
package buildcontrol

import (
	"time"

	"keg/internal/fault"
	"keg/internal/grpc"
)

// The services.
const (
	Control = "/moby.buildkit.v1.Control/"
	Bridge  = "/moby.buildkit.v1.frontend.LLBBridge/"
	Content = "/containerd.services.content.v1.Content/"
)

// HeaderBuild is the metadata of a call to the bridge that names its build.
const HeaderBuild = "Buildkit-Controlapi-Buildid"

// maxEntries bounds each list and map of a message.
const maxEntries = 1 << 14

// Solve is the message of Control/Solve.
type Solve struct {
	Ref, Session, Frontend string
	Definition             []byte // LLB; nil: none
	Attrs                  map[string]string
	Inputs                 map[string][]byte // definitions
	Exporters              []Entry
	CacheTo, CacheFrom     []Entry
	Entitlements           []string
	Internal               bool   // nobody is to hear of it
	SourcePolicy           bool   // there is one
	PolicySession          string // who is to be asked about sources
	ProxyNetwork           bool   // steps are to reach the network by a proxy
}

// Entry is an exporter or a cache: a type and what it is given.
type Entry struct {
	Type  string            `json:"Type"`
	Attrs map[string]string `json:"Attrs"`
}

// Frontend is the message of LLBBridge/Solve: what a frontend is to make of a build.
type Frontend struct {
	Definition []byte
	Name       string
	Attrs      map[string]string
	Inputs     map[string][]byte
	Evaluate   bool
}

// Return is the message of LLBBridge/Return: the end of what the client does for its build.
type Return struct {
	Refs []string // references, by platform or one
	Err  *grpc.Status
}

// text is a string of a field.
func text(f grpc.Field) string { return string(f.Data) }

type decoder func(f grpc.Field) error

// fields reads a message by the numbers of its fields. A field that is no message, text or number where one is expected is
// passed over, as an unknown one is.
func fields(b []byte, by map[int]decoder) error {
	return grpc.Each(b, func(f grpc.Field) error {
		if d := by[f.Number]; d != nil {
			return d(f)
		}
		return nil
	})
}

func toText(p *string) decoder { return func(f grpc.Field) error { *p = text(f); return nil } }

func toBytes(p *[]byte) decoder {
	return func(f grpc.Field) error { *p = append([]byte{}, f.Data...); return nil }
}

func toFlag(p *bool) decoder { return func(f grpc.Field) error { *p = f.Value != 0; return nil } }

func toNumber(p *int64) decoder {
	return func(f grpc.Field) error { *p = int64(f.Value); return nil }
}

func toList(p *[]string) decoder {
	return func(f grpc.Field) error {
		*p = append(*p, text(f))
		return bounded(len(*p))
	}
}

func bounded(n int) error {
	if n > maxEntries {
		return fault.Invalidf("the client sent a list of more than %d entries", maxEntries)
	}
	return nil
}

// entry reads one of a map: key 1, value 2.
func entry(b []byte) (key string, value []byte, err error) {
	err = fields(b, map[int]decoder{1: toText(&key), 2: func(f grpc.Field) error { value = f.Data; return nil }})
	return key, value, err
}

func toMap(p *map[string]string) decoder {
	return func(f grpc.Field) error {
		k, v, err := entry(f.Data)
		if err != nil {
			return err
		}
		if *p == nil {
			*p = map[string]string{}
		}
		(*p)[k] = string(v)
		return bounded(len(*p))
	}
}

func toBytesMap(p *map[string][]byte) decoder {
	return func(f grpc.Field) error {
		k, v, err := entry(f.Data)
		if err != nil {
			return err
		}
		if *p == nil {
			*p = map[string][]byte{}
		}
		(*p)[k] = append([]byte{}, v...)
		return bounded(len(*p))
	}
}

func toEntries(p *[]Entry) decoder {
	return func(f grpc.Field) error {
		var e Entry
		if err := fields(f.Data, map[int]decoder{1: toText(&e.Type), 2: toMap(&e.Attrs)}); err != nil {
			return err
		}
		*p = append(*p, e)
		return bounded(len(*p))
	}
}

// ParseSolve reads Control/Solve.
func ParseSolve(b []byte) (*Solve, error) {
	s := &Solve{}
	var exporter string
	var attrs map[string]string
	err := fields(b, map[int]decoder{
		1: toText(&s.Ref), 2: toBytes(&s.Definition), 3: toText(&exporter), 4: toMap(&attrs), 5: toText(&s.Session), 6: toText(&s.Frontend),
		7: toMap(&s.Attrs), 9: toList(&s.Entitlements), 10: toBytesMap(&s.Inputs), 11: toFlag(&s.Internal),
		12: func(grpc.Field) error { s.SourcePolicy = true; return nil }, 13: toEntries(&s.Exporters), 15: toText(&s.PolicySession), 17: toFlag(&s.ProxyNetwork),
		8: func(f grpc.Field) error {
			return fields(f.Data, map[int]decoder{4: toEntries(&s.CacheTo), 5: toEntries(&s.CacheFrom)})
		},
	})
	if err == nil && (s.Ref == "" || len(s.Ref) > 256) {
		err = fault.Invalidf("a build needs a name of at most 256 bytes")
	}
	if exporter != "" && len(s.Exporters) == 0 { // clients before 0.13
		s.Exporters = []Entry{{exporter, attrs}}
	}
	return s, err
}

// ParseFrontend reads LLBBridge/Solve.
func ParseFrontend(b []byte) (*Frontend, error) {
	s := &Frontend{}
	err := fields(b, map[int]decoder{1: toBytes(&s.Definition), 2: toText(&s.Name), 3: toMap(&s.Attrs), 13: toBytesMap(&s.Inputs), 14: toFlag(&s.Evaluate)})
	return s, err
}

// ParseReturn reads LLBBridge/Return.
func ParseReturn(b []byte) (*Return, error) {
	r := &Return{}
	add := func(id string) error {
		if id != "" {
			r.Refs = append(r.Refs, id)
		}
		return bounded(len(r.Refs))
	}
	ref := func(b []byte) error {
		var id string
		if err := fields(b, map[int]decoder{1: toText(&id)}); err != nil {
			return err
		}
		return add(id)
	}
	result := map[int]decoder{
		1: func(f grpc.Field) error { return add(text(f)) }, // of old clients
		3: func(f grpc.Field) error { return ref(f.Data) },
		4: func(f grpc.Field) error {
			return fields(f.Data, map[int]decoder{1: func(f grpc.Field) error {
				_, v, err := entry(f.Data)
				if err != nil {
					return err
				}
				return ref(v)
			}})
		},
	}
	err := fields(b, map[int]decoder{
		1: func(f grpc.Field) error { return fields(f.Data, result) },
		2: func(f grpc.Field) (err error) { r.Err, err = grpc.ParseStatus(f.Data); return err },
	})
	return r, err
}

// ParseRef reads a message that is the name of a build or of a reference: Control/Status, LLBBridge/Evaluate.
func ParseRef(b []byte) (ref string, err error) {
	err = fields(b, map[int]decoder{1: toText(&ref)})
	return ref, err
}

// Data is the message of a stream of bytes, in both directions.
type Data []byte

// ParseData reads it.
func ParseData(b []byte) (d Data, err error) {
	err = fields(b, map[int]decoder{1: func(f grpc.Field) error { d = f.Data; return nil }})
	return d, err
}

// Encode writes it.
func (d Data) Encode() []byte { return grpc.AppendText(nil, 1, []byte(d)) }

// Operation is a source in a definition of LLB (solver/pb/ops.proto).
type Operation struct {
	Identifier string
	Attrs      map[string]string
}

// ParseSources reads the sources of a definition. Operations on files are passed over: clients add them to unpack an archive.
// Others are an error.
func ParseSources(def []byte) (ops []Operation, err error) {
	err = fields(def, map[int]decoder{1: func(f grpc.Field) error {
		var o Operation
		source := false
		err := fields(f.Data, map[int]decoder{
			2: func(grpc.Field) error { return errOperation("exec") },
			3: func(f grpc.Field) error {
				source = true
				return fields(f.Data, map[int]decoder{1: toText(&o.Identifier), 2: toMap(&o.Attrs)})
			},
			5: func(grpc.Field) error { return errOperation("build") },
			6: func(grpc.Field) error { return errOperation("merge") },
			7: func(grpc.Field) error { return errOperation("diff") },
		})
		if source {
			ops = append(ops, o)
		}
		if err == nil {
			err = bounded(len(ops))
		}
		return err
	}})
	return ops, err
}

func errOperation(kind string) error {
	return fault.Unsupportedf("the operation %q of LLB is not supported: keg builds Dockerfiles", kind)
}

// CacheRequest is the message of Control/DiskUsage, and with the rest that of Control/Prune.
type CacheRequest struct {
	Filters                    []string
	All                        bool
	Keep                       time.Duration // what was used since then
	Reserved, MaxUsed, MinFree int64         // bytes
}

// ParseCacheRequest reads Control/DiskUsage.
func ParseCacheRequest(b []byte) (q CacheRequest, err error) {
	err = fields(b, map[int]decoder{1: toList(&q.Filters)})
	return q, err
}

// ParsePrune reads Control/Prune.
func ParsePrune(b []byte) (q CacheRequest, err error) {
	err = fields(b, map[int]decoder{1: toList(&q.Filters), 2: toFlag(&q.All), 3: toNumber((*int64)(&q.Keep)),
		4: toNumber(&q.Reserved), 5: toNumber(&q.MaxUsed), 6: toNumber(&q.MinFree)})
	return q, err
}

// ParseSource reads a definition that is one source; unpacked: what it gives is an archive that is to be unpacked.
func ParseSource(def []byte) (op Operation, unpacked bool, err error) {
	ops, err := ParseSources(def)
	if err != nil {
		return op, false, err
	}
	if len(ops) != 1 {
		return op, false, fault.Unsupportedf("a definition of %d sources is not supported: keg builds Dockerfiles", len(ops))
	}
	err = fields(def, map[int]decoder{1: func(f grpc.Field) error {
		return fields(f.Data, map[int]decoder{4: func(grpc.Field) error { unpacked = true; return nil }})
	}})
	return ops[0], unpacked, err
}

// FileRequest asks for a file or directory of a reference: LLBBridge/ReadFile, StatFile, ReadDir.
type FileRequest struct {
	Ref, Path, Pattern string
	Offset, Length     int64 // 0: all
}

// ParseFileRequest reads LLBBridge/ReadFile.
func ParseFileRequest(b []byte) (q FileRequest, err error) {
	err = fields(b, map[int]decoder{1: toText(&q.Ref), 2: toText(&q.Path), 3: func(f grpc.Field) error {
		return fields(f.Data, map[int]decoder{1: toNumber(&q.Offset), 2: toNumber(&q.Length)})
	}})
	return q, err
}

// ParseStatRequest reads LLBBridge/StatFile.
func ParseStatRequest(b []byte) (q FileRequest, err error) {
	err = fields(b, map[int]decoder{1: toText(&q.Ref), 2: toText(&q.Path)})
	return q, err
}

// ParseDirRequest reads LLBBridge/ReadDir.
func ParseDirRequest(b []byte) (q FileRequest, err error) {
	err = fields(b, map[int]decoder{1: toText(&q.Ref), 2: toText(&q.Path), 3: toText(&q.Pattern)})
	return q, err
}

// IsEmpty tells a definition without operations.
func IsEmpty(def []byte) bool {
	empty := true
	err := fields(def, map[int]decoder{1: func(f grpc.Field) error { empty = empty && len(f.Data) == 0; return nil }})
	return err == nil && empty
}
