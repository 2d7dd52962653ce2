package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestKindSurvivesWrapping(t *testing.T) {
	err := fmt.Errorf("start web: %w", NotFoundf("no such image: %w", fs.ErrNotExist))
	if !Is(err, NotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("kind %v of %v", KindOf(err), err)
	}
	if got := KindOf(As(Conflict, err)); got != Conflict {
		t.Fatalf("the outermost kind should win, got %v", got)
	}
	if Is(nil, Unknown) || As(Invalid, nil) != nil || KindOf(errors.New("x")) != Unknown {
		t.Fatal("nil or unclassified errors have no kind")
	}
}
