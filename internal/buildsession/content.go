package buildsession

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"keg/internal/fault"
	"keg/internal/grpc"
)

// Stores of blobs that a client has (containerd api/services/content/v1/content.proto): OCI layouts in its directories.
const (
	methodRead  = "/containerd.services.content.v1.Content/Read"
	methodWrite = "/containerd.services.content.v1.Content/Write"
	headerStore = "buildkit-attachable-store-id"
)

// Actions of Write.
const (
	actionWrite  = 1
	actionCommit = 2
)

// Blobs is one of the client's stores.
type Blobs struct {
	*Session
	Store string // as the client calls it
}

func (b Blobs) header() http.Header { return http.Header{headerStore: {b.Store}} }

// Read opens a blob. What is read is not verified.
func (b Blobs) Read(ctx context.Context, digest string) (io.ReadCloser, error) {
	if !b.offers(methodRead) {
		return nil, fault.Invalidf("the client's session has no store of blobs")
	}
	st := b.call(ctx, methodRead, b.header())
	if err := st.send(grpc.AppendText(nil, 1, digest)); err != nil {
		_, e := st.receive()
		st.close()
		return nil, fmt.Errorf("read %s from the client: %w", digest, errors.Join(err, e))
	}
	st.endSending()
	return &blob{st: st, digest: digest}, nil
}

type blob struct {
	st     *stream
	digest string
	rest   bytes.Reader
}

func (b *blob) Read(p []byte) (int, error) {
	for b.rest.Len() == 0 {
		m, err := b.st.receive()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		var data []byte
		if err == nil {
			data, err = textOf(m, 2)
		}
		if err != nil {
			return 0, fmt.Errorf("read %s from the client: %w", b.digest, err)
		}
		b.rest.Reset(data)
	}
	return b.rest.Read(p)
}

func (b *blob) Close() error { b.st.close(); return nil }

// Write stores a blob, if it is not there.
func (b Blobs) Write(ctx context.Context, digest string, size int64, r io.Reader) error {
	if !b.offers(methodWrite) {
		return fault.Invalidf("the client's session takes no blobs")
	}
	st := b.call(ctx, methodWrite, b.header())
	defer st.close()
	message := func(action int) []byte {
		m := grpc.AppendText(grpc.AppendNumber(nil, 1, uint64(action)), 2, "keg-"+digest)
		return grpc.AppendText(grpc.AppendNumber(m, 3, uint64(size)), 4, digest)
	}
	buffer := make([]byte, maxPiece)
	for offset := int64(0); ; {
		n, err := io.ReadFull(r, buffer)
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return err
		}
		action := actionWrite
		if last {
			action = actionCommit
		}
		// A send fails when the client has answered already; its answer says why.
		sent := st.send(grpc.AppendText(grpc.AppendNumber(message(action), 5, uint64(offset)), 6, buffer[:n]))
		_, err = st.receive()
		if hasCode(err, grpc.CodeAlreadyExists) {
			return nil
		}
		if err == nil {
			err = sent
		}
		if err != nil {
			return fmt.Errorf("write %s to the client: %w", digest, err)
		}
		if last {
			return nil
		}
		offset += int64(n)
	}
}
