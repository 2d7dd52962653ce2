package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestManyStreams: 200 followers of one log and 200 programs started with exec at once; each gets each byte once and in
// order.
func TestManyStreams(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: starts containers")
	}
	const clients, lines = 200, 1000
	c := newStreamClient(startServe(t))
	c.post(t, "/images/create?fromImage=keg/shell&tag=latest", "", nil)
	var made struct{ ID string }
	c.post(t, "/containers/create?name=writer", fmt.Sprintf(`{"Image":"keg/shell","Cmd":["sh","-c","i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; read end"],"OpenStdin":true}`, lines), &made)
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	work, ctx := errgroup.WithContext(ctx)
	c.post(t, "/containers/writer/start", "", nil)
	for i := range clients {
		work.Go(func() error {
			q, _ := http.NewRequestWithContext(ctx, "GET", "http://docker/v1.43/containers/writer/logs?follow=1&stdout=1&stderr=1", nil)
			r, err := c.Do(q)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			return sameStream(fmt.Sprint("follower ", i), r.Body, want.String())
		})
		work.Go(func() error {
			said := strings.Repeat(fmt.Sprintf("exec %d says this.\n", i), 50)
			return c.exec(ctx, fmt.Sprint("exec ", i), fmt.Sprintf(`{"Cmd":["sh","-c","i=0; while [ $i -lt 50 ]; do echo exec %d says this.; i=$((i+1)); done"],"AttachStdout":true,"AttachStderr":true}`, i), said)
		})
	}
	if err := work.Wait(); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	// Who follows hears of the end, too.
	c.post(t, "/containers/writer/kill", "", nil)
	r, err := c.Get("http://docker/v1.43/containers/writer/logs?follow=1&stdout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if b, err := demux(r.Body); err != nil || b != want.String() {
		t.Errorf("after the end: %d bytes, %v", len(b), err)
	}
}

type streamClient struct {
	*http.Client
	sock string
}

func newStreamClient(sock string) *streamClient {
	dial := func(context.Context, string, string) (net.Conn, error) {
		c, err := net.Dial("unix", sock)
		for ; err != nil && strings.Contains(err.Error(), "temporarily unavailable"); c, err = net.Dial("unix", sock) {
			time.Sleep(time.Millisecond)
		}
		return c, err
	}
	return &streamClient{&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}, sock}
}

func (c *streamClient) send(path, body string, v any) error {
	r, err := c.Post("http://docker/v1.43"+path, "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode >= 300 {
		return fmt.Errorf("%s: %s %s %w", path, r.Status, b, err)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(b, v)
}

func (c *streamClient) post(t *testing.T, path, body string, v any) {
	t.Helper()
	if err := c.send(path, body, v); err != nil {
		t.Fatal(err)
	}
}

func (c *streamClient) exec(ctx context.Context, name, body, want string) error {
	var made struct{ ID string }
	if err := c.send("/containers/writer/exec", body, &made); err != nil {
		return err
	}
	conn, err := c.Transport.(*http.Transport).DialContext(ctx, "", "")
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	fmt.Fprintf(conn, "POST /v1.43/exec/%s/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", made.ID)
	in := bufio.NewReader(conn)
	r, err := http.ReadResponse(in, nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("%s: %v %w", name, r, err)
	}
	got, err := demux(in)
	if err != nil || got != want {
		return fmt.Errorf("%s: %d bytes, want %d: %w", name, len(got), len(want), err)
	}
	return nil
}

// sameStream reads as much as it wants and compares.
func sameStream(name string, r io.Reader, want string) error {
	var got bytes.Buffer
	for got.Len() < len(want) {
		if err := frame(r, &got); err != nil {
			return fmt.Errorf("%s: after %d bytes: %w", name, got.Len(), err)
		}
		if !strings.HasPrefix(want, got.String()) {
			return fmt.Errorf("%s: the first %d bytes are others", name, got.Len())
		}
	}
	return nil
}

// frame reads one frame of a multiplexed stream.
func frame(r io.Reader, w io.Writer) error {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	_, err := io.CopyN(w, r, int64(binary.BigEndian.Uint32(head[4:])))
	return err
}

func demux(r io.Reader) (string, error) {
	var got bytes.Buffer
	for {
		if err := frame(r, &got); errors.Is(err, io.EOF) {
			return got.String(), nil
		} else if err != nil {
			return got.String(), err
		}
	}
}
