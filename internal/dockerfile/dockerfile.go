// Package dockerfile turns text into stages and typed instructions with their source
// positions. It does no I/O.
package dockerfile
