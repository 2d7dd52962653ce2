// --chown: users and groups by number, or by name in the stage's own files.
package builder

import (
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// maxUserFile bounds /etc/passwd and /etc/group of a stage, which are foreign text.
const maxUserFile = 10 << 20

// ownerSpec is user[:group] as written; nil is none.
type ownerSpec struct{ user, group string }

// owner is a resolved one.
type owner struct{ uid, gid int }

func parseOwner(s string) (*ownerSpec, error) {
	if s == "" {
		return nil, nil
	}
	o := &ownerSpec{}
	o.user, o.group, _ = strings.Cut(s, ":")
	if o.user == "" && o.group == "" {
		return nil, fault.Invalidf("invalid chown %q: want user[:group]", s)
	}
	for _, part := range [...]string{o.user, o.group} {
		if _, _, err := number32(part); err != nil {
			return nil, fault.Invalidf("invalid chown %q: %w", s, err)
		}
	}
	return o, nil
}

// number32 reads an id. What looks like a number is never a name, so that no entry of
// a passwd file can stand for it.
func number32(s string) (n int, isNumber bool, err error) {
	if s == "" || strings.Trim(s, "+-0123456789") != "" {
		return 0, false, nil
	}
	v, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, true, fault.Invalidf("id %q is not between 0 and 2147483647", s)
	}
	return int(v), true, nil
}

// named reports whether a name has to be looked up.
func (o *ownerSpec) named() bool {
	if o == nil {
		return false
	}
	for _, part := range [...]string{o.user, o.group} {
		if _, isNumber, _ := number32(part); !isNumber && part != "" && part != "root" {
			return true
		}
	}
	return false
}

// resolve looks names up below root. A user without a group is in a group of the same
// number, a named one in the group of its entry.
func (o *ownerSpec) resolve(root int) (*owner, error) {
	if o == nil {
		return nil, nil
	}
	var got owner
	n, isNumber, err := number32(o.user)
	switch {
	case err != nil:
		return nil, err
	case o.user == "" || o.user == "root":
	case isNumber:
		got = owner{n, n}
	default:
		users, err := lookup(root, "/etc/passwd", func(r io.Reader) ([]user.User, error) {
			return user.ParsePasswdFilter(r, func(u user.User) bool { return u.Name == o.user })
		})
		if err != nil {
			return nil, err
		}
		if len(users) == 0 {
			return nil, fault.NotFoundf("unable to find user %s: no matching entries in passwd file", o.user)
		}
		got = owner{users[0].Uid, users[0].Gid}
	}
	n, isNumber, err = number32(o.group)
	switch {
	case err != nil:
		return nil, err
	case o.group == "":
	case o.group == "root":
		got.gid = 0
	case isNumber:
		got.gid = n
	default:
		groups, err := lookup(root, "/etc/group", func(r io.Reader) ([]user.Group, error) {
			return user.ParseGroupFilter(r, func(g user.Group) bool { return g.Name == o.group })
		})
		if err != nil {
			return nil, err
		}
		if len(groups) == 0 {
			return nil, fault.NotFoundf("unable to find group %s: no matching entries in group file", o.group)
		}
		got.gid = groups[0].Gid
	}
	return &got, nil
}

// lookup parses a user file of the stage; a missing one has no entries.
func lookup[T any](root int, file string, parse func(io.Reader) ([]T, error)) ([]T, error) {
	f, err := linux.OpenInRoot(root, file, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if notExist(err) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readRegular(f, maxUserFile)
	if err != nil {
		return nil, err
	}
	return parse(strings.NewReader(string(b)))
}
