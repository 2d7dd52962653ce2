package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"keg/internal/container"
)

// BenchmarkRunTrue is everything but the command line: record, layer, monitor, exit. Beside it runs runc,
// one after the other in one loop, on the same files.
func BenchmarkRunTrue(b *testing.B) {
	h := newHouse(b)
	b.Run("keg", func(b *testing.B) {
		var ready, total time.Duration
		for b.Loop() {
			t0 := time.Now()
			r := h.create([]string{"true"}, autoRemove, named("bench"))
			t1 := time.Now()
			c, err := Spawn(context.Background(), h.roots, r.ID, &Stdio{Out: os.Stdout, Err: os.Stderr})
			if err != nil {
				b.Fatal(err)
			}
			ready += time.Since(t1)
			if _, err := c.Wait(context.Background()); err != nil {
				b.Fatal(err)
			}
			total += time.Since(t0)
			c.Close()
		}
		b.ReportMetric(float64(ready.Microseconds())/float64(b.N)/1000, "ms-to-ready")
		b.ReportMetric(float64(total.Microseconds())/float64(b.N)/1000, "ms-total")
	})
	b.Run("runc", func(b *testing.B) {
		if _, err := exec.LookPath("runc"); err != nil {
			b.Skip("needs runc")
		}
		bundle := b.TempDir()
		root := filepath.Join(bundle, "rootfs")
		os.Mkdir(root, 0o755)
		tar := exec.Command("tar", "-x", "-C", root)
		in, _ := tar.StdinPipe()
		go func() { in.Write(busyboxTar(b)); in.Close() }()
		if out, err := tar.CombinedOutput(); err != nil {
			b.Fatalf("%s %v", out, err)
		}
		spec, err := container.Spec(&container.Record{ID: container.NewID(), Config: h.create([]string{"true"}).Config, Host: h.create([]string{"true"}).Host}, container.SpecOptions{})
		if err != nil {
			b.Fatal(err)
		}
		spec.Root.Path = "rootfs"
		spec.Linux.Resources.Devices = nil
		data, _ := json.Marshal(spec)
		os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644)
		n := 0
		for b.Loop() {
			n++
			out, err := exec.Command("runc", "run", "--bundle", bundle, fmt.Sprintf("keg-bench-%d-%d", os.Getpid(), n)).CombinedOutput()
			if err != nil {
				b.Fatalf("%s %v", out, err)
			}
		}
	})
}

// BenchmarkExecTrue is exec with a connection of its own, as the command line makes it.
func BenchmarkExecTrue(b *testing.B) {
	h := newHouse(b)
	r := h.detached([]string{"sleep", "1000"})
	for b.Loop() {
		c, err := Dial(context.Background(), h.roots, r.ID)
		if err != nil {
			b.Fatal(err)
		}
		if x, err := c.Exec(context.Background(), ExecRequest{Cmd: []string{"true"}}, Stdio{Out: os.Stdout, Err: os.Stderr}); err != nil || x.Code != 0 {
			b.Fatal(x, err)
		}
		c.Close()
	}
}
