package api

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"keg/internal/builder"
)

// slowBuild is an engine whose builds last until somebody ends them.
type slowBuild struct {
	Engine
	begun chan struct{}
}

func (s *slowBuild) Build(ctx context.Context, _ builder.Options, _ func(builder.Event)) (*builder.Result, error) {
	close(s.begun)
	<-ctx.Done()
	return nil, ctx.Err()
}

// A build is ended by its id, and by that only.
func TestBuildIsCancelled(t *testing.T) {
	e := &slowBuild{begun: make(chan struct{})}
	client := newKitServerOf(t, e).http
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "Dockerfile", Size: 13, Mode: 0o644})
	io.WriteString(w, "FROM scratch\n")
	w.Close()
	ended := make(chan string, 1)
	go func() {
		resp, err := client.Post("http://docker/v1.43/build?buildid=mine", "application/x-tar", &b)
		if err != nil {
			ended <- err.Error()
			return
		}
		defer resp.Body.Close()
		words, _ := io.ReadAll(resp.Body)
		ended <- string(words)
	}()
	<-e.begun
	cancel := func(query string, status int) {
		t.Helper()
		resp, err := client.Post("http://docker/v1.43/build/cancel"+query, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("cancel%s: status %d, want %d", query, resp.StatusCode, status)
		}
	}
	cancel("", http.StatusBadRequest)
	cancel("?id=another", http.StatusNoContent)
	select {
	case words := <-ended:
		t.Fatalf("ended by another's id: %s", words)
	case <-time.After(200 * time.Millisecond):
	}
	cancel("?id=mine", http.StatusNoContent)
	select {
	case words := <-ended:
		if !strings.Contains(words, "cancel") {
			t.Errorf("a cancelled build says %q", words)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the build goes on")
	}
}
