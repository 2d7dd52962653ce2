package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

const many = 1000 // containers and images of the lists

// day holds what everyday commands are measured on.
type day struct {
	dir string
	mb  int // of what counts as a gigabyte
}

// prepareDay gives both engines a small image, an image of a gigabyte, a thousand images, a thousand
// containers, a container with a large file and one with a long log.
func (b *bench) prepareDay(d *day, engines ...*engine) error {
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	small := rootTar(func(w *tar.Writer) error {
		w.WriteHeader(&tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755})
		for _, name := range []string{"sh", "cat", "sleep", "head", "yes", "dd", "true"} {
			w.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
		}
		w.WriteHeader(&tar.Header{Name: "bin/busybox", Size: int64(len(box)), Mode: 0o755})
		_, err := w.Write(box)
		return err
	})
	if err := os.WriteFile(d.dir+"/small.tar", small, 0o644); err != nil {
		return err
	}
	if err := b.tars(d.dir, 1, d.mb/3); err != nil { // what does not compress
		return err
	}
	if err := d.big(d.dir+"/t0.tar", d.dir+"/big.tar"); err != nil {
		return err
	}
	if err := d.large(); err != nil {
		return err
	}
	if err := manyImages(d.dir+"/many.tar", small); err != nil {
		return err
	}
	for _, e := range engines {
		if err := d.prepareOne(e); err != nil {
			return err
		}
	}
	return nil
}

func (d *day) prepareOne(e *engine) error {
	for _, args := range [][]string{
		{"import", d.dir + "/small.tar", "small"}, {"import", d.dir + "/big.tar", "big"}, {"load", "-q", "-i", d.dir + "/many.tar"},
		{"create", "--name", "box", "small", "true"},
		{"run", "--name", "talked", "--network", "none", "--log-driver", "json-file", "--log-opt", "max-size=4g", "small", "sh", "-c",
			fmt.Sprintf("yes %0990d | head -n %d", 0, d.mb*1000)},
	} {
		if err := e.quiet(args...); err != nil {
			return err
		}
	}
	if err := e.run("cp", d.dir+"/large", "box:/large"); err != nil {
		return err
	}
	// Two at once: it is not what is measured.
	names := make(chan string)
	errs := make([]error, 2)
	var w sync.WaitGroup
	for i := range errs {
		w.Go(func() {
			for n := range names {
				if err := e.run("create", "--name", n, "--network", "none", "-l", "n="+n, "small", "true"); err != nil {
					errs[i] = err
				}
			}
		})
	}
	for i := range many - 2 {
		names <- "c" + strconv.Itoa(i)
	}
	close(names)
	w.Wait()
	return errors.Join(errs...)
}

// quiet runs a command whose output nobody wants.
func (e *engine) quiet(args ...string) error {
	cmd := e.command(args...)
	var errw bytes.Buffer
	cmd.Stderr = &errw
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %q: %w\n%s", e.name, args, err, errw.Bytes())
	}
	return nil
}

func rootTar(fill func(*tar.Writer) error) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(fill(w), w.Close()); err != nil {
		panic(err) // memory only
	}
	return b.Bytes()
}

// large writes the file that is copied.
func (d *day) large() error {
	f, err := os.Create(d.dir + "/large")
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{2}), int64(d.mb)*1_000_000)
	return errors.Join(err, f.Close())
}

// big makes an image of a gigabyte out of a tar: its large files, and 20,000 small ones that do compress.
func (d *day) big(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := tar.NewWriter(out)
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		w.WriteHeader(h)
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
	const files = 20_000
	each := d.mb / 3 * 2 << 20 / files
	for i := range files {
		w.WriteHeader(&tar.Header{Name: fmt.Sprintf("s/%d/%d", i/200, i), Mode: 0o644, Size: int64(each)})
		line := fmt.Appendf(nil, "line of file %d, which is like any other line of it\n", i)
		if _, err := w.Write(bytes.Repeat(line, each/len(line)+1)[:each]); err != nil {
			return err
		}
	}
	return w.Close()
}

// manyImages writes an archive of images that share their only layer.
func manyImages(to string, layer []byte) error {
	sum := sha256.Sum256(layer)
	type image struct {
		Config           string
		RepoTags, Layers []string
	}
	var list []image
	archive := rootTar(func(w *tar.Writer) error {
		put := func(name string, b []byte) {
			w.WriteHeader(&tar.Header{Name: name, Size: int64(len(b)), Mode: 0o644})
			w.Write(b)
		}
		put("layer.tar", layer)
		for i := range many {
			config, err := json.Marshal(map[string]any{
				"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
				"config":  map[string]any{"Cmd": []string{"true"}, "Labels": map[string]string{"n": strconv.Itoa(i)}},
				"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sum)}},
				"history": []map[string]any{{"created": "2026-01-01T00:00:00Z", "created_by": "import"}},
			})
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%x.json", sha256.Sum256(config))
			put(name, config)
			list = append(list, image{name, []string{fmt.Sprintf("many:%d", i)}, []string{"layer.tar"}})
		}
		manifest, err := json.Marshal(list)
		put("manifest.json", manifest)
		return err
	})
	return os.WriteFile(to, archive, 0o644)
}

func (d *day) rows(rounds int) []*row {
	out := filepath.Join(d.dir, "out")
	clean := func(*engine) error { return os.RemoveAll(out) }
	return []*row{
		{name: "ps -a, 1,000 containers", aim: "100 ms", rounds: 3 * rounds, do: func(e *engine) error { return e.run("ps", "-a") }},
		{name: "images, 1,000 images", aim: "60 ms", rounds: 3 * rounds, do: func(e *engine) error { return e.run("images") }},
		{name: "logs --tail 10 of a log of 1 GB", aim: "20 ms", rounds: 3 * rounds, do: func(e *engine) error { return e.run("logs", "--tail", "10", "talked") }},
		{name: "cp of 1 GB out", aim: "1/3", rounds: rounds, before: clean, do: func(e *engine) error { return e.run("cp", "box:/large", out) }},
		{name: "cp of 1 GB in", aim: "1/3", rounds: rounds, do: func(e *engine) error { return e.run("cp", d.dir+"/large", "box:/again") }},
		{name: "save of an image of 1 GB", aim: "1/2", rounds: rounds, before: clean, do: func(e *engine) error { return e.run("save", "-o", out, "big") }},
		{name: "load of it", aim: "1/2", rounds: rounds, before: d.unload(out), do: func(e *engine) error { return e.run("load", "-q", "-i", out) }},
		{name: "image analyze of 1 GB", aim: "500 ms", rounds: 3 * rounds, alone: true, do: func(e *engine) error { return e.run("image", "analyze", "big") }},
	}
}

// unload saves the image and forgets it.
func (d *day) unload(out string) func(*engine) error {
	return func(e *engine) error {
		if err := errors.Join(os.RemoveAll(out), e.run("save", "-o", out, "big")); err != nil {
			return err
		}
		return e.run("rmi", "-f", "big")
	}
}
