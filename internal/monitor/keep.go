package monitor

import (
	"strings"
	"sync"
)

// keep remembers the first max bytes it is given.
type keep struct {
	mu  sync.Mutex
	b   []byte
	max int
}

func (k *keep) add(b []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.b = append(k.b, b[:min(len(b), k.max-len(k.b))]...)
}

func (k *keep) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.ToValidUTF8(string(k.b), "\ufffd")
}
