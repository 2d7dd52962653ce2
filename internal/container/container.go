// Package container is a container as written down: config, state, names, log, and the
// pure function from these to an OCI spec.
//
//	containers/<id>/{config.json,state.json,lock,<id>-json.log...}
//	containers/names/<name> -> ../<id>   a symbolic link: made exclusively, with its content, in one call
//	containers/.new/<rand>                        what is being created
//	containers/.trash/<id>               what is being removed
package container

import (
	"bytes"
	"errors"
	"fmt"
	"golang.org/x/sys/unix"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/linux"
)

// Version of the records that this program writes. Fields that a newer one added
// are kept when a record is rewritten.
const Version = 1

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

	// Images mounted beside the root (--mount type=image): destination -> diffIDs.
	ImageMounts map[string][]digest.Digest `json:",omitempty"`
	// Subpaths of volumes and images, by destination: a part is mounted.
	Subpaths map[string]string `json:",omitempty"`
}

// State is state.json: what is, as far as it was written. Status is decided with the lock.
type State struct {
	Version      int
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

func (s *Store) containers() string          { return filepath.Join(s.root, "containers") }
func (s *Store) names() string               { return filepath.Join(s.root, "containers", "names") }
func (s *Store) fresh() string               { return filepath.Join(s.root, "containers", ".new") }
func (s *Store) trash() string               { return filepath.Join(s.root, "containers", ".trash") }
func (s *Store) configPath(id string) string { return filepath.Join(s.Dir(id), "config.json") }
func (s *Store) statePath(id string) string  { return filepath.Join(s.Dir(id), "state.json") }

// Dir is the container's directory, for the files that live there (hosts, resolv.conf, hostname).
func (s *Store) Dir(id string) string { return filepath.Join(s.root, "containers", id) }

// LogPath is the newest file of the container's log.
func (s *Store) LogPath(id string) string { return filepath.Join(s.Dir(id), id+"-json.log") }

// Get reads one record by full id.
func (s *Store) Get(id string) (*Record, error) {
	if !isID(id) {
		return nil, notFound(id)
	}
	b, err := os.ReadFile(s.configPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, err
	}
	var r Record
	if err := decodeRecord(b, &r); err != nil {
		return nil, fmt.Errorf("read record %s: %w", s.configPath(id), err)
	}
	if r.Config == nil {
		r.Config = &container.Config{}
	}
	if r.Host == nil {
		r.Host = &container.HostConfig{}
	}
	return &r, nil
}

// ImageID reads of a record only which image the container is made from.
func (s *Store) ImageID(id string) (digest.Digest, error) {
	if !isID(id) {
		return "", notFound(id)
	}
	var r struct{ ImageID digest.Digest }
	if err := disk.GetJSON(s.configPath(id), &r); err != nil {
		if fault.Is(err, fault.NotFound) {
			return "", notFound(id)
		}
		return "", err
	}
	return r.ImageID, nil
}

// State reads the state. A container that never ran has the status "created". A state
// that a power cut tore is told as an exit whose code is lost, never as success.
func (s *Store) State(id string) (*State, error) {
	if !isID(id) {
		return nil, notFound(id)
	}
	b, err := os.ReadFile(s.statePath(id))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(s.configPath(id)); err != nil {
			return nil, notFound(id)
		}
		return &State{Version: Version, Status: container.StateCreated}, nil
	}
	if err != nil {
		return nil, err
	}
	var st State
	if err := decodeState(b, &st); err != nil {
		return &State{Version: Version, Status: container.StateExited, ExitCode: 255,
			Error: fmt.Sprintf("the record of the last run is damaged (%s)", s.statePath(id))}, nil
	}
	return &st, nil
}

// Put writes a changed record.
func (s *Store) Put(r *Record) error {
	r.Version = max(r.Version, Version)
	b, err := encodeRecord(r)
	if err != nil {
		return fmt.Errorf("encode %s: %w", s.configPath(r.ID), err)
	}
	b = keepNewer(s.configPath(r.ID), b, r)
	return disk.Put(s.configPath(r.ID), b, 0o600)
}

// PutState writes a changed state: durable unless volatile.
func (s *Store) PutState(id string, st *State, volatile bool) error {
	st.Version = max(st.Version, Version)
	b, err := encodeState(st)
	if err != nil {
		return fmt.Errorf("encode state of %s: %w", id, err)
	}
	// Only a newer program can have written fields that are unknown here.
	if st.Version > Version {
		b = keepNewer(s.statePath(id), b, st)
	}
	if volatile {
		return disk.PutVolatile(s.statePath(id), b, 0o600)
	}
	return disk.Put(s.statePath(id), b, 0o600)
}

// Lock takes the container's OFD lock without waiting; nil when a monitor (or another
// remover) holds it. fault.NotFound when the container is gone.
func (s *Store) Lock(id string) (*os.File, error) { return lockIn(s.containers(), id) }

// LockRetired is Lock for a retired container.
func (s *Store) LockRetired(id string) (*os.File, error) { return lockIn(s.trash(), id) }

func lockIn(dir, id string) (*os.File, error) {
	f, err := openLock(dir, id, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	ok, err := linux.LockOFD(f)
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	if !ok {
		f.Close()
		return nil, nil
	}
	// Between open and lock the container may have been removed: the lock of a file that
	// has no name any more protects nothing.
	mine, err1 := f.Stat()
	here, err2 := os.Lstat(f.Name())
	if err1 != nil || err2 != nil || !os.SameFile(mine, here) {
		f.Close()
		return nil, notFound(id)
	}
	return f, nil
}

// Running asks, without taking it, whether the container's lock is held.
func (s *Store) Running(id string) (bool, error) {
	// Read-only: closing it must not look like the end of a monitor to a watcher.
	f, err := openLock(s.containers(), id, os.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return linux.HeldOFD(f)
}

func openLock(dir, id string, flags int) (*os.File, error) {
	if !isID(id) {
		return nil, notFound(id)
	}
	f, err := os.OpenFile(filepath.Join(dir, id, "lock"), flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(id)
	}
	return f, err
}

func notFound(ref string) error { return fault.NotFoundf("No such container: %s", ref) }

// keepNewer adds to b, the JSON of v, what the file at path holds and v's type does not know.
func keepNewer(path string, b []byte, v any) []byte {
	old, err := os.ReadFile(path)
	if err != nil || bytes.Equal(old, b) {
		return b // nothing to keep
	}
	return mergeUnknown(old, b, v)
}

// Stamp tells one version of a record from another without reading it: a changed record is another file.
type Stamp struct {
	ino           uint64
	changed, size int64
}

// Changed is when the file became this one.
func (s Stamp) Changed() time.Time { return time.Unix(0, s.changed) }

// Stamp looks at the record of a container.
func (s *Store) Stamp(id string) (Stamp, error) {
	if !isID(id) {
		return Stamp{}, notFound(id)
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.configPath(id), &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Stamp{}, notFound(id)
		}
		return Stamp{}, &fs.PathError{Op: "stat", Path: s.configPath(id), Err: err}
	}
	return Stamp{st.Ino, st.Ctim.Nano(), st.Size}, nil
}
