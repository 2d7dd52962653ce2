// --chmod: octal, or symbolic as chmod(1) reads it with an empty umask.
package builder

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// modeSpec is a parsed --chmod; nil leaves modes as they are.
type modeSpec struct {
	octal   bool
	mode    uint32
	clauses []modeClause
}

// modeClause is one who-op-permissions of "u=rwx,go-w".
type modeClause struct {
	who  uint32 // mask of the bits that it may touch
	op   byte   // + - =
	bits uint32 // within who
	copy byte   // u, g or o: take that one's bits
	exec bool   // X: execute for directories and for what some may execute
}

const allModes = 0o7777

func parseMode(s string) (*modeSpec, error) {
	if s == "" {
		return nil, nil
	}
	if strings.Trim(s, "+-0123456789") == "" && strings.ContainsAny(s, "0123456789") {
		n, err := strconv.ParseUint(s, 8, 32)
		if err != nil || n > allModes {
			return nil, fault.Invalidf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", s)
		}
		return &modeSpec{octal: true, mode: uint32(n)}, nil
	}
	m := &modeSpec{}
	for part := range strings.SplitSeq(s, ",") {
		if err := m.clause(part); err != nil {
			return nil, fault.Invalidf("invalid chmod parameter: '%v': %w", s, err)
		}
	}
	return m, nil
}

func (m *modeSpec) clause(s string) error {
	var who uint32
	i := 0
	for ; i < len(s) && strings.IndexByte("ugoa", s[i]) >= 0; i++ {
		switch s[i] {
		case 'u':
			who |= unix.S_ISUID | 0o700
		case 'g':
			who |= unix.S_ISGID | 0o070
		case 'o':
			who |= unix.S_ISVTX | 0o007
		case 'a':
			who |= allModes
		}
	}
	if who == 0 {
		who = allModes
	}
	if i == len(s) {
		return fault.Invalidf("clause %q has no operator", s)
	}
	for i < len(s) {
		c := modeClause{who: who, op: s[i]}
		if strings.IndexByte("+-=", c.op) < 0 {
			return fault.Invalidf("unexpected %q in clause %q", s[i], s)
		}
		for i++; i < len(s) && strings.IndexByte("+-=", s[i]) < 0; i++ {
			switch s[i] {
			case 'r':
				c.bits |= 0o444
			case 'w':
				c.bits |= 0o222
			case 'x':
				c.bits |= 0o111
			case 'X':
				c.exec = true
			case 's':
				c.bits |= unix.S_ISUID | unix.S_ISGID
			case 't':
				c.bits |= unix.S_ISVTX
			case 'u', 'g', 'o':
				c.copy = s[i]
			default:
				return fault.Invalidf("unexpected %q in clause %q", s[i], s)
			}
		}
		m.clauses = append(m.clauses, c)
	}
	return nil
}

// apply returns the permission bits of a file that has mode.
func (m *modeSpec) apply(mode uint32) uint32 {
	if m == nil {
		return mode & allModes
	}
	if m.octal {
		return m.mode
	}
	perm := mode & allModes
	for _, c := range m.clauses {
		bits := c.bits
		if c.exec && (mode&unix.S_IFMT == unix.S_IFDIR || perm&0o111 != 0) {
			bits |= 0o111
		}
		switch c.copy {
		case 'u':
			bits |= (perm >> 6 & 7) * 0o111
		case 'g':
			bits |= (perm >> 3 & 7) * 0o111
		case 'o':
			bits |= (perm & 7) * 0o111
		}
		bits &= c.who
		switch c.op {
		case '+':
			perm |= bits
		case '-':
			perm &^= bits
		case '=':
			perm = perm&^c.who | bits
		}
	}
	return perm
}

// directory is the mode of directories that a copy makes on the way.
func (m *modeSpec) directory() uint32 {
	if m != nil && m.octal {
		return m.mode & 0o777
	}
	return 0o755
}
