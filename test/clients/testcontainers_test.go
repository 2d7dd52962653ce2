package clients

import (
	"context"
	"database/sql"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	_ "github.com/lib/pq"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
	"github.com/testcontainers/testcontainers-go/wait"
)

// TestTestcontainersForGo: one engine for both, since the library remembers where it found the first.
func TestTestcontainersForGo(t *testing.T) {
	e := newEngine(t)
	e.serve()
	t.Setenv("DOCKER_HOST", "unix://"+e.socket())
	t.Setenv("HOME", e.state)
	t.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true") // its image comes from Docker Hub
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	t.Run("nginx", func(t *testing.T) { nginxInGo(ctx, t, e) })
	t.Run("postgres", func(t *testing.T) { postgresInGo(ctx, t, e) })
}

// get waits for a server that has just been started.
func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); r, err = http.Get(url) {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v\n%s", url, r.Status, err, b)
	}
	return string(b)
}

func nginxInGo(ctx context.Context, t *testing.T, e *engine) {
	e.nginx()
	c, err := testcontainers.Run(ctx, "nginx", testcontainers.WithExposedPorts("80/tcp"),
		testcontainers.WithLabels(map[string]string{"who": "go"}), testcontainers.WithWaitStrategy(wait.ForHTTP("/").WithStartupTimeout(30*time.Second)))
	testcontainers.CleanupContainer(t, c)
	if err != nil {
		t.Fatal(err)
	}
	url, err := c.Endpoint(ctx, "http")
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, url); got != "Welcome to nginx!\n" {
		t.Errorf("%q", got)
	}
	code, out, err := c.Exec(ctx, []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, exec.Multiplexed())
	if err != nil || code != 3 {
		t.Fatal(code, err)
	}
	if b, _ := io.ReadAll(out); string(b) != "out\nerr\n" && string(b) != "err\nout\n" {
		t.Errorf("exec: %q", b)
	}
	if err := c.CopyToContainer(ctx, []byte("hello"), "/var/www/html/greeting", 0o644); err != nil {
		t.Fatal(err)
	}
	if got := get(t, url+"/greeting"); got != "hello" {
		t.Errorf("%q", got)
	}
	f, err := c.CopyFileFromContainer(ctx, "/var/www/html/greeting")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, _ := io.ReadAll(f); string(b) != "hello" {
		t.Errorf("copied back: %q", b)
	}
	logged := regexp.MustCompile(`"GET /greeting HTTP/1.1" 200 5`)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) { // it is told after the answer
		logs, err := c.Logs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(logs)
		if err != nil {
			t.Fatal(err)
		}
		if logged.Match(b) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("logs: %s", b)
		}
	}
	if got := strings.TrimSpace(e.keg(nil, "ps", "--format", `{{.Image}} {{.State}} {{.Label "who"}}`)); got != "nginx running go" {
		t.Errorf("ps: %s", got)
	}
	timeout := 10 * time.Second
	if err := c.Stop(ctx, &timeout); err != nil {
		t.Fatal(err)
	}
	st, err := c.State(ctx)
	if err != nil || st.Running || st.ExitCode != 0 {
		t.Errorf("after the stop: %+v, %v", st, err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if url, err = c.Endpoint(ctx, "http"); err != nil {
		t.Fatal(err)
	}
	if got := get(t, url+"/greeting"); got != "hello" {
		t.Errorf("after the second start: %q", got)
	}
	if err := c.Terminate(ctx); err != nil {
		t.Fatal(err)
	}
	if got := e.keg(nil, "ps", "-aq"); got != "" {
		t.Errorf("left: %s", got)
	}
}

func postgresInGo(ctx context.Context, t *testing.T, e *engine) {
	e.postgres()
	c, err := postgres.Run(ctx, "postgres:15", postgres.WithDatabase("app"), postgres.WithUsername("u"), postgres.WithPassword("p"), postgres.BasicWaitStrategies())
	testcontainers.CleanupContainer(t, c)
	if err != nil {
		t.Fatal(err)
	}
	address, err := c.ConnectionString(ctx, "sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("postgres", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range []string{"create table words (w text)", "insert into words values ('one'), ('two')"} {
		if _, err := db.ExecContext(ctx, q); err != nil {
			t.Fatal(q, err)
		}
	}
	var n int
	var name string
	if err := db.QueryRowContext(ctx, "select count(*), current_database() from words").Scan(&n, &name); err != nil || n != 2 || name != "app" {
		t.Error(n, name, err)
	}
	if err := c.Terminate(ctx); err != nil {
		t.Fatal(err)
	}
	if got := e.keg(nil, "volume", "ls", "-q"); got != "" {
		t.Errorf("the volume is left: %s", got)
	}
}

// TestTestcontainersForNode runs node/test.mjs with the packages that scripts/clients installed.
func TestTestcontainersForNode(t *testing.T) {
	dir := os.Getenv("KEG_TEST_NODE")
	if dir == "" {
		t.Skip("needs the packages of node/package-lock.json: scripts/clients installs them")
	}
	e := newEngine(t)
	e.serve()
	e.nginx()
	e.postgres()
	out, err := e.client(dir, nil, "node", "test.mjs")
	if err != nil || out != "nginx: ok\npostgres: ok\n" {
		t.Errorf("%v\n%s", err, out)
	}
	if got := e.keg(nil, "ps", "-aq"); got != "" {
		t.Errorf("left: %s", got)
	}
}
