// Reading the Dockerfile and its ignore file.
package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"keg/internal/dockerfile"
	"keg/internal/fault"
)

const defaultDockerfile = "Dockerfile"

func (d deps) loadDefinition(o Options, bc *buildContext) (_ *dockerfile.File, err error) {
	name := defaultDockerfile
	if o.Dockerfile != "" && o.Dockerfile != "-" {
		name = filepath.Base(o.Dockerfile)
	}
	v := d.progress.start("[internal] load build definition from " + name)
	defer func() { v.done(err) }()
	text := o.Text
	switch o.Dockerfile {
	case "-":
	case "":
		text, err = bc.readSmall(defaultDockerfile, dockerfile.MaxSize)
		if notExist(err) { // Docker takes this one as well
			if lower, e := bc.readSmall("dockerfile", dockerfile.MaxSize); !notExist(e) {
				text, err = lower, e
			}
		}
	default:
		text, err = readPath(o.Dockerfile, dockerfile.MaxSize)
	}
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) && notExist(err) {
			return nil, fault.NotFoundf("failed to read dockerfile: open %s: no such file or directory", name)
		}
		return nil, fmt.Errorf("failed to read dockerfile: %w", err)
	}
	v.status("transferring dockerfile: " + size(int64(len(text))) + " done")
	return dockerfile.Parse(text, name)
}

// readPath reads a file that the user named on the command line.
func readPath(p string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(p, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readRegular(f, limit)
}

// loadIgnore reads <Dockerfile>.dockerignore, else .dockerignore of the context.
func (d deps) loadIgnore(o Options, bc *buildContext) (err error) {
	v := d.progress.start("[internal] load .dockerignore")
	defer func() { v.done(err) }()
	name, text, err := readIgnore(o, bc)
	if err != nil {
		return fmt.Errorf("failed to read %s: %w", name, err)
	}
	v.status("transferring context: " + size(int64(len(text))) + " done")
	bc.ignore, err = parseIgnore(name, text)
	return err
}

func readIgnore(o Options, bc *buildContext) (name string, text []byte, err error) {
	switch o.Dockerfile {
	case "-":
	case "":
		name = defaultDockerfile + ".dockerignore"
		text, err = bc.readSmall(name, maxIgnoreFile)
	default:
		name = filepath.Base(o.Dockerfile) + ".dockerignore"
		text, err = readPath(o.Dockerfile+".dockerignore", maxIgnoreFile)
	}
	if name != "" && !notExist(err) {
		return name, text, err
	}
	name = ".dockerignore"
	if text, err = bc.readSmall(name, maxIgnoreFile); notExist(err) {
		err = nil
	}
	return name, text, err
}

// size as progress shows it: "153B", "1.53kB".
func size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
