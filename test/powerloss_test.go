package test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"
)

const (
	fsShutdown    = 0x8004587d // FS_IOC_SHUTDOWN
	goingNoFlush  = 2          // what is not in the journal on the disk is gone: as when the power fails
	smallDiskSize = 192 << 20
)

// loseDisk is an ext4 on a loop device that can lose its power.
type loseDisk struct{ file, dir string }

func newLoseDisk(t *testing.T) *loseDisk {
	t.Helper()
	d := &loseDisk{filepath.Join(t.TempDir(), "disk"), t.TempDir()}
	f, err := os.Create(d.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(smallDiskSize); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.file).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v: %s", err, out)
	}
	d.mount(t)
	t.Cleanup(func() { syscall.Unmount(d.dir, syscall.MNT_DETACH) })
	return d
}

// mount without ext4's help for programs that do not sync before they rename.
func (d *loseDisk) mount(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "loop,noauto_da_alloc", d.file, d.dir).CombinedOutput(); err != nil {
		t.Skipf("needs loop devices: %v: %s", err, out)
	}
}

func (d *loseDisk) powerFails(t *testing.T) {
	t.Helper()
	f, err := os.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), fsShutdown, goingNoFlush); err != nil {
		t.Fatal(err)
	}
}

func (d *loseDisk) again(t *testing.T) {
	t.Helper()
	if err := syscall.Unmount(d.dir, 0); err != nil {
		t.Fatal(err)
	}
	d.mount(t)
}

// acknowledged is what clients were told is stored: the manifest of a tag, and the one that was on its way when the power went.
type acknowledged struct {
	mu     sync.Mutex
	tags   map[string]string
	flying map[string]string
}

// pushUntil pushes images under a few tags and a tag of each one's own until the registry breaks.
func (a *acknowledged) pushUntil(ctx context.Context, host, worker string) {
	for n := 0; ctx.Err() == nil; n++ {
		img, err := random.Image(20_000, 2)
		if err != nil {
			return
		}
		d, _ := img.Digest()
		for _, tag := range []string{worker + "-moves", fmt.Sprintf("%s-%d", worker, n)} {
			ref, err := name.NewTag(host+"/x:"+tag, name.Insecure)
			if err != nil {
				return
			}
			a.mu.Lock()
			a.flying[tag] = d.String()
			a.mu.Unlock()
			if remote.Write(ref, img, remote.WithContext(ctx)) != nil {
				return
			}
			a.mu.Lock()
			a.tags[tag] = d.String()
			a.mu.Unlock()
		}
	}
}

// TestRegistrySurvivesPowerLoss: the power goes in the middle of pushes. What was acknowledged is there, whole, and no tag
// leads to half an image.
func TestRegistrySurvivesPowerLoss(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a file system on a loop device")
	}
	d := newLoseDisk(t)
	acked := 0
	for round := range soak(3, 60) {
		r := serveRegistry(t, "dir "+d.dir+"/store\nlog off\n")
		a := &acknowledged{tags: map[string]string{}, flying: map[string]string{}}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() { a.pushUntil(ctx, r.host, fmt.Sprintf("r%d-w%d", round, w)) })
		}
		time.Sleep(time.Duration(400+170*(round%5)) * time.Millisecond) // any moment will do
		d.powerFails(t)
		time.Sleep(50 * time.Millisecond) // what is answered now is a lie, if it is good
		stop()
		wg.Wait()
		r.end()
		d.again(t)

		r = serveRegistry(t, "dir "+d.dir+"/store\nlog off\n")
		acked += len(a.tags)
		for tag, want := range a.tags {
			if got := wholeImage(t, r.host, tag); got != want && got != a.flying[tag] {
				t.Errorf("round %d: %s is %q, not %s", round, tag, got, want)
			}
		}
		for tag := range a.flying {
			if a.tags[tag] == "" {
				wholeImage(t, r.host, tag) // all of it, or nothing
			}
		}
		// And a push works as before.
		pushRandom(t, r.host+"/after:1", 1000)
		r.end()
		if round%10 == 9 {
			os.RemoveAll(d.dir + "/store") // it is a small disk
		}
	}
	if acked < 8 {
		t.Errorf("only %d pushes were acknowledged: nothing was shown", acked)
	}
}

// wholeImage reads all of an image and returns its digest, "" when there is no such tag.
func wholeImage(t *testing.T, host, tag string) string {
	t.Helper()
	ref, err := name.NewTag(host+"/x:"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.Head("http://" + host + "/v2/x/manifests/" + tag); err != nil || resp.StatusCode == http.StatusNotFound {
		return ""
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Errorf("%s: %v", tag, err)
		return ""
	}
	layers, err := img.Layers()
	if err == nil {
		_, err = img.RawConfigFile()
	}
	for _, l := range layers {
		rc, lerr := l.Compressed() // compares what it reads with the digest
		if lerr == nil {
			_, lerr = io.Copy(io.Discard, rc)
			rc.Close()
		}
		if lerr != nil {
			err = lerr
		}
	}
	if err != nil {
		t.Errorf("%s leads to half an image: %v", tag, err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Error(err)
	}
	return d.String()
}
