// WORKDIR: a directory that is there when the next step starts.
package builder

import (
	"context"
	"os"
	"strings"

	"keg/internal/snapshot"
)

// workdirOp makes dir and its missing parents, owned by the user of the time.
type workdirOp struct{ dir, user string }

func (o *workdirOp) reads() []*stage { return nil }

func (o *workdirOp) inputs(_ context.Context, _ *solver, in *inputs) error {
	in.add(kindInstruction, "WORKDIR", o.dir)
	in.add(kindUser, "", o.user)
	return nil
}

func (o *workdirOp) perform(ctx context.Context, s *solver, w *work) error {
	// Volatile: ending the mount must not flush the file system; Sync does, once.
	fd, err := s.snaps.Mount(w.key, snapshot.MountOptions{Volatile: true})
	if err != nil {
		return err
	}
	root := os.NewFile(uintptr(fd), "/")
	defer root.Close()
	c := copier{ctx: ctx, root: fd, epoch: w.epoch}
	defer c.close()
	if o.user != "" && !strings.HasPrefix(o.user, ":") {
		spec, err := parseOwner(o.user)
		if err != nil {
			return err
		}
		if c.chown, err = spec.resolve(fd); err != nil {
			return err
		}
	}
	return c.mkdirAll(o.dir)
}
