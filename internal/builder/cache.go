// The step cache on disk: what was made, from what, and for which Dockerfile last.
package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
	"keg/internal/fault"
)

// cache owns the directory of the steps.
type cache struct{ root string }

var cacheDirs = [...]string{"inputs", "last", "sums", "trees", "mounts", "held", "urls"}

func (c cache) open() error {
	if _, err := os.Stat(c.dir("urls")); err == nil {
		return nil
	}
	for _, d := range cacheDirs {
		if err := os.MkdirAll(c.dir(d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func (c cache) dir(name string) string      { return filepath.Join(c.root, name) }
func (c cache) record(key string) string    { return filepath.Join(c.root, key) }
func (c cache) inputs(key string) string    { return filepath.Join(c.root, "inputs", key) }
func (c cache) last(build string) string    { return filepath.Join(c.root, "last", build) }
func (c cache) sumsFile(ctx string) string  { return filepath.Join(c.root, "sums", ctx) }
func (c cache) tree(hash string) string     { return filepath.Join(c.root, "trees", hash) }
func (c cache) url(hash string) string      { return filepath.Join(c.root, "urls", hash) }
func (c cache) mountDir(name string) string { return filepath.Join(c.root, "mounts", name) }

// hashName is a file name made of foreign text.
func hashName(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// recordVersion is that of Record and of what lies beside it.
const recordVersion = 1

// Record is a step that was done.
type Record struct {
	Version int             `json:"v"`
	Key     string          `json:"key"`
	Step    string          `json:"step"` // as shown without numbers: "RUN make"
	Layer   digest.Digest   `json:"layer"`
	Size    int64           `json:"size"`  // of the layer's tar
	Stack   []digest.Digest `json:"stack"` // what the layer stands on, bottom first
	Created time.Time       `json:"created"`
	Took    time.Duration   `json:"took"`
	Used    time.Time       `json:"-"` // last time, roughly
}

// Layers is the stack of the step's result.
func (r *Record) Layers() []digest.Digest {
	return append(r.Stack[:len(r.Stack):len(r.Stack)], r.Layer)
}

// get reads a record; a damaged one is as good as none.
func (c cache) get(key string) (*Record, bool) {
	b, err := os.ReadFile(c.record(key))
	if err != nil {
		return nil, false
	}
	var r Record
	if json.Unmarshal(b, &r) != nil || r.Version != recordVersion || r.Key != key || r.Layer.Validate() != nil {
		return nil, false
	}
	return &r, true
}

// put writes the inputs and then the record: a record has its inputs. Neither is
// synced, since a lost one costs one step.
func (c cache) put(r *Record, in []Input) error {
	r.Version = recordVersion
	if err := disk.PutJSONVolatile(c.inputs(r.Key), in); err != nil {
		return err
	}
	return disk.PutJSONVolatile(c.record(r.Key), r)
}

// touch notes that a record was used, to the hour.
func (c cache) touch(key string, now time.Time) {
	p := c.record(key)
	if st, err := os.Stat(p); err == nil && now.Sub(st.ModTime()) > time.Hour {
		os.Chtimes(p, now, now)
	}
}

func (c cache) inputsOf(key string) ([]Input, bool) {
	var in []Input
	err := disk.GetJSON(c.inputs(key), &in)
	return in, err == nil
}

// lastBuild is what one Dockerfile's steps were the last time.
type lastBuild struct {
	Version int        `json:"v"`
	Steps   []lastStep `json:"steps"`
}

type lastStep struct {
	Stage string `json:"stage"`
	N     int    `json:"n"`
	Text  string `json:"text"` // as shown, without numbers
	Key   string `json:"key"`
}

// find returns the key of the same step the last time: the one with the same text, or
// else the one at the same place.
func (l *lastBuild) find(s lastStep) (key string, ok bool) {
	for _, o := range l.Steps {
		if o.Stage == s.Stage && o.Text == s.Text && (o.N == s.N || !ok) {
			key, ok = o.Key, true
		}
	}
	if ok {
		return key, true
	}
	for _, o := range l.Steps {
		if o.Stage == s.Stage && o.N == s.N {
			return o.Key, true
		}
	}
	return "", false
}

// Records lists the steps in the cache at dir, in no order.
func Records(dir string) ([]Record, error) {
	c := cache{dir}
	ents, err := os.ReadDir(dir)
	if err != nil && !notExist(err) {
		return nil, err
	}
	var list []Record
	for _, e := range ents {
		if e.IsDir() || disk.IsTemp(e.Name()) {
			continue
		}
		r, ok := c.get(e.Name())
		if !ok {
			continue
		}
		if st, err := e.Info(); err == nil {
			r.Used = st.ModTime()
		}
		list = append(list, *r)
	}
	return list, nil
}

// Forget removes steps from the cache at dir. Their layers are for the snapshots to
// sweep, once nothing else stands on them.
func Forget(dir string, keys ...string) error {
	c := cache{dir}
	var errs []error
	for _, k := range keys {
		if len(k) != sha256.Size*2 || strings.Trim(k, "0123456789abcdef") != "" {
			return fault.Invalidf("%q is not the key of a build step", k)
		}
		for _, p := range [...]string{c.record(k), c.inputs(k)} {
			if err := os.Remove(p); err != nil && !notExist(err) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// keyPrefix starts the names of active snapshots of builds: build-<holder>-<n>.
const keyPrefix = "build-"

// Sweep removes what killed builds left: active snapshots whose builder is gone, and
// its directories. It never touches a build at work.
func Sweep(ctx context.Context, d Deps) error {
	return errors.Join(sweepSecrets(d.Run), sweep(ctx, cache{d.Steps}, d.Snapshots))
}

func sweep(ctx context.Context, c cache, snaps snapshots) error {
	keys, err := snaps.Keys()
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range keys {
		rest, ours := strings.CutPrefix(k, keyPrefix)
		holder, _, ok := strings.Cut(rest, "-")
		if !ours || !ok {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if c.held(holder) {
			continue
		}
		errs = append(errs, snaps.Remove(k))
	}
	return errors.Join(append(errs, disk.Sweep(c.dir("held")))...)
}

// held reports whether a builder lives: its directory carries its flock.
func (c cache) held(holder string) bool {
	f, err := os.Open(filepath.Join(c.dir("held"), holder))
	if err != nil {
		return false
	}
	defer f.Close()
	return !flockFree(f)
}
