package layer

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"keg/internal/image"
)

func compress(t testing.TB, kind image.Compression, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch kind {
	case image.Gzip:
		w = gzip.NewWriter(&out)
	case image.Zstd:
		w, _ = zstd.NewWriter(&out)
	default:
		return b
	}
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// BenchmarkUnpackFile compares with tar on a real archive (KEG_LAYER, the path of a large .tar.gz or
// .tar.zst), both digests included. Fresh directories each time, since ext4 is slow for a
// while after deletions.
func BenchmarkUnpackFile(t *testing.B) {
	blob := os.Getenv("KEG_LAYER")
	if blob == "" {
		t.Skip("needs KEG_LAYER, the path of a large .tar.gz or .tar.zst")
	}
	needsRoot(t)
	base := t.TempDir()
	for range 5 {
		d, _ := os.MkdirTemp(base, "tar")
		start := time.Now()
		if out, err := exec.Command("tar", "-C", d, "-xf", blob).CombinedOutput(); err != nil {
			t.Fatalf("tar: %s", out)
		}
		theirs := time.Since(start)
		d, _ = os.MkdirTemp(base, "ours")
		start = time.Now()
		unpackFile(t, blob, d)
		ours := time.Since(start)
		t.Logf("tar %v, ours %v, ratio %.2f", theirs, ours, float64(ours)/float64(theirs))
	}
}

func unpackFile(t testing.TB, blob, dir string) {
	t.Helper()
	f, err := os.Open(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 4)
	io.ReadFull(f, head)
	f.Seek(0, io.SeekStart)
	sum := digest.SHA256.Digester()
	r, err := Decompress(io.TeeReader(f, sum.Hash()), Sniff(head))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := Apply(ctx, r, root, Options{}); err != nil {
		t.Fatal(err)
	}
}
