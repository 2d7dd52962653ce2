// Package container is a container as written down: config, state, names, log, and the
// pure function from these to an OCI spec.
//
//	containers/<id>/{config.json,state.json,lock,log...}   containers/names/<name> -> id
package container

import (
	"context"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Record is config.json: what should be. Docker's own types are its vocabulary, so the
// command line, inspect and the API need no translation.
type Record struct {
	Version  int
	ID, Name string // Name without "/"
	Created  time.Time
	ImageID  digest.Digest   // config digest; "" for none
	Manifest digest.Digest   // of the image, so that gc keeps it
	Stack    []digest.Digest // diffIDs of the image
	Platform string
	Config   *container.Config // image defaults already merged
	Host     *container.HostConfig
	Networks map[string]*network.EndpointSettings // by network name, as asked for
	Mounts   []container.MountPoint               // resolved: volumes made, binds checked
	Path     string                               // argv[0] and the rest, as started
	Args     []string
	Unknown  map[string]any `json:"-"`
}

// State is state.json: what is, as far as it was written. Status is decided with the lock.
type State struct {
	Status       container.ContainerState
	Pid          int
	StartTime    uint64 // of Pid, linux.StartTime
	BootID       string
	CgroupPath   string
	ExitCode     int
	Error        string
	OOMKilled    bool
	Started      time.Time
	Finished     time.Time
	RestartCount int
	ManualStop   bool // stopped by a person: unless-stopped stays down
	Health       *container.Health
	Networks     map[string]*network.EndpointSettings // with addresses
	Ports        network.PortMap                      // with the ports that were picked
	SandboxKey   string
}

// Store owns containers/ below its root.
type Store struct{ root string }

// Open uses the directory root; it is made when first needed.
func Open(root string) *Store { return &Store{root} }

// NewID returns 64 random hex digits that do not look like a number.
func NewID() string { panic("unwritten") }

// Create reserves the name (O_EXCL; "" picks one such as "brave_noether") and writes the
// record. fault.Conflict with Docker's words when the name is in use.
func (s *Store) Create(ctx context.Context, r *Record) error { panic("unwritten") }

// Find resolves name, id or unique id prefix. fault.NotFound: "No such container: x".
func (s *Store) Find(ref string) (*Record, error) { panic("unwritten") }

// List returns the ids of all containers.
func (s *Store) List() ([]string, error) { panic("unwritten") }

// Get reads one record by full id; State its state.
func (s *Store) Get(id string) (*Record, error)  { panic("unwritten") }
func (s *Store) State(id string) (*State, error) { panic("unwritten") }

// Put writes a changed record; PutState a changed state (durable unless volatile).
func (s *Store) Put(r *Record) error                                { panic("unwritten") }
func (s *Store) PutState(id string, st *State, volatile bool) error { panic("unwritten") }

// Rename changes the name atomically.
func (s *Store) Rename(r *Record, name string) error { panic("unwritten") }

// Remove deletes record, log and name. The caller holds the lock.
func (s *Store) Remove(id string) error { panic("unwritten") }

// Lock takes the container's OFD lock without waiting; nil when a monitor (or another
// remover) holds it. Running asks without taking it.
func (s *Store) Lock(id string) (*os.File, error) { panic("unwritten") }
func (s *Store) Running(id string) (bool, error)  { panic("unwritten") }

// Dir is the container's directory, for the files that live there (hosts, resolv.conf, hostname).
func (s *Store) Dir(id string) string { panic("unwritten") }

// SpecOptions is what the host adds to a record.
type SpecOptions struct {
	UID, GID                uint32
	AdditionalGids          []uint32
	Home                    string
	Hosts, Resolv, Hostname string // paths of files to bind
	CgroupV2                bool
	Masked                  []string
	InitPath                string // --init: path of the init to bind, or ""
}

// Spec returns the OCI spec of a record. It is pure: golden tests need no privileges.
func Spec(r *Record, o SpecOptions) (*specs.Spec, error) { panic("unwritten") }

// LogEntry is one line, or a part of one of at most 16 KiB.
type LogEntry struct {
	Stream  string // "stdout" or "stderr"
	Time    time.Time
	Line    []byte
	Partial bool
}

// LogOptions are those of docker logs.
type LogOptions struct {
	Follow       bool
	Tail         int // -1: all
	Since, Until time.Time
}

// Logs yields the entries of a container in order; with Follow until it ends or ctx does.
func (s *Store) Logs(ctx context.Context, id string, o LogOptions, yield func(LogEntry) error) error {
	panic("unwritten")
}
