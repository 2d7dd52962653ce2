package layer

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"keg/internal/fault"
)

func command(dir, name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	return string(out), err
}

// hostile is the corpus: tars that try to reach outside (rows IM1, IM2, CP4). refused
// ones must fail as the image's fault; the others may do what they like inside.
func hostile(out string) map[string]struct {
	refused bool
	items   []item
} {
	type c = struct {
		refused bool
		items   []item
	}
	up := strings.Repeat("../", 12)
	deepA := strings.TrimSuffix(strings.Repeat("a/", 1000), "/")
	m := map[string]c{
		"dotdot":                 {true, []item{file("../canary", "bad")}},
		"dotdot far":             {true, []item{file(up+out[1:]+"/canary", "bad")}},
		"dotdot inside":          {true, []item{folder("a/"), file("a/../../canary", "bad")}},
		"dotdot dir":             {true, []item{mode(folder("../"), 0o777)}},
		"dotdot dir deep":        {true, []item{folder("../../etc/new/")}},
		"dotdot symlink":         {true, []item{symlink("../link", "x")}},
		"dotdot hard link":       {true, []item{file("a", "a"), hard("../hard", "a")}},
		"dotdot fifo":            {true, []item{node("../fifo", tar.TypeFifo, 0, 0)}},
		"dotdot whiteout":        {true, []item{file("../.wh.canary", "")}},
		"dotdot opaque":          {true, []item{file("../../.wh..wh..opq", "")}},
		"absolute":               {false, []item{file(out+"/canary", "in")}},
		"absolute dir":           {false, []item{mode(folder(out+"/dir/"), 0o777), file(out+"/dir/file", "in")}},
		"absolute slashes":       {false, []item{file("//////etc/passwd", "in")}},
		"pax path":               {true, []item{rawPAX("path", "../../canary"), file("ok", "bad")}},
		"pax absolute":           {false, []item{rawPAX("path", out+"/canary"), file("ok", "in")}},
		"pax linkpath":           {true, []item{rawPAX("linkpath", "../../canary"), hard("l", "ok")}},
		"symlink abs then file":  {false, []item{symlink("l", out), file("l/canary", "in")}},
		"symlink rel then file":  {false, []item{symlink("l", up+out[1:]), file("l/canary", "in")}},
		"symlink then dir":       {false, []item{symlink("l", out+"/dir"), mode(folder("l/"), 0o777)}},
		"symlink then dir attrs": {false, []item{symlink("l", out), folder("l/dir/"), mode(folder("l/dir"), 0o777)}},
		"symlink then symlink":   {false, []item{symlink("l", out), symlink("l/canary", "x")}},
		"symlink then hard":      {false, []item{symlink("l", out), hard("h", "l/canary")}},
		"symlink then hard in":   {false, []item{symlink("l", out), file("f", "f"), hard("l/canary", "f")}},
		"symlink then fifo":      {false, []item{symlink("l", out), node("l/fifo", tar.TypeFifo, 0, 0)}},
		"symlink then whiteout":  {false, []item{symlink("l", out), file("l/.wh.canary", "")}},
		"symlink then opaque":    {false, []item{symlink("l", out), file("l/.wh..wh..opq", "")}},
		"symlink replaced":       {false, []item{symlink("l", out), file("l", "x"), folder("l/"), file("l/canary", "in")}},
		"symlink chain":          {false, []item{symlink("a", "b"), symlink("b", "c"), symlink("c", out), file("a/canary", "in")}},
		"symlink chain up":       {false, []item{symlink("a", "."), symlink("a/b", ".."), symlink("a/b/c", ".."), file("a/b/c/canary", "in")}},
		"symlink dots":           {false, []item{folder("d/"), symlink("d/l", "../.."), file("d/l/canary", "in")}},
		"symlink loop":           {false, []item{symlink("a", "b"), symlink("b", "a"), file("a/x", "bad")}},
		"symlink self":           {false, []item{symlink("a", "a/a"), file("a/x", "bad")}},
		"symlink proc":           {false, []item{symlink("p", "/proc/self/root"), file("p"+out+"/canary", "in")}},
		"symlink proc cwd":       {false, []item{symlink("p", "/proc/self/cwd"), file("p/canary", "in")}},
		"symlink proc fd":        {false, []item{symlink("p", "/proc/self/fd/3"), file("p/canary", "in")}},
		"symlink file then file": {false, []item{symlink("f", out+"/canary"), file("f", "in")}},
		"symlink file chmod":     {false, []item{symlink("f", out+"/canary"), mode(symlink("f", out+"/canary"), 0o777), mode(hard("f2", "f"), 0o777)}},
		"hard to symlink chmod":  {false, []item{symlink("f", out+"/canary"), hard("g", "f"), mode(file("g", "in"), 0o4777)}},
		"hard out":               {true, []item{hard("h", up+out[1:]+"/canary")}},
		"hard abs":               {false, []item{hard("h", out+"/canary")}},
		"hard abs then write":    {false, []item{hard("h", out+"/canary"), file("h", "in")}},
		"hard to root":           {true, []item{hard("h", "/")}},
		"hard to itself":         {true, []item{file("h", "h"), hard("h", "./h")}},
		"hard to dir":            {false, []item{folder("d/"), hard("h", "d")}},
		"hard to whiteout":       {true, []item{file(".wh.w", ""), hard("h", "w")}},
		"root is a file":         {true, []item{file(".", "x")}},
		"root is a symlink":      {true, []item{symlink("./", out)}},
		"root is a hard link":    {true, []item{hard("/", "x")}},
		"root is a fifo":         {true, []item{node("a/..", tar.TypeFifo, 0, 0)}},
		"whiteout empty":         {true, []item{file(".wh.", "")}},
		"whiteout dot":           {true, []item{file(".wh..", "")}},
		"whiteout dotdot":        {true, []item{folder("d/"), file("d/.wh...", "")}},
		"whiteout dir":           {true, []item{file(".wh.x/y", "")}},
		"char 0:0":               {true, []item{node("w", tar.TypeChar, 0, 0)}},
		"device out of range":    {true, []item{node("w", tar.TypeChar, 1<<20, 0)}},
		"overlay attributes": {false, []item{pax(folder("d/"), "SCHILY.xattr.trusted.overlay.redirect", "/x", "SCHILY.xattr.trusted.overlay.opaque", "y",
			"SCHILY.xattr.user.overlay.opaque", "y", "SCHILY.xattr.user.overlay.whiteout", "y", "SCHILY.xattr.trusted.overlay.metacopy", "",
			"SCHILY.xattr.trusted.other", "x", "SCHILY.xattr.security.selinux", "x")}},
		"owner -1":           {true, []item{{h: tar.Header{Name: "f", Typeflag: tar.TypeReg, Uid: 1<<32 - 1}}}},
		"owner huge":         {true, []item{{h: tar.Header{Name: "f", Typeflag: tar.TypeReg, Gid: 1 << 40}}}},
		"unknown type":       {true, []item{{h: tar.Header{Name: "f", Typeflag: 'Z'}}}},
		"file as parent":     {false, []item{file("f", "f"), file("f/x", "bad")}},
		"long component":     {false, []item{file(strings.Repeat("n", 300), "bad")}},
		"long path":          {true, []item{file(strings.Repeat("n/", 2100)+"x", "bad")}},
		"deep path":          {false, []item{file(deepA+"/f", "in")}},
		"dir over itself":    {false, []item{symlink("d", "."), folder("d/d/d/"), file("d/d/d/f", "in"), file("d", "x"), file("d/f", "x")}},
		"replace own parent": {false, []item{folder("a/"), symlink("a/self", "."), file("a/self/self/self/x", "x"), file("a/self", "f"), symlink("a", out), file("a/canary", "in")}},
	}
	return m
}

func TestHostileTars(t *testing.T) {
	n := 0
	for _, ways := range []Whiteouts{Overlay, Remove, Plain} {
		// Only for the names: each tar aims at the outside of its own box.
		for name, c := range hostile("/") {
			n++
			b := newBox(t)
			o := options()
			o.Whiteouts = ways
			_, err := b.apply(pack(t, hostile(b.outside)[name].items...), o)
			// Other ways, the same walls; the verdicts differ in detail.
			if ways == Overlay && c.refused && !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: not refused as invalid: %v", name, err)
			}
			noSmuggledXattrs(t, name, b.dir)
		}
	}
	if n < 180 {
		t.Errorf("only %d tars", n)
	}
}

func noSmuggledXattrs(t *testing.T, name, dir string) {
	t.Helper()
	root, _ := os.Open(dir)
	defer root.Close()
	Walk(root, func(e Entry) (bool, error) {
		names, _ := listXattrs(e.dir, e.base)
		for _, x := range names {
			if !keepsXattr(x) && x != opaqueName() {
				t.Errorf("%s: %s has %s", name, e.Path, x)
			}
		}
		if name == "overlay attributes" && len(names) > 0 {
			t.Errorf("%s: %s has %v", name, e.Path, names)
		}
		return true, nil
	})
}

// What lies through links lands inside, where a program in the container would find it.
func TestLinksLeadInside(t *testing.T) {
	for name, at := range map[string]string{
		"symlink abs then file": "canary", "symlink chain": "canary", "symlink proc": "canary", "absolute": "canary"} {
		b := newBox(t)
		if _, err := b.apply(pack(t, hostile(b.outside)[name].items...), options()); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		where := filepath.Join(b.outside, at)
		if name == "symlink proc" {
			where = filepath.Join("/proc/self/root", where)
		}
		if b.read(where) != "in" {
			t.Errorf("%s: %s", name, tree(t, b.dir))
		}
	}
}

// GNU tar's long names can say what a header's own name field does not.
func TestGNULongNameOverride(t *testing.T) {
	h := tar.Header{Name: "../" + strings.Repeat("x", 150), Typeflag: tar.TypeReg, Format: tar.FormatGNU}
	b := newBox(t)
	if _, err := b.apply(pack(t, item{h: h, body: "bad"}), options()); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestTruncatedAndGarbled(t *testing.T) {
	good := pack(t, folder("d/"), file("d/f", strings.Repeat("x", 3000)), pax(file("g", "g"), "SCHILY.xattr.user.a", "b"))
	for cut := 0; cut < len(good)-1024; cut += 293 {
		b := newBox(t)
		b.apply(good[:cut], options())
	}
	for i := 0; i < len(good); i += 67 {
		bad := bytes.Clone(good)
		bad[i] ^= 0x55
		newBox(t).apply(bad, options())
	}
	if _, err := newBox(t).apply(good[:1024+512+100], options()); !fault.Is(err, fault.Invalid) {
		t.Errorf("cut in a file: %v", err)
	}
	if _, err := newBox(t).apply(bytes.Repeat([]byte("garbage!"), 512), options()); !fault.Is(err, fault.Invalid) {
		t.Errorf("garbage: %v", err)
	}
}

func FuzzApply(f *testing.F) {
	for _, c := range hostile("/outside") {
		f.Add(pack(f, c.items...), uint8(0))
	}
	f.Add(pack(f, folder("d/"), file("d/f", "x"), hard("h", "d/f"), file(".wh.x", "")), uint8(1))
	f.Fuzz(func(t *testing.T, tarball []byte, ways uint8) {
		b := newBox(t)
		o := Options{Whiteouts: Whiteouts(ways % 3), SingleID: true, UserXattr: true, Limits: Limits{Entries: 200, Bytes: 1 << 20}}
		var recipe bytes.Buffer
		o.Recipe = &recipe
		res, err := b.apply(tarball, o)
		if err != nil || !res.Recorded {
			return
		}
		got, err := recreate(t, b.dir, recipe.Bytes())
		if err != nil || !bytes.Equal(got, tarball) {
			t.Errorf("recorded, but the tar comes back as %d bytes: %v", len(got), err)
		}
	})
}
