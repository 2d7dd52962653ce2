//go:build !weaken

// Package weakness lets a build for tests leave out one check at a time, so that the attack that the check
// answers is seen to be noticed. In every other build its functions are nothing: the compiler removes what
// depends on them.
package weakness

// Of tells whether the checks of a row of docs/security-tests.md are left out. They never are.
func Of(string) bool { return false }

// Env is what a child process needs to be as weak as this one.
func Env() []string { return nil }

// Obey would execute what an image says; Spawn any program; Leak would lose a descriptor.
func Obey(map[string]string) {}
func Spawn()                 {}
func Leak()                  {}
