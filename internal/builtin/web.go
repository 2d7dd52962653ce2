// The programs of keg/hello and keg/web.
package builtin

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func hello(string, []string) int {
	host, _ := os.Hostname()
	fmt.Printf(`
Hello from keg!
This message shows that your installation works.

What just happened:
 1. keg looked for the image "keg/hello" and made it of its own binary.
 2. It stacked a writable layer on it, boxed a process in (%s/%s, host name %s)
    and started this program as process %d.
 3. What you read went through the container's monitor to your terminal.

Something more ambitious:
 $ keg run -it keg/shell

`, runtime.GOOS, runtime.GOARCH, host, os.Getpid())
	return 0
}

// web is a static web server: web [--addr :80] [--root /usr/share/keg/html].
func web(name string, args []string) int {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	addr := fs.String("addr", ":80", "address to listen on")
	root := fs.String("root", webRoot, "directory to serve")
	if fs.Parse(args) != nil {
		return 2
	}
	dir, err := os.OpenRoot(*root)
	if err != nil {
		return fail(name, err)
	}
	srv := &http.Server{
		Addr:              *addr,
		Handler:           logged(http.FileServerFS(dir.FS())),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		done <- srv.Shutdown(end)
	}()
	fmt.Printf("serving %s on %s\n", *root, *addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fail(name, err)
	}
	if err := <-done; err != nil {
		return fail(name, err)
	}
	return 0
}

// logged writes one line a request, quoted: what a client sends must not move the
// reader's cursor.
func logged(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		h.ServeHTTP(s, r)
		fmt.Printf("%s %s %q %d %q\n", r.RemoteAddr, r.Method, r.URL.Path, s.status, r.UserAgent())
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(code int) {
	s.status = code
	s.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController (and so sendfile) reach the connection.
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func fail(name string, err error) int {
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	return 1
}
