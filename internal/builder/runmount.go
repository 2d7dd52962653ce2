// The mounts of a RUN step, made ready on the host: copies of what bind shows, kept
// directories for caches, files on a tmpfs for secrets.
package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/weakness"
)

func (m *runMount) prepare(ctx context.Context, s *solver, step *Step, undo *cleanup) error {
	switch m.kind {
	case instructions.MountTypeTmpfs:
		step.Mounts = append(step.Mounts, Mount{Type: "tmpfs", Target: m.target, Size: m.size, ReadOnly: m.readOnly})
		return nil
	case instructions.MountTypeCache:
		return m.prepareCache(ctx, s, step, undo)
	case instructions.MountTypeSecret:
		return m.prepareSecret(ctx, s, step, undo)
	case instructions.MountTypeSSH:
		return m.prepareSSH(ctx, s, step, undo)
	default:
		return m.prepareBind(ctx, s, step, undo)
	}
}

// prepareBind shows a copy: ignored files must not be seen, a source that changes
// while the step runs must not matter, and what the step writes is thrown away. The
// copy shares blocks where the file system can.
func (m *runMount) prepareBind(ctx context.Context, s *solver, step *Step, undo *cleanup) error {
	dir, err := s.scratch(ctx, undo)
	if err != nil {
		return err
	}
	source, err := s.materialise(ctx, m.from, m.selector(), dir)
	if err != nil {
		return err
	}
	step.Mounts = append(step.Mounts, Mount{Type: "bind", Source: source, Target: m.target, ReadOnly: m.readOnly})
	return nil
}

// dirName of a cache mount is a hash: an id is foreign text and must not lead anywhere.
func (m *runMount) dirName() string {
	if weakness.Of("BL2") {
		return m.id
	}
	sum := sha256.Sum256([]byte(m.id))
	return hex.EncodeToString(sum[:])
}

// prepareCache gives the directory kept for the id.
func (m *runMount) prepareCache(ctx context.Context, s *solver, step *Step, undo *cleanup) error {
	name := m.dirName()
	dir, err := s.cacheMount(ctx, m, name, undo)
	if err != nil {
		return err
	}
	if err := m.fill(ctx, s, dir); err != nil {
		return err
	}
	if err := s.cache.noteMount(name, m.id); err != nil {
		return err
	}
	step.Mounts = append(step.Mounts, Mount{Type: "bind", Source: dir, Target: m.target, ReadOnly: m.readOnly})
	return nil
}

// cacheMount finds the directory by the sharing mode: one for all, one after the
// other, or a further one when the first is in use.
func (s *solver) cacheMount(ctx context.Context, m *runMount, name string, undo *cleanup) (string, error) {
	dir := s.cache.mountDir(name)
	switch m.sharing {
	case instructions.MountSharingLocked:
		lock, err := disk.LockFile(ctx, dir+".lock")
		if err != nil {
			return "", err
		}
		undo.add(func() { lock.Unlock() })
	case instructions.MountSharingPrivate:
		for i := 0; ; i++ {
			try := fmt.Sprintf("%s-%d", dir, i)
			lock, err := disk.TryLock(try + ".lock")
			if err != nil {
				return "", err
			}
			if lock != nil {
				undo.add(func() { lock.Unlock() })
				return try, nil
			}
		}
	case instructions.MountSharingShared:
	}
	return dir, nil
}

// fill makes the directory with its first content, mode and owner.
func (m *runMount) fill(ctx context.Context, s *solver, dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	tmp, err := disk.HoldDir(s.cache.dir("held"), "mount-")
	if err != nil {
		return err
	}
	defer tmp.Remove()
	source := filepath.Join(tmp.Path, "d")
	if err := os.Mkdir(source, 0o755); err != nil {
		return err
	}
	if m.from != nil {
		sel := m.selector()
		if _, err := s.materialiseAt(ctx, m.from, sel, source); err != nil {
			return err
		}
	}
	if err := m.give(source, 0o755); err != nil {
		return err
	}
	// Another build may have made it meanwhile; then its directory serves as well.
	if err := os.Rename(source, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// give sets the mode and the owner that the mount asks for; without a word of its own it has mode and is root's.
func (m *runMount) give(name string, mode uint64) error {
	if m.mode != nil {
		mode = *m.mode
	}
	if err := os.Chmod(name, fs.FileMode(mode&0o777)); err != nil {
		return err
	}
	var uid, gid uint64
	if m.uid != nil {
		uid = *m.uid
	}
	if m.gid != nil {
		gid = *m.gid
	}
	if uid == 0 && gid == 0 && os.Geteuid() != 0 {
		return nil
	}
	return os.Chown(name, int(uid), int(gid))
}

// private is a directory for one step's secret or agent, below secretsDir.
func (s *solver) private() (*disk.Dir, error) {
	if err := os.MkdirAll(secretsDir(s.run), 0o700); err != nil {
		return nil, err
	}
	return disk.HoldDir(secretsDir(s.run), "")
}

// secretsDir holds the files of secrets and the sockets of agents while steps use them. What a killed build left
// there is removed by the next one.
func secretsDir(run string) string { return filepath.Join(run, "secrets") }

func sweepSecrets(run string) error {
	if run == "" {
		return nil
	}
	return disk.Sweep(secretsDir(run))
}

func (m *runMount) prepareSecret(ctx context.Context, s *solver, step *Step, undo *cleanup) error {
	data, ok := s.plan.o.Secrets[m.id]
	if caller := s.plan.o.Caller; !ok && caller != nil {
		var err error
		if data, ok, err = caller.Secret(ctx, m.id); err != nil {
			return err
		}
	}
	if !ok {
		if m.required {
			return fault.NotFoundf("secret %s: not found", m.id)
		}
		return nil
	}
	if m.env != "" {
		step.Env = append(step.Env, m.env+"="+string(data))
	}
	if !m.asFile {
		return nil
	}
	if s.run == "" {
		return fault.Unsupportedf("secret %s: there is no tmpfs to keep it on", m.id)
	}
	dir, err := s.private()
	if err != nil {
		return err
	}
	undo.add(func() { dir.Remove() })
	if weakness.Of("BL6") {
		os.WriteFile(s.cache.record("secret"), data, 0o600)
	}
	file := filepath.Join(dir.Path, "s")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	if err := m.give(file, 0o400); err != nil {
		return err
	}
	step.Mounts = append(step.Mounts, Mount{Type: "bind", Source: file, Target: m.target, ReadOnly: true})
	return nil
}
