package grpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"keg/internal/fault"
)

func TestFrames(t *testing.T) {
	b := append(Frame([]byte("one")), Frame(nil)...)
	r := bytes.NewReader(b)
	for _, want := range []string{"one", ""} {
		if got, err := ReadFrame(r); err != nil || string(got) != want {
			t.Errorf("%q %v", got, err)
		}
	}
	if _, err := ReadFrame(r); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	for what, b := range map[string][]byte{"half a head": b[:3], "half a message": b[:6], "compressed": {1, 0, 0, 0, 0}, "too large": {0, 0xff, 0, 0, 0}} {
		if _, err := ReadFrame(bytes.NewReader(b)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", what, err)
		}
	}
	large := bytes.Repeat([]byte("x"), 1<<20)
	if got, err := ReadFrame(bytes.NewReader(Frame(large))); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes: %v", len(got), err)
	}
}

func TestStatus(t *testing.T) {
	s := &Status{Code: 7, Message: "no — really", Details: [][]byte{[]byte("x"), nil}}
	got, err := ParseStatus(s.Encode())
	if err != nil || got.Code != 7 || got.Message != s.Message || len(got.Details) != 2 || string(got.Details[0]) != "x" {
		t.Errorf("%+v %v", got, err)
	}
	for _, c := range []struct {
		err  error
		code int
	}{
		{errors.New("x"), CodeUnknown}, {fault.Deniedf("x"), CodeDenied}, {fault.Unavailablef("x"), CodeUnavailable},
		{context.Canceled, CodeCanceled}, {fmt.Errorf("a: %w", s), 7}, {context.DeadlineExceeded, CodeDeadline},
	} {
		if got := StatusOf(c.err); got.Code != c.code {
			t.Errorf("%v: %d, not %d", c.err, got.Code, c.code)
		}
	}
	if got := escape("ü 100%\n" + strings.Repeat("y", 20<<10)); !strings.HasPrefix(got, "%C3%BC 100%25%0A") || len(got) > 17<<10 {
		t.Errorf("%d %.40q", len(got), got)
	}
}

// TestServe: calls both ways, a panic, a method that is not there, and an end that waits for who is at work.
func TestServe(t *testing.T) {
	ours, theirs := net.Pipe()
	var log bytes.Buffer
	begun, ended := make(chan bool), make(chan bool, 1)
	methods := map[string]Method{
		"/double": Unary(func(_ *Stream, m []byte) ([]byte, error) { return append(m, m...), nil }),
		"/panic":  Unary(func(*Stream, []byte) ([]byte, error) { panic("oh") }),
		"/echo": func(s *Stream) error {
			s.SetHeader("Said", "before")
			for {
				m, err := s.Receive()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err == nil {
					err = s.Send(m)
				}
				if err != nil {
					return err
				}
			}
		},
		"/wait": func(s *Stream) error {
			begun <- true
			<-s.Context().Done()
			time.Sleep(20 * time.Millisecond)
			ended <- true
			return s.Context().Err()
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan bool)
	go func() {
		Serve(ctx, ours, methods, &log)
		close(served)
	}()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return theirs, nil }, Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	cc, err := tr.NewClientConn(t.Context(), "http", "x:80")
	if err != nil {
		t.Fatal(err)
	}
	call := func(method string, body io.Reader) (*http.Response, []byte) {
		t.Helper()
		resp, err := cc.RoundTrip(&http.Request{Method: "POST", URL: &url.URL{Scheme: "http", Host: "x", Path: method}, Header: http.Header{}, Body: io.NopCloser(body), ContentLength: -1})
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		return resp, b
	}
	if resp, b := call("/double", bytes.NewReader(Frame([]byte("ab")))); !bytes.Equal(b, Frame([]byte("abab"))) || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%q %v", b, resp.Trailer)
	}
	if resp, _ := call("/panic", bytes.NewReader(Frame(nil))); resp.Trailer.Get("Grpc-Status") != "13" || !strings.Contains(log.String(), "panic while answering \"/panic\": oh") {
		t.Errorf("%v %s", resp.Trailer, log.String())
	}
	if resp, _ := call("/none", http.NoBody); resp.Trailer.Get("Grpc-Status") != "12" {
		t.Errorf("%v", resp.Trailer)
	}
	if resp, _ := call("/double", http.NoBody); resp.Trailer.Get("Grpc-Message") != "a message is missing" {
		t.Errorf("%v", resp.Trailer)
	}
	two := append(Frame([]byte("1")), Frame([]byte("2"))...)
	if resp, b := call("/echo", bytes.NewReader(two)); !bytes.Equal(b, two) || resp.Header.Get("Said") != "before" {
		t.Errorf("%q %v", b, resp.Header)
	}
	go func() {
		cc.RoundTrip(&http.Request{Method: "POST", URL: &url.URL{Scheme: "http", Host: "x", Path: "/wait"}, Header: http.Header{}, Body: http.NoBody})
	}()
	<-begun
	cancel()
	<-served
	select {
	case <-ended:
	default:
		t.Error("it ends before its calls")
	}
}

func FuzzEach(f *testing.F) {
	f.Add(AppendMessage(AppendNumber(nil, 1, 300), 2, "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_ = Each(b, func(f Field) error {
			if n += len(f.Data); n > len(b) {
				t.Error("more data than there is")
			}
			return nil
		})
		_, _ = ParseStatus(b)
	})
}
