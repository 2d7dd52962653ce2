package grpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"keg/internal/fault"
)

// MaxMessage is what one message may have. BuildKit's clients send files in pieces of 32 KiB.
const MaxMessage = 16 << 20

// A message travels as
//
//	u8 compressed (0) | u32 length, big endian | payload

// Frame is a message as it travels.
func Frame(message []byte) []byte {
	b := make([]byte, 5, 5+len(message))
	binary.BigEndian.PutUint32(b[1:], uint32(len(message)))
	return append(b, message...)
}

// ReadFrame returns the next message in a buffer of its own; io.EOF after the last one.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
		return nil, io.EOF
	} else if err != nil {
		return nil, fmt.Errorf("read a message: %w", err)
	}
	size := binary.BigEndian.Uint32(head[1:])
	if head[0] != 0 || size > MaxMessage {
		return nil, fault.Invalidf("a message of %d bytes, compressed %d, was sent; at most %d plain ones are taken", size, head[0], MaxMessage)
	}
	return readMessage(r, int(size))
}

// readMessage makes room for what has come, not for what was announced.
func readMessage(r io.Reader, size int) ([]byte, error) {
	b := make([]byte, min(size, 64<<10))
	for n := 0; ; b = append(b, make([]byte, min(len(b), size-len(b)))...) {
		m, err := io.ReadFull(r, b[n:])
		if err != nil {
			return nil, fmt.Errorf("read a message: %w", io.ErrUnexpectedEOF)
		}
		if n += m; n == size {
			return b, nil
		}
	}
}
