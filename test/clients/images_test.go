package clients

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A tree is what an image consists of: programs of Debian's packages, as they are installed here, with their libraries.
type tree struct {
	t     *testing.T
	files map[string]*entry
}

type entry struct {
	mode fs.FileMode
	uid  int
	link string
	data []byte
}

// newTree is Debian's busybox, with all its names, in a root that is laid out as Debian's.
func newTree(t *testing.T) *tree {
	t.Helper()
	r := &tree{t, map[string]*entry{}}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		r.files[d] = &entry{mode: fs.ModeSymlink, link: "usr/" + d}
	}
	for _, d := range []string{"dev", "etc", "proc", "root", "run", "sys", "usr/sbin", "usr/lib64", "var/lib", "var/log"} {
		r.dir(d, 0)
	}
	r.dir("tmp", 0).mode |= 0o777 | fs.ModeSticky
	r.text("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\n")
	r.text("etc/group", 0o644, "root:x:0:\nwww-data:x:33:\npostgres:x:70:\n")
	r.program("busybox")
	list, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		t.Fatalf("busybox: %v (scripts/install-test-deps installs it)", err)
	}
	for _, name := range strings.Fields(string(list)) {
		if p := "usr/bin/" + name; r.files[p] == nil {
			r.files[p] = &entry{mode: fs.ModeSymlink, link: "busybox"}
		}
	}
	return r
}

func (r *tree) dir(p string, uid int) *entry {
	e := &entry{mode: fs.ModeDir | 0o755, uid: uid}
	r.files[p] = e
	return e
}

func (r *tree) text(p string, mode fs.FileMode, text string) {
	r.files[p] = &entry{mode: mode, data: []byte(text)}
}

// copy adds a file or a link under the path that it really has: /lib is /usr/lib.
func (r *tree) copy(p string) {
	r.t.Helper()
	dir, err := filepath.EvalSymlinks(filepath.Dir(p))
	if err != nil {
		r.t.Fatal(err)
	}
	at := strings.TrimPrefix(filepath.Join(dir, filepath.Base(p)), "/")
	b, err := os.ReadFile(p)
	if err != nil {
		r.t.Fatal(err)
	}
	st, err := os.Stat(p)
	if err != nil {
		r.t.Fatal(err)
	}
	r.files[at] = &entry{mode: st.Mode().Perm(), data: b}
}

// program adds one of PATH, or by its path, and the libraries that it is linked to.
func (r *tree) program(name string) {
	r.t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		r.t.Fatalf("%v (scripts/install-test-deps installs it)", err)
	}
	r.copy(p)
	r.libraries(p)
}

func (r *tree) libraries(p string) {
	out, _ := exec.Command("ldd", p).Output() // an error: it is linked statically
	for f := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(f, "/") {
			r.copy(strings.TrimSuffix(f, ":"))
		}
	}
}

// debian adds the files of an installed package that keep wants.
func (r *tree) debian(name string, keep func(string) bool) {
	r.t.Helper()
	list, err := exec.Command("dpkg", "-L", name).Output()
	if err != nil {
		r.t.Fatalf("package %s: %v (scripts/install-test-deps installs it)", name, err)
	}
	for p := range strings.Lines(string(list)) {
		p = strings.TrimSpace(p)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && keep(p) {
			r.copy(p)
			if strings.HasSuffix(p, ".so") || st.Mode()&0o111 != 0 {
				r.libraries(p)
			}
		}
	}
}

// tar is the tree as an archive, with the directories between.
func (r *tree) tar() *bytes.Buffer {
	for p := range r.files {
		for d := filepath.Dir(p); d != "."; d = filepath.Dir(d) {
			if r.files[d] == nil {
				r.dir(d, 0)
			}
		}
	}
	var names []string
	for p := range r.files {
		names = append(names, p)
	}
	slices.Sort(names)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range names {
		e := r.files[p]
		h := &tar.Header{Name: p, Mode: int64(e.mode.Perm()), Uid: e.uid, Gid: e.uid, Size: int64(len(e.data)), Linkname: e.link, Typeflag: tar.TypeReg}
		switch {
		case e.mode.IsDir():
			h.Typeflag = tar.TypeDir
			if e.mode&fs.ModeSticky != 0 {
				h.Mode |= 0o1000
			}
		case e.mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		}
		if err := w.WriteHeader(h); err != nil {
			r.t.Fatal(err)
		}
		w.Write(e.data)
	}
	if err := w.Close(); err != nil {
		r.t.Fatal(err)
	}
	return &b
}

// image imports the tree under a name.
func (e *engine) image(name string, r *tree, changes ...string) {
	e.t.Helper()
	args := []string{"import"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	e.keg(r.tar(), append(args, "-", name)...)
}

func (e *engine) busybox() { e.t.Helper(); e.image("busybox", newTree(e.t), `CMD ["sh"]`) }

const nginxConf = `daemon off;
user www-data;
error_log /dev/stderr notice;
events {}
http {
	include mime.types;
	access_log /dev/stdout;
	server {
		listen 80;
		root /var/www/html;
	}
}
`

// nginx is Debian's, which logs where its image on Docker Hub does.
func (e *engine) nginx() {
	e.t.Helper()
	r := newTree(e.t)
	r.program("nginx")
	r.copy("/etc/nginx/mime.types")
	r.text("etc/nginx/nginx.conf", 0o644, nginxConf)
	r.text("var/www/html/index.html", 0o644, "Welcome to nginx!\n")
	r.dir("var/lib/nginx", 0)
	r.dir("var/log/nginx", 0)
	e.image("nginx", r, "EXPOSE 80", "STOPSIGNAL SIGQUIT", `CMD ["nginx"]`)
}

// postgresEntry does what users of the image on Docker Hub rely on: a cluster and a database by the environment at the first
// start, with a server that only the socket reaches meanwhile.
const postgresEntry = `#!/bin/sh
set -eu
: "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	echo "$POSTGRES_PASSWORD" >/tmp/password
	initdb -N -D "$PGDATA" -U "$POSTGRES_USER" --no-locale -E UTF8 --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust
	rm /tmp/password
	echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
	pg_ctl -D "$PGDATA" -o '-c listen_addresses=' -w start
	[ "$POSTGRES_DB" = postgres ] || createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
	pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@" -c 'listen_addresses=*'
`

// postgres is Debian's PostgreSQL 15.
func (e *engine) postgres() {
	e.t.Helper()
	r := newTree(e.t)
	server := func(p string) bool {
		return (strings.HasPrefix(p, "/usr/lib/postgresql/15/") || strings.HasPrefix(p, "/usr/share/postgresql/15/")) &&
			!strings.Contains(p, "/bitcode/") && !strings.Contains(p, "llvmjit") && !strings.Contains(p, "/man/")
	}
	r.debian("postgresql-15", server)
	r.debian("postgresql-client-15", server)
	r.debian("tzdata", func(p string) bool { return p == "/usr/share/zoneinfo/Etc/UTC" || strings.HasSuffix(p, "/tzdata.zi") })
	r.text("usr/bin/entry", 0o755, postgresEntry)
	r.dir("var/lib/postgresql", 70)
	r.dir("var/lib/postgresql/data", 70)
	r.dir("run/postgresql", 70)
	r.dir("var/run", 0)
	r.files["var/run"] = &entry{mode: fs.ModeSymlink, link: "../run"}
	e.image("postgres:15", r, "EXPOSE 5432", "USER postgres", "VOLUME /var/lib/postgresql/data", "STOPSIGNAL SIGINT",
		fmt.Sprintf("ENV PGDATA=/var/lib/postgresql/data PATH=%s", "/usr/lib/postgresql/15/bin:/usr/bin:/usr/sbin"), `ENTRYPOINT ["entry"]`, `CMD ["postgres"]`)
}
