// The table of programs that the binary is when called by their names.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/u-root/u-root/pkg/core"
	"github.com/u-root/u-root/pkg/core/base64"
	"github.com/u-root/u-root/pkg/core/cat"
	"github.com/u-root/u-root/pkg/core/chmod"
	"github.com/u-root/u-root/pkg/core/cp"
	"github.com/u-root/u-root/pkg/core/find"
	"github.com/u-root/u-root/pkg/core/gzip"
	"github.com/u-root/u-root/pkg/core/mkdir"
	"github.com/u-root/u-root/pkg/core/mktemp"
	"github.com/u-root/u-root/pkg/core/mv"
	"github.com/u-root/u-root/pkg/core/rm"
	"github.com/u-root/u-root/pkg/core/shasum"
	"github.com/u-root/u-root/pkg/core/tar"
	"github.com/u-root/u-root/pkg/core/touch"
	"github.com/u-root/u-root/pkg/core/xargs"
)

// applet is a program: its name as called, its arguments, its exit code.
type applet func(name string, args []string) int

// applets finds a program. It is a switch, not a map: a map would be built at every
// start of keg.
func applets(name string) (applet, bool) {
	if a := ownApplet(name); a != nil {
		return a, true
	}
	if c := coreApplet(name); c != nil {
		return func(name string, args []string) int { return runCore(name, c(), args) }, true
	}
	return nil, false
}

func ownApplet(name string) applet {
	switch name {
	case "hello":
		return hello
	case "web":
		return web
	case "sh", "ash", "bash":
		return sh
	case "echo", "printf", "test", "[", "true", "false", "pwd", "kill":
		return shellBuiltin
	case "basename", "dirname":
		return pathPart
	case "cut":
		return cut
	case "date":
		return date
	case "df":
		return df
	case "du":
		return du
	case "env", "printenv":
		return env
	case "grep", "egrep", "fgrep":
		return grep
	case "head", "tail":
		return headTail
	case "hostname":
		return hostname
	case "id", "whoami":
		return id
	case "ln":
		return ln
	case "ls":
		return ls
	case "nc":
		return nc
	case "nproc":
		return nproc
	case "ps":
		return ps
	case "readlink":
		return readlink
	case "sed":
		return sed
	case "seq":
		return seq
	case "sleep":
		return sleep
	case "sort":
		return sortLines
	case "stat":
		return stat
	case "sync":
		return syncDisks
	case "tee":
		return tee
	case "tr":
		return tr
	case "uname":
		return uname
	case "uniq":
		return uniq
	case "wc":
		return wc
	case "wget":
		return wget
	case "which":
		return which
	case "yes":
		return yes
	}
	return nil
}

func coreApplet(name string) func() core.Command {
	switch name {
	case "base64":
		return base64.New
	case "cat":
		return cat.New
	case "chmod":
		return chmod.New
	case "cp":
		return cp.New
	case "find":
		return find.New
	case "gzip", "gunzip", "gzcat", "zcat":
		return func() core.Command { return gzip.New(name) }
	case "mkdir":
		return mkdir.New
	case "mktemp":
		return mktemp.New
	case "mv":
		return mv.New
	case "rm":
		return rm.New
	case "shasum":
		return shasum.New
	case "tar":
		return tar.New
	case "touch":
		return touch.New
	case "xargs":
		return xargs.New
	}
	return nil
}

// toolNames are the links of the tools layer, sorted.
func toolNames() []string {
	return []string{"[", "ash", "base64", "basename", "bash", "cat", "chmod", "cp", "cut", "date", "df", "dirname", "du",
		"echo", "egrep", "env", "false", "fgrep", "find", "grep", "gunzip", "gzip", "head", "hostname", "id", "kill",
		"ln", "ls", "mkdir", "mktemp", "mv", "nc", "nproc", "printenv", "printf", "ps", "pwd", "readlink", "rm", "sed", "seq",
		"sh", "shasum", "sleep", "sort", "stat", "sync", "tail", "tar", "tee", "test", "touch", "tr", "true",
		"uname", "uniq", "wc", "wget", "which", "whoami", "xargs", "yes", "zcat"}
}

func runCore(name string, c core.Command, args []string) int {
	c.SetIO(os.Stdin, os.Stdout, os.Stderr)
	err := c.RunContext(context.Background(), args...)
	if err == nil {
		return 0
	}
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	return 1
}
