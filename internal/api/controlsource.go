package api

// References that are one source, such as a repository: clients read files of it, to find what is to be built.

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/buildcontrol"
	"keg/internal/builder"
	"keg/internal/buildsession"
	"keg/internal/fault"
	"keg/internal/grpc"
	"keg/internal/linux"
)

// source fetches what the definition names, once, and returns its directory.
func (r *reference) source(ctx context.Context) (string, error) {
	release, err := r.hold(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	if r.front.Definition == nil {
		return "", fault.Unsupportedf("files of what was built cannot be read here: export them")
	}
	dir := filepath.Join(r.dir, "source")
	if r.prepared {
		return dir, nil
	}
	op, unpacked, err := buildcontrol.ParseSource(r.front.Definition)
	if err != nil {
		return "", err
	}
	if r.dir, r.remove, err = makeScratch(r.c.s.o.Scratch); err != nil {
		return "", err
	}
	dir = filepath.Join(r.dir, "source")
	r.trace = newTrace(r.solve.Ref+" "+r.id, func(t buildsession.Trace) { r.solve.feed.put(ctx, t) })
	if err := r.fetchSource(ctx, op, unpacked, dir); err != nil {
		r.drop()
		return "", err
	}
	r.prepared = true
	return dir, nil
}

func (r *reference) fetchSource(ctx context.Context, op buildcontrol.Operation, unpacked bool, dir string) (err error) {
	if name, ok := strings.CutPrefix(op.Identifier, "local://"); ok {
		if r.session, err = r.c.s.sessions.get(ctx, r.solve.Session); err != nil {
			return err
		}
		session, err := r.sessionOf(ctx, name)
		if err != nil {
			return err
		}
		var follow []string
		if text := op.Attrs["local.followpaths"]; text != "" {
			if err := json.Unmarshal([]byte(text), &follow); err != nil {
				return fault.Invalidf("paths of the source %s: %w", op.Identifier, err)
			}
		}
		root, err := fetchFiles(ctx, session, buildsession.Select{Dir: name, Follow: follow}, dir, nil)
		if err != nil {
			return err
		}
		return root.Close()
	}
	address, err := addressOf(r.front.Definition)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if strings.HasPrefix(op.Identifier, "git://") || unpacked {
		f, err := r.fetch(ctx, address, dir, "[internal] load")
		if err != nil || f.Dir == dir || f.Dir == "" {
			return err
		}
		// A part of the repository: it alone is the source.
		if err := os.Rename(f.Dir, dir+".part"); err != nil {
			return err
		}
		return errors.Join(os.Rename(dir, dir+".rest"), os.Rename(dir+".part", dir))
	}
	done := r.trace.vertex("[internal] load " + address)
	defer func() { done(err) }()
	name := op.Attrs["http.filename"]
	if name == "" {
		name = path.Base(strings.TrimSuffix(address, "/"))
	}
	if !filepath.IsLocal(name) || strings.Contains(name, "/") {
		return fault.Invalidf("a source cannot be a file of the name %q", name)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(builder.Download(ctx, address, f), f.Close())
}

// file opens a path of a source. Its links lead nowhere else.
func (c *control) file(ctx context.Context, ref, name string, flags int) (*os.File, error) {
	r, err := c.find(ref)
	if err != nil {
		return nil, err
	}
	dir, err := r.source(ctx)
	if err != nil {
		return nil, err
	}
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := linux.OpenInRoot(int(root.Fd()), path.Clean("/"+name), flags, 0)
	if err != nil {
		var errno unix.Errno
		errors.As(err, &errno)
		return nil, fault.As(fault.NotFound, &fs.PathError{Op: "open", Path: name, Err: errno})
	}
	return f, nil
}

// maxRead is what one answer has of a file.
const maxRead = grpc.MaxMessage - 4096

func (c *control) readFile(st *grpc.Stream, b []byte) ([]byte, error) {
	q, err := buildcontrol.ParseFileRequest(b)
	if err != nil {
		return nil, err
	}
	f, err := c.file(st.Context(), q.Ref, q.Path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fault.Invalidf("%s is no file", q.Path)
	}
	if q.Offset < 0 || q.Length < 0 {
		return nil, fault.Invalidf("a part of %s from %d of %d bytes", q.Path, q.Offset, q.Length)
	}
	limit := q.Length
	if limit == 0 || limit > maxRead {
		limit = maxRead + 1
	}
	data, err := io.ReadAll(io.NewSectionReader(f, q.Offset, limit))
	if err == nil && len(data) > maxRead {
		err = fault.Invalidf("%s is larger than %d bytes: read it in parts", q.Path, maxRead)
	}
	return buildcontrol.Data(data).Encode(), err
}

func (c *control) statFile(st *grpc.Stream, b []byte) ([]byte, error) {
	q, err := buildcontrol.ParseStatRequest(b)
	if err != nil {
		return nil, err
	}
	f, err := c.file(st.Context(), q.Ref, q.Path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return grpc.AppendMessage(nil, 1, buildsession.StatOf(strings.TrimPrefix(path.Clean("/"+q.Path), "/"), info).Encode()), nil
}

func (c *control) readDir(st *grpc.Stream, b []byte) (answer []byte, err error) {
	q, err := buildcontrol.ParseDirRequest(b)
	if err != nil {
		return nil, err
	}
	f, err := c.file(st.Context(), q.Ref, q.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range list {
		if ok, err := path.Match(q.Pattern, e.Name()); q.Pattern != "" && (err != nil || !ok) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		answer = grpc.AppendMessage(answer, 1, buildsession.StatOf(e.Name(), info).Encode())
		if len(answer) > maxRead {
			return nil, fault.Invalidf("%s has too many files", q.Path)
		}
	}
	return answer, nil
}

// inputs tells the definitions that Control/Solve came with.
func (c *control) inputs(st *grpc.Stream, _ []byte) (answer []byte, err error) {
	v, err := c.named(st)
	if err != nil {
		return nil, err
	}
	for name, def := range v.Inputs {
		answer = grpc.AppendMessage(answer, 1, grpc.AppendMessage(grpc.AppendText(nil, 1, name), 2, def))
	}
	return answer, nil
}
