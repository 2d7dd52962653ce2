//go:build weaken

// Package weakness, in a build made to be attacked: KEG_WEAKEN names the row whose checks are left out.
package weakness

import (
	"os"
	"os/exec"
	"syscall"
)

const variable = "KEG_WEAKEN"

var row = os.Getenv(variable)

// Of tells whether the checks of a row are left out.
func Of(id string) bool { return id == row }

// Env makes a child as weak.
func Env() []string { return []string{variable + "=" + row} }

// Obey executes what an image says of itself.
func Obey(labels map[string]string) {
	for _, v := range labels {
		_ = exec.Command("/bin/sh", "-c", v).Run()
	}
}

// Spawn executes a program.
func Spawn() { _ = exec.Command("/bin/true").Run() }

// Leak loses a descriptor.
func Leak() { _, _ = syscall.Dup(0) }
