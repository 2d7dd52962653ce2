package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// The test binary is also the other processes of these tests: KEG_TEST_ROLE names what
// to do in the store KEG_TEST_STORE.
func TestMain(m *testing.M) {
	if role := os.Getenv("KEG_TEST_ROLE"); role != "" {
		s, err := Open(os.Getenv("KEG_TEST_STORE"))
		if err == nil {
			err = roles[role](s)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// other starts another process in a role.
func other(t *testing.T, s *Store, role string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "KEG_TEST_ROLE="+role, "KEG_TEST_STORE="+s.root)
	return cmd
}

var roles = map[string]func(*Store) error{
	// half writes half a blob, says so and waits to be killed.
	"half": func(s *Store) error {
		w, err := s.Ingest(context.Background(), string(bigDigest()))
		if err != nil {
			return err
		}
		if _, err := w.Write(big()[w.Offset() : len(big())/2]); err != nil {
			return err
		}
		fmt.Println("half")
		<-time.After(time.Minute) // the test has died
		return w.Close()          // until here w is in use: a finalizer would let its lock go
	},
	// whole writes the blob as one of many who all want to.
	"whole": func(s *Store) error {
		w, err := s.Ingest(context.Background(), string(bigDigest()))
		if err != nil {
			return err
		}
		if s.Has(bigDigest()) {
			fmt.Println("there")
			return w.Abort()
		}
		if _, err := w.Write(big()[w.Offset():]); err != nil {
			return err
		}
		if _, err = w.Commit(context.Background(), int64(len(big())), bigDigest()); err == nil {
			fmt.Println("wrote")
		}
		return err
	},
	// hold leases a digest, says so and waits to be killed.
	"hold": func(s *Store) error {
		if _, err := s.Lease(context.Background(), digest.FromString("leased")); err != nil {
			return err
		}
		fmt.Println("held")
		time.Sleep(time.Minute) // then the test has died
		return nil
	},
	// user works as a pull does, while others sweep: what it relied on must be there.
	"user": func(s *Store) error {
		for i := range 60 {
			if err := use(s, fmt.Sprint(rand.IntN(4)), i); err != nil {
				return err
			}
		}
		return nil
	},
	"sweeper": func(s *Store) error {
		for range 40 {
			if _, _, err := s.Sweep(context.Background(), 0, func() (map[digest.Digest]bool, error) { return marks(s) }); err != nil {
				return err
			}
		}
		return nil
	},
	"tagger": func(s *Store) error {
		ref := mustRef("localhost/a/b/c:" + fmt.Sprint(rand.IntN(3)))
		for range 40 {
			if err := s.Tag(ref, desc("x")); err != nil {
				return err
			}
			if err := s.Untag(ref); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return nil
	},
}

// use leases a document, makes sure that it is there, names it, ends the lease, and finds
// the document by its name.
func use(s *Store, content string, i int) error {
	ctx := context.Background()
	d := digest.FromString(content)
	l, err := s.Lease(ctx, d)
	if err != nil {
		return err
	}
	if !s.Has(d) {
		if _, err := s.Put(ctx, []byte(content)); err != nil {
			return err
		}
	}
	ref := mustRef(fmt.Sprintf("localhost/u%d:t%d", os.Getpid(), i))
	if err := s.Tag(ref, image.Descriptor{Digest: d, Size: int64(len(content))}); err != nil {
		return err
	}
	if err := l.Release(); err != nil {
		return err
	}
	if _, err := s.Bytes(d, 100); err != nil {
		return fmt.Errorf("named, and gone: %w", err)
	}
	return s.Untag(ref)
}

func marks(s *Store) (map[digest.Digest]bool, error) {
	names, err := s.Names()
	m := map[digest.Digest]bool{}
	for _, n := range names {
		m[n.Desc.Digest] = true
	}
	return m, err
}

func none() (map[digest.Digest]bool, error) { return nil, nil }

var big = sync.OnceValue(func() []byte {
	b := make([]byte, 3<<20)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
})

func bigDigest() digest.Digest { return digest.FromBytes(big()) }

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustRef(s string) image.Reference {
	r, err := image.ParseReference(s)
	if err != nil {
		panic(err)
	}
	return r
}

func desc(s string) image.Descriptor {
	return image.Descriptor{MediaType: image.MediaManifest, Digest: digest.FromString(s), Size: int64(len(s))}
}

func put(t *testing.T, s *Store, content string) digest.Digest {
	t.Helper()
	d, err := s.Put(t.Context(), []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// says waits until the process has written a line.
func says(t *testing.T, cmd *exec.Cmd, want string) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	buf := make([]byte, 100)
	if n, _ := out.Read(buf); strings.TrimSpace(string(buf[:n])) != want {
		t.Fatalf("said %q, want %q", buf[:n], want)
	}
}

func entries(t *testing.T, s *Store, dir string) (names []string) {
	t.Helper()
	ents, err := os.ReadDir(s.path(dir))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range ents {
		names = append(names, e.Name())
	}
	return names
}

func old(t *testing.T, s *Store, ds ...digest.Digest) {
	t.Helper()
	past := time.Now().Add(-2 * time.Hour)
	for _, d := range ds {
		if err := os.Chtimes(s.blobPath(d), past, past); err != nil {
			t.Fatal(err)
		}
	}
}

// ---- blobs

func TestPutAndRead(t *testing.T) {
	s := open(t)
	d := put(t, s, "hello")
	if d != digest.FromString("hello") || put(t, s, "hello") != d {
		t.Fatal(d)
	}
	if b, err := s.Bytes(d, 5); err != nil || string(b) != "hello" {
		t.Error(b, err)
	}
	if _, err := s.Bytes(d, 4); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if n, err := s.Stat(d); n != 5 || err != nil {
		t.Error(n, err)
	}
	st, err := os.Stat(s.blobPath(d))
	if err != nil || st.Mode() != 0o444 {
		t.Error(st.Mode(), err)
	}
	d512 := digest.SHA512.FromString("hello")
	if _, err := s.PutAs(t.Context(), d512, []byte("hello")); err != nil || !s.Has(d512) {
		t.Error(err)
	}
	if _, err := s.PutAs(t.Context(), d512, []byte("other")); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	n := 0
	for range s.Blobs() {
		n++
	}
	if n != 2 || len(entries(t, s, "ingest")) != 0 {
		t.Error(n, entries(t, s, "ingest"))
	}
	missing := digest.FromString("missing")
	if _, err := s.Blob(missing); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), string(missing)) {
		t.Error(err)
	}
	if _, err := s.Stat(missing); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestDigestGrammarIsStrict(t *testing.T) {
	s := open(t)
	os.WriteFile(filepath.Join(s.root, "canary"), []byte("x"), 0o600)
	hex := strings.Repeat("a", 64)
	for _, d := range []string{"", ":", "sha256", "sha256:", "sha256:../../canary", "sha256:" + hex[1:], "sha256:" + hex + "a", "sha256:" + strings.ToUpper(hex),
		"sha512:" + hex, "sha384:" + hex + hex[:32], "md5:" + hex[:32], "SHA256:" + hex, "sha256/" + hex, "sha256:" + hex[:62] + "/.", " sha256:" + hex, "sha256:" + hex[:63] + "\x00"} {
		if _, err := s.Blob(digest.Digest(d)); !fault.Is(err, fault.Invalid) {
			t.Errorf("Blob %q: %v", d, err)
		}
		if s.Has(digest.Digest(d)) {
			t.Errorf("Has %q", d)
		}
		if err := s.Tag(mustRef("a:b"), image.Descriptor{Digest: digest.Digest(d)}); !fault.Is(err, fault.Invalid) {
			t.Errorf("Tag %q: %v", d, err)
		}
		if l, err := s.Lease(t.Context(), digest.Digest(d)); err == nil {
			l.Release()
			t.Errorf("Lease %q", d)
		}
	}
	for _, key := range []string{"", ".", "..", "../x", "a/b", "a\x00", ".lock", strings.Repeat("a", 201), "ä"} {
		if w, err := s.Ingest(t.Context(), key); !fault.Is(err, fault.Invalid) {
			w.Abort()
			t.Errorf("Ingest %q: %v", key, err)
		}
	}
}

func TestDamagedBlobIsMovedAsideAndHealed(t *testing.T) {
	s := open(t)
	for _, damage := range []string{"hellO", "", "hello and more"} {
		d := put(t, s, "hello")
		os.Chmod(s.blobPath(d), 0o600)
		if err := os.WriteFile(s.blobPath(d), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Bytes(d, 100); err == nil || !strings.Contains(err.Error(), string(d)) || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%q: %v", damage, err)
		}
		if s.Has(d) {
			t.Error("still visible")
		}
		put(t, s, "hello")
		if b, err := s.Bytes(d, 100); string(b) != "hello" || err != nil {
			t.Error(b, err)
		}
	}
	if n := len(entries(t, s, "damaged")); n != 3 {
		t.Errorf("%d blobs were moved aside", n)
	}
	// A blob of another length is replaced by whoever stores it anew, read or not.
	d := put(t, s, "hello")
	os.Chmod(s.blobPath(d), 0o600)
	os.Truncate(s.blobPath(d), 2)
	put(t, s, "hello")
	if b, err := s.Bytes(d, 100); string(b) != "hello" || err != nil {
		t.Error(b, err)
	}
}

// ---- ingest

func TestIngestVerifiesBeforeItShows(t *testing.T) {
	s, ctx := open(t), t.Context()
	for _, tc := range []struct {
		name string
		size int64
		want digest.Digest
		ok   bool
	}{
		{"too short", 6, digest.FromString("hello"), false},
		{"right", 5, digest.FromString("hello"), true},
		{"right, sha512", 5, digest.SHA512.FromString("hello"), true},
		{"any", -1, "", true},
		{"other digest", 5, digest.FromString("other"), false},
		{"bad digest", 5, "sha256:../../../x", false},
	} {
		w, err := s.Ingest(ctx, "key")
		if err != nil {
			t.Fatal(err)
		}
		if w.Offset() != 0 {
			t.Errorf("%s: wrong bytes were kept", tc.name)
		}
		io.WriteString(w, "hello")
		d, err := w.Commit(ctx, tc.size, tc.want)
		if tc.ok && (err != nil || !s.Has(d)) || !tc.ok && (!fault.Is(err, fault.Invalid) || s.Has(tc.want)) {
			t.Errorf("%s: %s, %v", tc.name, d, err)
		}
	}
	if left := entries(t, s, "ingest"); len(left) != 0 {
		t.Error(left)
	}
}

func TestIngestResumes(t *testing.T) {
	s, ctx := open(t), t.Context()
	key := string(bigDigest())
	for off := 0; off < len(big()); off += 1 << 20 {
		w, err := s.Ingest(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if w.Offset() != int64(off) {
			t.Fatalf("resumed at %d, not %d", w.Offset(), off)
		}
		if _, err := w.Write(big()[off : off+1<<20]); err != nil {
			t.Fatal(err)
		}
		if off+1<<20 == len(big()) {
			if _, err := w.Commit(ctx, int64(len(big())), bigDigest()); err != nil {
				t.Fatal(err)
			}
		} else if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := s.Bytes(bigDigest(), 4<<20); err != nil || !bytes.Equal(b, big()) {
		t.Fatal(err)
	}
	if _, err := s.Resume(ctx, key); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestIngestTruncates(t *testing.T) {
	s, ctx := open(t), t.Context()
	w, _ := s.Ingest(ctx, "k")
	io.WriteString(w, "wrong start")
	for _, n := range []int64{5, 0} {
		if err := w.Truncate(n); err != nil || w.Offset() != n {
			t.Fatal(w.Offset(), err)
		}
	}
	if err := w.Truncate(1); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	io.WriteString(w, "hello")
	w.Truncate(4)
	io.WriteString(w, "o")
	if d, err := w.Commit(ctx, 5, ""); d != digest.FromString("hello") || err != nil {
		t.Error(d, err)
	}
}

// What a process of an earlier boot did not sync may be zeros now.
func TestIngestOfAnotherBootCountsOnlyWhenSynced(t *testing.T) {
	s, ctx := open(t), t.Context()
	dir := s.path("ingest", "k")
	os.MkdirAll(dir, 0o700)
	os.WriteFile(filepath.Join(dir, "data-another-boot"), make([]byte, 100), 0o600)
	w, err := s.Ingest(ctx, "k")
	if err != nil || w.Offset() != 0 {
		t.Fatal(w.Offset(), err)
	}
	io.WriteString(w, "hel")
	w.Close()
	if got := entries(t, s, "ingest/k"); len(got) != 1 || got[0] != syncedData {
		t.Error(got)
	}
	w, _ = s.Ingest(ctx, "k")
	defer w.Abort()
	if w.Offset() != 3 {
		t.Error(w.Offset())
	}
}

func TestKilledWriterIsResumed(t *testing.T) {
	s := open(t)
	half := other(t, s, "half")
	says(t, half, "half")
	if s.Has(bigDigest()) || len(entries(t, s, "blobs/sha256")) != 0 {
		t.Fatal("half a blob is visible")
	}
	waiting, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Ingest(waiting, string(bigDigest())); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("two writers: %v", err)
	}
	half.Process.Kill()
	half.Wait()
	w, err := s.Ingest(t.Context(), string(bigDigest()))
	if err != nil || w.Offset() != int64(len(big())/2) {
		t.Fatal(w.Offset(), err)
	}
	w.Write(big()[w.Offset():])
	if _, err := w.Commit(t.Context(), int64(len(big())), bigDigest()); err != nil {
		t.Fatal(err)
	}
}

func TestManyProcessesWriteOneBlobOnce(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	said := make([]string, 8)
	for i := range said {
		wg.Go(func() {
			out, err := other(t, s, "whole").Output()
			if err != nil {
				t.Error(err)
			}
			said[i] = strings.TrimSpace(string(out))
		})
	}
	wg.Wait()
	if all := strings.Join(said, " "); strings.Count(all, "wrote") != 1 || strings.Count(all, "there") != len(said)-1 {
		t.Error(all)
	}
	if b, err := s.Bytes(bigDigest(), 4<<20); err != nil || !bytes.Equal(b, big()) {
		t.Error(err)
	}
	if left := entries(t, s, "ingest"); len(left) != 0 {
		t.Error(left)
	}
}
