// Contexts that are no directory yet: a git repository, an archive or a Dockerfile from a
// server or from a stream. They are put into a directory first, by descriptors.
package builder

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/dockerfile"
	"keg/internal/fault"
	"keg/internal/linux"
)

// IsRemote tells an address from the name of a directory, by Docker's rules.
func IsRemote(s string) bool {
	return isHTTP(s) || isGit(s) || strings.HasPrefix(s, "github.com/")
}

// Fetched is a context that was fetched: a directory, or only a Dockerfile.
type Fetched struct {
	Dir  string // below the one given
	Text []byte // of a Dockerfile that came alone
}

// FetchContext puts what is at the address into dir, an empty directory of the caller's;
// env has the proxies.
func FetchContext(ctx context.Context, address, dir string, env map[string]string) (Fetched, error) {
	if isGit(address) || strings.HasPrefix(address, "github.com/") {
		return fetchGit(ctx, address, dir, env)
	}
	resp, err := (&solver{}).get(ctx, address, remembered{})
	if err != nil {
		return Fetched{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Fetched{}, fault.NotFoundf("download %s: the server answered %s", address, resp.Status)
	}
	f, err := ReadContext(ctx, resp.Body, dir)
	if err != nil {
		err = fmt.Errorf("%s: %w", address, err)
	}
	return f, err
}

func fetchGit(ctx context.Context, address, dir string, env map[string]string) (Fetched, error) {
	g, err := parseGit(address)
	if err != nil {
		return Fetched{}, err
	}
	commit, name, err := g.resolve(ctx, env)
	if err != nil {
		return Fetched{}, err
	}
	if err := g.clone(ctx, env, commit, name, dir); err != nil {
		return Fetched{}, err
	}
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		return Fetched{}, err
	}
	at, err := below(dir, g.dir)
	return Fetched{Dir: at}, err
}

// below is the path of a directory of a foreign tree, without links on the way.
func below(dir, sub string) (string, error) {
	root, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	fd, err := openBeneath(int(root.Fd()), strings.TrimPrefix(sub, "/"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", fault.Invalidf("the directory %q of the repository: %w", sub, err)
	}
	unix.Close(fd)
	return filepath.Join(dir, sub), nil
}

// ReadContext takes a context from a stream: an archive, compressed or not, which is
// unpacked into dir, or else the text of a Dockerfile.
func ReadContext(ctx context.Context, r io.Reader, dir string) (Fetched, error) {
	b := bufio.NewReaderSize(r, 256<<10) // as large as that of archive, which then takes it over
	head, err := b.Peek(512)
	if len(head) == 0 && (err == nil || errors.Is(err, io.EOF)) {
		return Fetched{}, fault.Invalidf("the Dockerfile on stdin is empty")
	}
	t, _, done, err := archive(b)
	if err != nil {
		return Fetched{}, err
	}
	if t == nil {
		text, err := io.ReadAll(io.LimitReader(b, dockerfile.MaxSize+1))
		if err == nil && len(text) > dockerfile.MaxSize {
			err = fault.Invalidf("the Dockerfile is larger than %d MiB", dockerfile.MaxSize>>20)
		}
		return Fetched{Dir: dir, Text: text}, err
	}
	defer done()
	return Fetched{Dir: dir}, unpackContext(ctx, t, dir)
}

func unpackContext(ctx context.Context, t *tar.Reader, dir string) error {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	h, err := t.Next()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fault.Invalidf("read the archive of the context: %w", err)
	}
	u := unpacker{copier: copier{ctx: ctx, root: int(root.Fd()), buffer: make([]byte, 256<<10)}}
	defer u.close()
	if err := u.all(h, t); err != nil {
		return fmt.Errorf("unpack the context: %w", err)
	}
	return nil
}

// ReadDockerfile reads one below a fetched context. Its name may be foreign.
func (f Fetched) ReadDockerfile(name string) ([]byte, error) {
	root, err := os.Open(f.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, err := linux.OpenInRoot(int(root.Fd()), name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.NotFoundf("failed to read dockerfile: open %s: no such file or directory", name)
	}
	defer file.Close()
	return readRegular(file, dockerfile.MaxSize)
}

// Download writes what a server sends.
func Download(ctx context.Context, address string, w io.Writer) error {
	resp, err := (&solver{}).get(ctx, address, remembered{})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fault.Unavailablef("download %s: %w", address, err)
	}
	return nil
}
