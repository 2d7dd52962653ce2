// Package layer turns a layer tarball into a directory and back. Its input is hostile.
package layer
