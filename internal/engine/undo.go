package engine

// undo is what has to be taken back when an act of several steps fails.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

// onError runs what was added, last first, when *err is set. It is deferred.
func (u *undo) onError(err *error) {
	if *err == nil {
		return
	}
	for i := len(*u) - 1; i >= 0; i-- {
		(*u)[i]()
	}
}
