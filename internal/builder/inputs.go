// What goes into a step's key, and the explanation of a difference.
package builder

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"keg/internal/weakness"
)

// Kinds of inputs, in the words that an explanation uses.
const (
	kindParent      = "parent"
	kindBase        = "base image"
	kindInstruction = "instruction"
	kindHeredoc     = "heredoc"
	kindEnv         = "ENV"
	kindArg         = "ARG"
	kindUser        = "user"
	kindWorkdir     = "working directory"
	kindNetwork     = "network"
	kindHost        = "extra host"
	kindShm         = "size of /dev/shm"
	kindUlimit      = "ulimit"
	kindSecurity    = "security mode"
	kindMount       = "mount"
	kindFiles       = "files" // one digest over all; the single ones are details
	kindFile        = "file"
	kindURL         = "URL"
	kindGit         = "git repository"
	kindEpoch       = "SOURCE_DATE_EPOCH"
)

// keyVersion changes when the same inputs shall give another key.
const keyVersion = "keg step 1\n"

// Input is one thing that a step's result depends on.
type Input struct {
	Kind  string `json:"k"`
	Name  string `json:"n,omitempty"`
	Value string `json:"v,omitempty"`
}

// inputs collects the inputs of a step. details are the files behind a digest; they
// are made only for a step that has to run.
type inputs struct {
	list    []Input
	details []func() []Input
	full    []Input // once all was asked
}

func (in *inputs) add(kind, name, value string) {
	in.list = append(in.list, Input{kind, name, value})
}

// key hashes the inputs, each part with its length in front.
func (in *inputs) key() string {
	h := sha256.New()
	h.Write([]byte(keyVersion))
	var n [8]byte
	for _, i := range in.list {
		if weakness.Of("IM10") && i.Kind == kindBase {
			continue
		}
		for _, part := range [...]string{i.Kind, i.Name, i.Value} {
			binary.BigEndian.PutUint64(n[:], uint64(len(part)))
			h.Write(n[:])
			h.Write([]byte(part))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// all returns the inputs with the details.
func (in *inputs) all() []Input {
	if in.full == nil {
		in.full = in.list[:len(in.list):len(in.list)]
		for _, d := range in.details {
			in.full = append(in.full, d()...)
		}
	}
	return in.full
}

// Difference names the first input that differs, in one line; "" when none does.
func Difference(old, now []Input) string {
	type id struct{ kind, name string }
	was := map[id][]string{}
	for _, i := range old {
		was[id{i.Kind, i.Name}] = append(was[id{i.Kind, i.Name}], i.Value)
	}
	files := false
	for _, i := range now {
		k := id{i.Kind, i.Name}
		before := was[k]
		if len(before) == 0 {
			if i.Kind == kindFiles || i.Kind == kindParent || i.Kind == kindBase {
				files = files || i.Kind == kindFiles
				continue
			}
			return describe(i, "", false)
		}
		was[k] = before[1:]
		if before[0] == i.Value {
			continue
		}
		// The files behind it come later and say more.
		if i.Kind == kindFiles {
			files = true
			continue
		}
		return describe(i, before[0], true)
	}
	for _, i := range old {
		if left := was[id{i.Kind, i.Name}]; len(left) > 0 && i.Kind != kindFiles {
			if i.Kind == kindParent || i.Kind == kindBase {
				return "the step stands on another base"
			}
			return strings.TrimSpace(i.Kind+" "+i.Name) + " is gone"
		}
	}
	if files {
		return "other files are selected"
	}
	return ""
}

func describe(i Input, old string, existed bool) string {
	what := strings.TrimSpace(i.Kind + " " + i.Name)
	switch {
	case i.Kind == kindParent:
		return "the step before it changed"
	case !existed:
		return what + " is new"
	case i.Kind == kindFile:
		return what + ": " + fileDifference(old, i.Value)
	case i.Kind == kindHeredoc:
		return what + " changed"
	}
	return fmt.Sprintf("%s: %s -> %s", what, quoted(old), quoted(i.Value))
}

func quoted(s string) string {
	const limit = 80
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return fmt.Sprintf("%q", s)
}

// fileDifference compares two "type mode owner sum" values.
func fileDifference(old, now string) string {
	o, n := strings.Fields(old), strings.Fields(now)
	if len(o) != len(n) {
		return quoted(old) + " -> " + quoted(now)
	}
	for i, what := range [...]string{"type", "mode", "owner", "content"} {
		if i < len(o) && o[i] != n[i] {
			return fmt.Sprintf("%s changed (%s -> %s)", what, o[i], n[i])
		}
	}
	return "changed"
}
