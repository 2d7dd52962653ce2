// The layers of the carried images as plans: lists of entries, and the one loop that
// writes them as a reproducible tar.
package builtin

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// self is the running binary. It is opened, never linked: an image stays what it was
// when keg is upgraded.
const self = "/proc/self/exe"

const webRoot = "/usr/share/keg/html"

// layerPlan is a layer as data.
type layerPlan struct {
	createdBy string
	entries   []entry
}

// entry is a directory (name ends in "/"), a symlink, a small file, or the binary.
type entry struct {
	name   string
	mode   int64
	link   string
	text   string
	binary bool
}

func baseLayer() layerPlan {
	return layerPlan{"COPY keg /usr/bin/keg", []entry{
		{name: "bin/"}, {name: "etc/"},
		{name: "etc/group", text: "root:x:0:\nnogroup:x:65534:\n"},
		{name: "etc/nsswitch.conf", text: "hosts: files dns\n"},
		{name: "etc/os-release", text: "NAME=\"keg\"\nID=keg\nPRETTY_NAME=\"keg carried image\"\n"},
		{name: "etc/passwd", text: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{name: "root/", mode: 0o700}, {name: "tmp/", mode: 0o1777},
		{name: "usr/"}, {name: "usr/bin/"}, {name: "usr/bin/keg", mode: 0o755, binary: true},
		{name: "var/"}, {name: "var/lib/"}, {name: "var/tmp/", mode: 0o1777},
	}}
}

func linkLayer(names ...string) layerPlan {
	p := layerPlan{createdBy: "RUN ln -s ../usr/bin/keg /bin/" + strings.Join(names, " ")}
	p.entries = append(p.entries, entry{name: "bin/"})
	for _, n := range names {
		p.entries = append(p.entries, entry{name: "bin/" + n, link: "../usr/bin/keg"})
	}
	return p
}

func toolsLayer() layerPlan {
	p := linkLayer(toolNames()...)
	p.createdBy = "RUN keg-install-tools /bin"
	return p
}

func webLayer() layerPlan {
	p := linkLayer("web")
	p.createdBy = "COPY html " + webRoot
	dir := ""
	for part := range strings.SplitSeq(strings.Trim(webRoot, "/"), "/") {
		dir = path.Join(dir, part)
		if dir != "usr" { // made by the base layer
			p.entries = append(p.entries, entry{name: dir + "/"})
		}
	}
	p.entries = append(p.entries, entry{name: path.Join(dir, "index.html"), text: welcome})
	return p
}

const welcome = `<!doctype html>
<title>keg/web</title>
<h1>It works.</h1>
<p>This page is served by keg/web. COPY your own over /usr/share/keg/html/index.html.</p>
`

// open streams the plan as a tar. All that could differ between two machines (times,
// owners, order) is constant.
func (l layerPlan) open() io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.write(w)) }()
	return r
}

func (l layerPlan) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, e := range l.entries {
		if err := e.write(tw); err != nil {
			return fmt.Errorf("write %s of a carried image: %w", e.name, err)
		}
	}
	return tw.Close()
}

func (e entry) write(tw *tar.Writer) error {
	h := &tar.Header{Name: e.name, Mode: e.mode, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	var body io.Reader = strings.NewReader(e.text)
	switch {
	case strings.HasSuffix(e.name, "/"):
		h.Typeflag = tar.TypeDir
	case e.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
	case e.binary:
		f, err := os.Open(self)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		h.Typeflag, h.Size, body = tar.TypeReg, st.Size(), f
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(e.text))
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.CopyN(tw, body, h.Size)
	return err
}
