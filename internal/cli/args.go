// How many arguments a command takes, in Docker's words.

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func noArgs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return argsError(c, "accepts no arguments", "Run")
}

func minArgs(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= n {
			return nil
		}
		return argsError(c, fmt.Sprintf("requires at least %d %s", n, plural("argument", n)), "See")
	}
}

func maxArgs(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) <= n {
			return nil
		}
		return argsError(c, fmt.Sprintf("requires at most %d %s", n, plural("argument", n)), "Run")
	}
}

func rangeArgs(low, high int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= low && len(args) <= high {
			return nil
		}
		return argsError(c, fmt.Sprintf("requires at least %d and at most %d %s", low, high, plural("argument", high)), "Run")
	}
}

func exactArgs(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return argsError(c, fmt.Sprintf("requires %d %s", n, plural("argument", n)), "Run")
	}
}

func argsError(c *cobra.Command, what, verb string) error {
	return failf("%s: '%s' %s\n\nUsage:  %s\n\n%s '%s --help' for more information",
		c.Root().Name(), c.CommandPath(), what, c.UseLine(), verb, c.CommandPath())
}

func plural(word string, n int) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
