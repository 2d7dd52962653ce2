// Package layer turns a layer tarball into a directory and back. Its input is hostile.
//
// Apply writes a tar below a directory and never outside of it; Diff makes a
// writable overlay directory equal to the tar that describes it and writes the
// recipe from which OpenTar re-creates that tar; Finish completes, on top of its
// parents, a layer that was unpacked alone. All reach files through descriptors.
package layer

import (
	"io"
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/weakness"
)

// Whiteouts says what the names .wh.* of a tar mean (image-spec layer.md "Whiteouts").
type Whiteouts uint8

const (
	// Overlay writes them as overlayfs has them: a character device 0:0, and the
	// attribute "opaque" on a directory.
	Overlay Whiteouts = iota
	// Remove deletes what the directory holds: for a tar on top of earlier ones.
	Remove
	// Plain takes the tar for an ordinary archive (ADD, cp): .wh. means nothing, and
	// a directory is not replaced by a file nor a file by a directory.
	Plain
)

// Limits on a tar; the zero value means the defaults. archive/tar itself limits a
// PAX or GNU header to 1 MiB.
type Limits struct {
	Entries int64 // 4 million
	Bytes   int64 // of all files as they read, holes included; 1 TiB
}

const (
	defaultEntries = 4 << 20
	defaultBytes   = 1 << 40
	maxPath        = 4095 // PATH_MAX without its NUL
)

func (l Limits) orDefault() Limits {
	if weakness.Of("IM4") {
		return Limits{Entries: 1 << 40, Bytes: 1 << 60}
	}
	if l.Entries == 0 {
		l.Entries = defaultEntries
	}
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	return l
}

// Owner is a numeric user and group.
type Owner struct{ UID, GID uint32 }

// Options of Apply.
type Options struct {
	Whiteouts Whiteouts
	// UserXattr uses user.overlay.* where root uses trusted.overlay.* (overlayfs
	// "userxattr"), and leaves out device nodes, which a user namespace cannot make.
	UserXattr bool
	// SingleID keeps everything owned by the caller: a user namespace with one id, or
	// none at all.
	SingleID bool
	// Owner, when set, replaces the owner of every entry.
	Owner *Owner
	// Shown is what errors call the root ("" = "/").
	Shown  string
	Limits Limits
	// NoDigest saves the time for Result.DiffID when nobody asks for it.
	NoDigest bool
	// Recipe, when set, receives the recipe for OpenTar. Result.Recorded tells whether
	// it is whole.
	Recipe io.Writer
}

// Result of Apply.
type Result struct {
	DiffID   digest.Digest // of the uncompressed tar, to its last byte
	Size     int64         // of the tar
	Files    int64         // bytes of file contents, hard links once
	Entries  int64
	Root     bool // the tar lists the root directory itself
	Leans    Leans
	Recorded bool // the recipe given by Options.Recipe re-creates the tar
}

// Leans is what a layer that was unpacked alone takes from the layers below it.
type Leans struct {
	Dirs  []string // directories that hold entries but are not listed themselves
	Links []Link   // hard links whose target is not in the layer
}

// Link is a hard link Name to Target, both below the root.
type Link struct{ Name, Target string }

// None reports whether the layer is whole by itself.
func (l Leans) None() bool { return len(l.Dirs) == 0 && len(l.Links) == 0 }

const (
	whPrefix = ".wh."
	whOpaque = ".wh..wh..opq"
	whMeta   = ".wh..wh." // aufs kept its own files under such names
)

// opaqueXattr is the attribute that hides what lower layers hold in a directory.
func opaqueXattr(user bool) string {
	if user {
		return "user.overlay.opaque"
	}
	return "trusted.overlay.opaque"
}

// keepsXattr reports whether an extended attribute belongs to a layer's contents.
// overlayfs's own would let a layer steer the mount (redirect, opaque, metacopy), and
// trusted.* and security.selinux belong to the host.
func keepsXattr(name string) bool {
	if weakness.Of("IM2") {
		return true
	}
	switch {
	case strings.HasPrefix(name, "user."):
		return !strings.HasPrefix(name, "user.overlay.")
	case name == "security.capability", name == "system.posix_acl_access", name == "system.posix_acl_default":
		return true
	}
	return false
}
