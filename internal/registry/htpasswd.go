// Who may come in: a file of "user:hash" lines as htpasswd -B writes them.

package registry

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"keg/internal/fault"
)

// userFile is read again when it changes. A password that was found right is
// remembered as a MAC under a key of this process, since bcrypt takes its time for
// each request; nothing that was found wrong is.
type userFile struct {
	path string
	turn chan struct{} // of those who compute a hash

	mu     sync.Mutex
	stamp  time.Time
	size   int64
	hashes map[string][]byte
	key    [32]byte
	known  map[[32]byte]bool
}

const (
	maxKnown  = 1024
	maxHashes = 2 // at once
)

func readHtpasswd(path string) (map[string][]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read password file: %w", err)
	}
	hashes := map[string][]byte{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		user, hash, ok := strings.Cut(line, ":")
		if !ok || user == "" {
			return nil, fault.Invalidf("%s:%d: want user:hash", path, n)
		}
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return nil, fault.Invalidf("%s:%d: the hash of user %q is not bcrypt; write it with htpasswd -B", path, n, user)
		}
		hashes[user] = []byte(hash)
	}
	return hashes, lines.Err()
}

// authenticate returns the user of a request. ok is false when the request has to come
// again with a user and a password.
func (u *userFile) authenticate(r *http.Request) (user string, ok bool, err error) {
	if u.path == "" {
		return "", true, nil
	}
	if err := u.reload(); err != nil {
		return "", false, err
	}
	user, password, given := r.BasicAuth()
	if !given {
		return "", false, nil
	}
	u.mu.Lock()
	hash, exists := u.hashes[user]
	proof := u.proof(user, password, hash)
	known := exists && u.known[proof]
	u.mu.Unlock()
	if known {
		return user, true, nil
	}
	if !exists {
		hash = []byte(nobody) // as slow as for a real user
	}
	// Guessers wait for each other, not for a processor that others need.
	select {
	case u.turn <- struct{}{}:
	case <-r.Context().Done():
		return "", false, r.Context().Err()
	}
	err = bcrypt.CompareHashAndPassword(hash, []byte(password))
	<-u.turn
	if err != nil || !exists {
		return "", false, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.known) >= maxKnown {
		clear(u.known)
	}
	u.known[proof] = true
	return user, true, nil
}

// exists reports whether there is such a user still.
func (u *userFile) exists(user string) bool {
	if u.path == "" || u.reload() != nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.hashes[user]
	return ok
}

// nobody is the hash of a password that was thrown away.
const nobody = "$2a$10$7EqJtq98hPqEX7fNZaFWoOhi5BWX4Z1kH2n9yG1Y1m8k1xQyE0GZe"

// proof depends on the hash, so a changed password makes the old proof worthless.
func (u *userFile) proof(user, password string, hash []byte) (p [32]byte) {
	m := hmac.New(sha256.New, u.key[:])
	fmt.Fprintf(m, "%d:%s%d:%s", len(user), user, len(password), password)
	m.Write(hash)
	m.Sum(p[:0])
	return p
}

func (u *userFile) reload() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	st, err := os.Stat(u.path)
	if err != nil {
		return fmt.Errorf("read password file: %w", err)
	}
	if u.hashes != nil && st.ModTime().Equal(u.stamp) && st.Size() == u.size {
		return nil
	}
	hashes, err := readHtpasswd(u.path)
	if err != nil {
		return err
	}
	if u.known == nil {
		u.known = map[[32]byte]bool{}
		rand.Read(u.key[:])
	}
	u.hashes, u.stamp, u.size = hashes, st.ModTime(), st.Size()
	return nil
}
