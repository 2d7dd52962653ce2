// Package fault names the kinds of failure that callers tell apart.
//
// An error carries its kind through any number of wraps. One table maps a kind to
// an HTTP status (api), one to an exit code (cli); nothing else looks at kinds.
// Everybody may import this package; it imports only the standard library.
package fault

import (
	"errors"
	"fmt"
)

// Kind says what sort of thing went wrong, from the caller's point of view.
type Kind uint8

// The kinds. Unknown is the zero value: an error that nobody classified.
const (
	Unknown      Kind = iota
	NotFound          // the named object does not exist
	Conflict          // the object exists or is in a state that forbids the act
	Invalid           // the request itself is wrong; repeating it cannot help
	Denied            // the caller may not do this
	Unauthorized      // the caller must log in first
	Unavailable       // a peer or the host cannot serve now; trying later may help
	Unsupported       // this kernel, host or build lacks what is needed
	NotModified       // the object is already in the state asked for
)

var names = [...]string{"unknown", "not found", "conflict", "invalid", "denied", "unauthorized", "unavailable", "unsupported", "not modified"}

func (k Kind) String() string { return names[k] }

type fault struct {
	kind Kind
	err  error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// Errorf is fmt.Errorf with a kind. The outermost kind of a chain wins.
func Errorf(k Kind, format string, args ...any) error {
	return &fault{k, fmt.Errorf(format, args...)}
}

// As gives err the kind k; nil stays nil.
func As(k Kind, err error) error {
	if err == nil {
		return nil
	}
	return &fault{k, err}
}

// NotFoundf, Conflictf ... are Errorf with the kind in the name.

func NotFoundf(format string, args ...any) error    { return Errorf(NotFound, format, args...) }
func Conflictf(format string, args ...any) error    { return Errorf(Conflict, format, args...) }
func Invalidf(format string, args ...any) error     { return Errorf(Invalid, format, args...) }
func Deniedf(format string, args ...any) error      { return Errorf(Denied, format, args...) }
func Unavailablef(format string, args ...any) error { return Errorf(Unavailable, format, args...) }
func Unsupportedf(format string, args ...any) error { return Errorf(Unsupported, format, args...) }

// KindOf returns the kind of the outermost classified error in err's chain.
func KindOf(err error) Kind {
	var f *fault
	if errors.As(err, &f) {
		return f.kind
	}
	return Unknown
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
