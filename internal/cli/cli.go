// Package cli is the command line. One file a command: parse, call the engine, print.
package cli

// Main runs the command line and returns the exit status.
func Main(args []string) int { panic("unwritten") }
