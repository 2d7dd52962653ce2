package buildsession

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"keg/internal/fault"
)

const methodPull = "/moby.upload.v1.Upload/Pull"

// UploadHost is the host of addresses that stand for a stream of the client's (moby/buildkit session/upload).
const UploadHost = "buildkit-session"

// Upload opens a stream of the client's, such as its standard input, by an address with UploadHost.
func (s *Session) Upload(ctx context.Context, address *url.URL) (io.ReadCloser, error) {
	if !s.offers(methodPull) {
		return nil, fault.Invalidf("the client's session has no upload")
	}
	st := s.call(ctx, methodPull, http.Header{"urlpath": {address.Path}, "urlhost": {address.Host}})
	return &upload{st: st}, nil
}

type upload struct {
	st   *stream
	rest []byte
}

func (u *upload) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		m, err := u.st.receive()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err == nil {
			u.rest, err = textOf(m, 1)
		}
		if err != nil {
			return 0, fmt.Errorf("read the client's upload: %w", err)
		}
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

func (u *upload) Close() error { u.st.close(); return nil }
