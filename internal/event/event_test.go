package event

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
)

func message(id string) Message {
	return Message{Type: events.ContainerEventType, Action: events.ActionStart, Actor: events.Actor{ID: id, Attributes: map[string]string{"name": "x"}}}
}

func ids(t *testing.T, j *Journal, since, until int64) (got []string) {
	t.Helper()
	if err := j.Read(context.Background(), since, until, false, func(m Message) error { got = append(got, m.Actor.ID); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestAppendAndRead(t *testing.T) {
	j := Open(t.TempDir())
	if got := ids(t, j, 0, 0); len(got) != 0 {
		t.Errorf("empty journal: %v", got)
	}
	for i := range 5 {
		m := message(fmt.Sprint(i))
		m.TimeNano = int64(100 + i)
		if err := j.Append(m); err != nil {
			t.Fatal(err)
		}
	}
	if got := ids(t, j, 0, 0); fmt.Sprint(got) != "[0 1 2 3 4]" {
		t.Error(got)
	}
	if got := ids(t, j, 101, 103); fmt.Sprint(got) != "[1 2 3]" {
		t.Error(got)
	}
	if err := j.Append(message("now")); err != nil {
		t.Fatal(err)
	}
	j.Read(context.Background(), 200, 0, false, func(m Message) error {
		if m.Time == 0 || m.Time != m.TimeNano/1e9 || m.Scope != "local" || m.Actor.Attributes["name"] != "x" {
			t.Errorf("%+v", m)
		}
		return nil
	})
}

// TestManyWriters: several processes' worth of writers, one follower, rotations in between.
func TestManyWriters(t *testing.T) {
	root := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const writers, each = 4, 100
	seen := map[string]bool{}
	done := make(chan error, 1)
	go func() {
		done <- Open(root).Read(ctx, 0, 0, true, func(m Message) error {
			if seen[m.Actor.ID] {
				return fmt.Errorf("%s twice", m.Actor.ID)
			}
			seen[m.Actor.ID] = true
			if len(seen) == writers*each {
				cancel()
			}
			return nil
		})
	}()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				m := message(fmt.Sprintf("%d-%d", w, i))
				m.Actor.Attributes["pad"] = strings.Repeat("x", 30<<10) // 12 MB in all: rotates once
				if err := Open(root).Append(m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("follower saw %d", len(seen))
	}
	if _, err := os.Stat(filepath.Join(root, "events.1")); err != nil {
		t.Error("did not rotate")
	}
	if got := ids(t, Open(root), 0, 0); len(got) != writers*each {
		t.Errorf("%d kept", len(got))
	}
}

func TestTornLineIsSkipped(t *testing.T) {
	j := Open(t.TempDir())
	j.Append(message("a"))
	f, _ := os.OpenFile(j.path(), os.O_WRONLY|os.O_APPEND, 0)
	f.WriteString(`{"seq":2,"Type":"cont`)
	f.Close()
	if err := j.Append(message("b")); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, j, 0, 0); fmt.Sprint(got) != "[a b]" {
		t.Error(got)
	}
}

func TestUntilEndsAFollow(t *testing.T) {
	j := Open(t.TempDir())
	j.Append(message("a"))
	n := 0
	err := j.Read(context.Background(), 0, time.Now().Add(30*time.Millisecond).UnixNano(), true, func(Message) error { n++; return nil })
	if err != nil || n != 1 {
		t.Error(n, err)
	}
}
