package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/snapshot"
)

// built is what a build made, or how it failed.
type built struct {
	out    string
	code   int
	id     string
	tree   listing
	config map[string]any
}

// buildJob is a build for both engines.
type buildJob struct {
	tag, context string
	flags        []string
	env          []string
	stdin        []byte
}

func (j *buildJob) args(iid string) []string {
	args := []string{"build", "--network", "none", "--progress", "plain", "--iidfile", iid, "-t", j.tag}
	return append(append(args, j.flags...), j.context)
}

func (j *buildJob) run(cmd *exec.Cmd, iid string) (*built, error) {
	cmd.Env = append(cmd.Env, j.env...)
	cmd.Dir = filepath.Dir(iid)
	if j.stdin != nil {
		cmd.Stdin = bytes.NewReader(j.stdin)
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return nil, err
	}
	b := &built{out: string(out), code: cmd.ProcessState.ExitCode()}
	if b.code == 0 {
		id, err := os.ReadFile(iid)
		if err != nil {
			return nil, err
		}
		b.id = strings.TrimSpace(string(id))
	}
	return b, nil
}

// build has keg do it and reads the image from its store.
func (e *engine) build(j *buildJob) (*built, error) {
	iid := filepath.Join(e.t.TempDir(), "iid")
	b, err := j.run(e.command(j.args(iid)...), iid)
	if err != nil || b.code != 0 {
		return b, err
	}
	return b, b.read(filepath.Join(e.state, "root"))
}

// read reads the image from keg's store.
func (b *built) read(root string) error {
	raw, err := os.ReadFile(filepath.Join(root, "blobs", strings.ReplaceAll(b.id, ":", "/")))
	if err != nil {
		return err
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &b.config); err != nil {
		return err
	}
	snaps, err := snapshot.Open(root)
	if err != nil {
		return err
	}
	fd, err := snaps.View(config.RootFS.DiffIDs)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b.tree, err = listTree(fmt.Sprintf("/proc/self/fd/%d/", fd))
	return err
}

// buildkit is Debian's Docker engine, building with BuildKit.
type buildkit struct{ *dockerEngine }

func startBuildkit(t *testing.T, images ...string) *buildkit {
	t.Helper()
	b := &buildkit{startDockerdIn(t, 0, "--bridge", "none", "--storage-driver", "overlay2")}
	for _, ref := range images {
		b.must(nil, "pull", "-q", hub.addr+"/library/"+ref)
		b.must(nil, "tag", hub.addr+"/library/"+ref, ref)
	}
	return b
}

// build has BuildKit do it and reads the image from the engine's directory.
func (d *buildkit) build(j *buildJob) (*built, error) {
	iid := filepath.Join(d.t.TempDir(), "iid")
	cmd := d.command(j.args(iid)...)
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=1")
	b, err := j.run(cmd, iid)
	if err != nil || b.code != 0 {
		return b, err
	}
	raw, err := os.ReadFile(filepath.Join(d.data(), "image/overlay2/imagedb/content", strings.ReplaceAll(b.id, ":", "/")))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &b.config); err != nil {
		return nil, err
	}
	out, code := d.docker(nil, "image", "inspect", "--format", `{{.GraphDriver.Data.UpperDir}}:{{.GraphDriver.Data.LowerDir}}`, b.id)
	if code != 0 {
		return nil, fmt.Errorf("inspect %s: %s", b.id, out)
	}
	lower := strings.TrimSuffix(strings.TrimSpace(out), ":<no value>")
	b.tree, err = listOverlay(lower)
	return b, err
}

// listOverlay lists what a stack of directories is, the topmost first.
func listOverlay(lower string) (listing, error) {
	if !strings.Contains(lower, ":") {
		return listTree(lower)
	}
	at, err := os.MkdirTemp("", "kd-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(at)
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+lower); err != nil {
		return nil, fmt.Errorf("mount %s: %w", lower, err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	return listTree(at)
}

// imageConfig is what of a config both engines have to agree on, as lines.
func (b *built) imageConfig() listing {
	l := listing{}
	for _, k := range []string{"architecture", "os", "author", "variant"} {
		if v, ok := b.config[k]; ok {
			l[k] = text(v)
		}
	}
	config, _ := b.config["config"].(map[string]any)
	for k, v := range config {
		if !isZero(v) {
			l["config."+k] = text(v)
		}
	}
	history, _ := b.config["history"].([]any)
	for i, h := range history {
		for k, v := range h.(map[string]any) {
			if k != "created" && !isZero(v) {
				l[fmt.Sprintf("history.%d.%s", i, k)] = text(v)
			}
		}
	}
	rootfs, _ := b.config["rootfs"].(map[string]any)
	layers, _ := rootfs["diff_ids"].([]any)
	l["layers"] = fmt.Sprint(len(layers))
	return l
}

func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// isZero tells what is as good as absent.
func isZero(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case bool:
		return !v
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
