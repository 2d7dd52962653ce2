// The context of keg build: a directory, a stream, an address; and what is told of the result.

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"keg/internal/builder"
	"keg/internal/engine"
	"keg/internal/image"
)

const maxDockerfile = 4 << 20

// buildContext finds the context; clean removes the directory that was made for it.
func (a *app) buildContext(ctx context.Context, req *builder.Options, dir string) (clean func(), err error) {
	clean = func() {}
	if dir == "-" && req.Dockerfile == "-" {
		return clean, fmt.Errorf("invalid argument: can't use stdin for both build context and dockerfile")
	}
	if req.Dockerfile == "-" {
		if req.Text, err = io.ReadAll(io.LimitReader(a.in, maxDockerfile+1)); err != nil {
			return clean, fmt.Errorf("read the Dockerfile from stdin: %w", err)
		}
		if err := checkText(req.Text); err != nil {
			return clean, err
		}
	}
	if dir == "-" || isAddress(dir) {
		return a.fetchedContext(ctx, req, dir)
	}
	if req.Context, err = filepath.Abs(dir); err != nil {
		return clean, err
	}
	st, err := os.Stat(req.Context)
	switch {
	case err != nil:
		return clean, fmt.Errorf("unable to prepare context: path %q not found", dir)
	case !st.IsDir():
		return clean, fmt.Errorf("unable to prepare context: %q is not a directory", dir)
	}
	return clean, nil
}

// isAddress tells an address from a directory that happens to be called like one.
func isAddress(dir string) bool {
	if _, err := os.Stat(dir); err == nil {
		return false
	}
	return builder.IsRemote(dir) || strings.Contains(dir, "://")
}

// fetchedContext puts a context from stdin, a server or a repository into a directory of
// its own. Its Dockerfile is read below it: a link in it leads nowhere else.
func (a *app) fetchedContext(ctx context.Context, req *builder.Options, from string) (clean func(), err error) {
	clean = func() {}
	tmp, err := os.MkdirTemp("", "keg-build-")
	if err != nil {
		return clean, err
	}
	clean = func() { os.RemoveAll(tmp) }
	var f builder.Fetched
	if from == "-" {
		f, err = builder.ReadContext(ctx, a.in, tmp)
	} else {
		f, err = builder.FetchContext(ctx, from, tmp, a.env)
	}
	if err != nil {
		return clean, err
	}
	if req.Context = f.Dir; req.Context == "" {
		req.Context = tmp
	}
	switch {
	case req.Dockerfile == "-":
	case f.Text != nil:
		req.Text, req.Dockerfile = f.Text, "-"
	case req.Dockerfile != "":
		if req.Text, err = f.ReadDockerfile(req.Dockerfile); err != nil {
			return clean, err
		}
		req.Dockerfile = "-"
	}
	return clean, nil
}

// namedContexts reads --build-context NAME=PLACE; clean removes what was fetched.
func (a *app) namedContexts(ctx context.Context, req *builder.Options, specs []string) (clean func(), err error) {
	var dirs []string
	clean = func() {
		for _, d := range dirs {
			os.RemoveAll(d)
		}
	}
	for _, s := range specs {
		name, place, ok := strings.Cut(s, "=")
		if !ok || name == "" || place == "" {
			return clean, fmt.Errorf("invalid --build-context %q: want NAME=DIRECTORY, NAME=docker-image://IMAGE, NAME=oci-layout://DIRECTORY[:TAG] or NAME=ADDRESS", s)
		}
		if req.Contexts == nil {
			req.Contexts = map[string]builder.Context{}
		}
		var c builder.Context
		if img, is := strings.CutPrefix(place, "docker-image://"); is {
			if _, err := image.ParseReference(img); err != nil {
				return clean, fmt.Errorf("invalid --build-context %q: %w", s, err)
			}
			c.Image = img
		} else if strings.HasPrefix(place, "oci-layout://") {
			if c.Layout, err = filepath.Abs(strings.TrimPrefix(place, "oci-layout://")); err != nil {
				return clean, err
			}
		} else if isAddress(place) {
			tmp, err := os.MkdirTemp("", "keg-build-")
			if err != nil {
				return clean, err
			}
			dirs = append(dirs, tmp)
			f, err := builder.FetchContext(ctx, place, tmp, a.env)
			if err != nil {
				return clean, fmt.Errorf("--build-context %s: %w", name, err)
			}
			c.Dir = firstOf(f.Dir, tmp)
		} else {
			if c.Dir, err = filepath.Abs(place); err != nil {
				return clean, err
			}
			if st, err := os.Stat(c.Dir); err != nil || !st.IsDir() {
				return clean, fmt.Errorf("invalid --build-context %q: %s is not a directory", s, place)
			}
		}
		req.Contexts[name] = c
	}
	return clean, nil
}

// checkText tells a Dockerfile from an archive.
func checkText(b []byte) error {
	switch {
	case len(b) > maxDockerfile:
		return fmt.Errorf("the Dockerfile on stdin is larger than 4 MiB")
	case len(b) > 262 && string(b[257:262]) == "ustar", len(b) > 2 && b[0] == 0x1f && b[1] == 0x8b:
		return fmt.Errorf("stdin holds an archive: name it as the context (-), not as the Dockerfile")
	case len(b) == 0:
		return fmt.Errorf("the Dockerfile on stdin is empty")
	}
	return nil
}

// writeMetadata writes what buildx writes, under its keys.
func writeMetadata(file string, r *engine.Built, tags []image.Reference) error {
	names := make([]string, len(tags))
	for i, t := range tags {
		names[i] = t.String()
	}
	m := map[string]any{
		"containerimage.config.digest": r.ConfigID,
		"containerimage.digest":        r.Manifest.Digest,
		"containerimage.descriptor":    r.Manifest,
	}
	if len(names) > 0 {
		m["image.name"] = strings.Join(names, ",")
	}
	for _, d := range r.Pushed { // what the registry has, once it has it
		m["containerimage.digest"] = d
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o666)
}
