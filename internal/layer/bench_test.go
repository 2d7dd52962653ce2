package layer

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"keg/internal/image"
)

// TestUnpackSpeed compares with tar on a real archive: KEG_LAYER=file.tar.gz. Fresh
// directories each time, since ext4 is slow for a while after deletions.
func TestUnpackSpeed(t *testing.T) {
	blob := os.Getenv("KEG_LAYER")
	if blob == "" {
		t.Skip("needs KEG_LAYER, the path of a large .tar.gz or .tar.zst")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: sets owners")
	}
	head := make([]byte, 4)
	f, err := os.Open(blob)
	if err != nil {
		t.Fatal(err)
	}
	f.Read(head)
	f.Close()
	kind := Sniff(head)
	base := t.TempDir()
	for range 3 {
		d, _ := os.MkdirTemp(base, "tar")
		start := time.Now()
		if out, err := exec.Command("tar", "-C", d, "-xf", blob).CombinedOutput(); err != nil {
			t.Fatalf("tar: %s", out)
		}
		tarTime := time.Since(start)
		d, _ = os.MkdirTemp(base, "keg")
		start = time.Now()
		unpackFile(t, blob, kind, d)
		ours := time.Since(start)
		t.Logf("tar %v, ours %v, ratio %.2f", tarTime, ours, float64(ours)/float64(tarTime))
	}
	_ = filepath.Join
}

func unpackFile(t *testing.T, blob string, kind image.Compression, dir string) Result {
	f, err := os.Open(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := Decompress(f, kind)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	root, _ := os.Open(dir)
	defer root.Close()
	res, err := Apply(context.Background(), r, root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return res
}
