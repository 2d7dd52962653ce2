package keg

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// build makes the binary as `make build` does, from the tree at dir.
func build(t *testing.T, dir, arch string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "keg")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", out, "./cmd/keg")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build for %s: %v\n%s", arch, err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBuildsAreStaticAndEqual(t *testing.T) {
	elsewhere := t.TempDir()
	if err := os.CopyFS(filepath.Join(elsewhere, "internal"), os.DirFS("internal")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(elsewhere, "cmd"), os.DirFS("cmd")); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(elsewhere, f), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		here, there := build(t, ".", arch), build(t, elsewhere, arch)
		if !bytes.Equal(here, there) {
			t.Errorf("%s: the binary depends on where it is built", arch)
		}
		f, err := elf.NewFile(bytes.NewReader(here))
		if err != nil {
			t.Fatal(err)
		}
		if f.Machine != machine {
			t.Errorf("%s: machine %s", arch, f.Machine)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s: not static: %s", arch, p.Type)
			}
		}
	}
}
