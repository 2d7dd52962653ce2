package mirror

// The files that the kernel knows: a number each, for which a descriptor is held.

import (
	"container/list"
	"sync"

	"golang.org/x/sys/unix"
)

// key tells files apart while somebody holds them.
type key struct{ dev, ino uint64 }

func keyOf(st *unix.Stat_t) key { return key{st.Dev, st.Ino} }

// node is a file, opened with O_PATH. When there are too many its descriptor is closed; it is found again by
// the name under which it was seen last, and is it only if it has the same key.
type node struct {
	id    uint64
	key   key
	mode  uint32
	fd    int    // -1: closed
	refs  uint64 // that the kernel has
	users int    // requests at work with fd
	stays bool   // it has no name by which it could be found again
	born  unix.StatxTimestamp
	up    *node
	name  string
	next  *node // another file with the same key
	place *list.Element
}

// table is the nodes of one tree.
type table struct {
	overlay bool // the tree is an overlay: see same
	shared  bool // others change it, too

	mu     sync.Mutex
	byID   map[uint64]*node
	byKey  map[key]*node
	last   uint64
	recent *list.List // of nodes with a descriptor, latest first
	most   int        // descriptors
	closed int        // nodes without one
}

const rootID = 1

func newTable(root int, most int, shared bool) (*table, error) {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root, &fs); err != nil {
		return nil, err
	}
	t := &table{overlay: fs.Type == unix.OVERLAYFS_SUPER_MAGIC, shared: shared, byID: map[uint64]*node{}, byKey: map[key]*node{},
		last: rootID, recent: list.New(), most: most}
	n := &node{id: rootID, key: keyOf(&st), mode: st.Mode, fd: root, refs: 1, users: 1, stays: true}
	t.byID[n.id], t.byKey[n.key] = n, n
	return t, nil
}

// get is the node of a request; release ends its use.
func (t *table) get(id uint64) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return nil, unix.ESTALE
	}
	if err := t.reopen(n); err != nil {
		return nil, err
	}
	n.users++
	if n.place != nil {
		t.recent.MoveToFront(n.place)
	}
	return n, nil
}

func (t *table) release(n *node) {
	t.mu.Lock()
	n.users--
	t.mu.Unlock()
}

// enter finds the node of a file that was looked up, or makes it, and counts the kernel's reference. The descriptor is the
// table's then.
func (t *table) enter(fd int, st *unix.Stat_t, up *node, name string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.find(fd, st)
	if n == nil {
		t.last++
		n = &node{id: t.last, key: keyOf(st), mode: st.Mode, fd: -1}
		n.next = t.byKey[n.key]
		t.byID[n.id], t.byKey[n.key] = n, n
		t.closed++
	}
	n.refs++
	if name != "" {
		n.up, n.name = up, name
	}
	if n.fd >= 0 {
		unix.Close(fd)
	} else {
		t.adopt(n, fd)
	}
	return n
}

func (t *table) find(fd int, st *unix.Stat_t) *node {
	for n := t.byKey[keyOf(st)]; n != nil; n = n.next {
		if !t.doubtful(st) {
			return n
		}
		if t.reopen(n) != nil {
			continue
		}
		var now unix.Stat_t
		if unix.Fstat(n.fd, &now) == nil && keyOf(&now) != n.key {
			t.rekey(n, keyOf(&now))
			return t.find(fd, st)
		}
		if same(n.fd, fd) {
			return n
		}
	}
	return nil
}

// doubtful files of an overlay may be two although they have the same number: names of one file in a
// lower layer, of which each gets a copy of its own when it is written to.
func (t *table) doubtful(st *unix.Stat_t) bool {
	return t.overlay && st.Nlink > 1 && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// same tells whether two descriptors are of one file for the kernel: then a lock on it stands in its own way.
func same(a, b int) bool {
	x, err := reopen(a, unix.O_RDONLY)
	if err != nil {
		return false
	}
	defer unix.Close(x)
	y, err := reopen(b, unix.O_RDONLY)
	if err != nil {
		return false
	}
	defer unix.Close(y)
	return unix.Flock(x, unix.LOCK_EX|unix.LOCK_NB) == nil && unix.Flock(y, unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// changed follows a file whose number changed: it was copied up.
func (t *table) changed(n *node, st *unix.Stat_t) {
	if n.key == keyOf(st) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rekey(n, keyOf(st))
}

func (t *table) rekey(n *node, k key) {
	t.unlist(n)
	n.key = k
	n.next = t.byKey[k]
	t.byKey[k] = n
}

func (t *table) unlist(n *node) {
	at := t.byKey[n.key]
	if at == n {
		if n.next == nil {
			delete(t.byKey, n.key)
		} else {
			t.byKey[n.key] = n.next
		}
		return
	}
	for ; at != nil; at = at.next {
		if at.next == n {
			at.next = n.next
			return
		}
	}
}

// forget takes references back; a node without any is gone.
func (t *table) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == rootID {
		return
	}
	if n.refs -= min(count, n.refs); n.refs > 0 {
		return
	}
	delete(t.byID, id)
	t.unlist(n)
	if n.fd < 0 {
		t.closed--
		return
	}
	t.recent.Remove(n.place)
	unix.Close(n.fd)
	n.fd, n.place = -1, nil
}

// adopt gives n a descriptor, and takes one from the nodes that were not used for longest.
func (t *table) adopt(n *node, fd int) {
	n.fd, n.place = fd, t.recent.PushFront(n)
	t.closed--
	for e, tries := t.recent.Back(), 0; t.recent.Len() > t.most && e != nil && tries < 64; tries++ {
		old := e.Value.(*node)
		e = e.Prev()
		if old != n {
			t.shut(old)
		}
	}
}

// shut closes the descriptor of a node that can be found again.
func (t *table) shut(n *node) {
	if n.users > 0 || n.stays {
		return
	}
	fd, err := t.byName(n)
	if err != nil {
		n.stays = true
		return
	}
	n.born = born(fd)
	unix.Close(fd)
	unix.Close(n.fd)
	t.recent.Remove(n.place)
	n.fd, n.place = -1, nil
	t.closed++
}

// reopen makes sure that n has a descriptor.
func (t *table) reopen(n *node) error {
	if n.fd >= 0 {
		return nil
	}
	fd, err := t.byName(n)
	if err != nil {
		return err
	}
	if t.shared && born(fd) != n.born { // another file, with a number that was free again
		unix.Close(fd)
		return unix.ESTALE
	}
	t.adopt(n, fd)
	return nil
}

// byName opens n anew by its name.
func (t *table) byName(n *node) (int, error) {
	if n.up == nil {
		return -1, unix.ESTALE
	}
	dir := n.up.fd
	if dir < 0 {
		var err error
		if dir, err = t.byName(n.up); err != nil {
			return -1, err
		}
		defer unix.Close(dir)
	}
	fd, err := openEntry(dir, n.name, unix.O_PATH, 0)
	if err != nil {
		return -1, unix.ESTALE
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || keyOf(&st) != n.key || t.doubtful(&st) {
		unix.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, nil
}

func born(fd int) unix.StatxTimestamp {
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st) != nil {
		return unix.StatxTimestamp{}
	}
	return st.Btime
}

// keep holds on to what is about to lose its name.
func (t *table) keep(dir *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed == 0 {
		return
	}
	fd, err := openEntry(dir.fd, name, unix.O_PATH, 0)
	if err != nil {
		return
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil {
		for n := t.byKey[keyOf(&st)]; n != nil; n = n.next {
			if n.fd < 0 {
				t.adopt(n, fd)
				n.stays = true
				return
			}
		}
	}
	unix.Close(fd)
}
