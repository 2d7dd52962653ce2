package keg

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Every command and every monitor pays for the initialisation of every package, in time and in memory that stays.
// These are the ones that may cost more than a little, in bytes as they are; all others may not.
var initBytes = map[string]int{
	"golang.org/x/crypto/ssh":                             20 << 10,
	"github.com/opencontainers/go-digest":                 96 << 10, // expressions of the types that all images share
	"github.com/ulikunitz/xz":                             36 << 10,
	"github.com/klauspost/compress/flate":                 30 << 10,
	"github.com/miekg/dns":                                26 << 10,
	"mvdan.cc/sh/v3/fileutil":                             18 << 10,
	"github.com/moby/buildkit/frontend/dockerfile/parser": 16 << 10,
	"unicode": 14 << 10,
	"github.com/klauspost/compress/internal/snapref": 12 << 10,
	"github.com/dustin/go-humanize":                  12 << 10,
	"mvdan.cc/sh/v3/interp":                          10 << 10,
	"vendor/golang.org/x/net/http2/hpack":            10 << 10,
	"github.com/google/nftables":                     9 << 10,
	"github.com/vishvananda/netlink":                 8 << 10,
	"mime":                                           8 << 10,
	"mvdan.cc/sh/v3/expand":                          8 << 10,
	"net/http":                                       8 << 10,
	"github.com/BurntSushi/toml/internal":            6 << 10,
	"compress/flate":                                 6 << 10,
}

const (
	initBytesOfOthers = 4 << 10
	initBytesOfAll    = 400 << 10
	initTime          = 300 * time.Microsecond // of one package, the best of several starts
)

// TestStartIsLean: no package whose initialisation costs much has come onto the path of every start.
func TestStartIsLean(t *testing.T) {
	keg := filepath.Join(t.TempDir(), "keg")
	if err := os.WriteFile(keg, build(t, ".", "amd64"), 0o755); err != nil {
		t.Fatal(err)
	}
	best, size := map[string]time.Duration{}, map[string]int{}
	for range 8 {
		cmd := exec.Command(keg, "--version")
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		trace(string(out), func(pkg string, d time.Duration, bytes int) {
			if old, ok := best[pkg]; !ok || d < old {
				best[pkg] = d
			}
			size[pkg] = bytes
		})
	}
	if len(best) < 50 {
		t.Fatalf("%d packages in the trace", len(best))
	}
	all := 0
	for pkg, n := range size {
		all += n
		most, ok := initBytes[pkg]
		if !ok {
			most = initBytesOfOthers
		}
		if n > most {
			t.Errorf("%s allocates %d bytes at every start, more than %d; make it when it is needed", pkg, n, most)
		}
		if best[pkg] > initTime && pkg != "runtime" {
			t.Errorf("%s takes %v at every start", pkg, best[pkg])
		}
	}
	t.Logf("%d packages allocate %d bytes", len(size), all)
	if all > initBytesOfAll {
		t.Errorf("the packages allocate %d bytes at every start, more than %d", all, initBytesOfAll)
	}
}

// trace reads lines such as "init mime @2.4 ms, 0.028 ms clock, 4952 bytes, 4 allocs".
func trace(out string, each func(pkg string, d time.Duration, bytes int)) {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 11 || f[0] != "init" || f[8] != "bytes," {
			continue
		}
		ms, _ := strconv.ParseFloat(f[4], 64)
		n, _ := strconv.Atoi(f[7])
		each(f[1], time.Duration(ms*float64(time.Millisecond)), n)
	}
}
