// Package grpc is as much of gRPC, and of the format of its messages, as BuildKit's protocol needs: fields, messages,
// and a server of methods on one connection. What comes in is hostile. The library that is called so costs every start
// of the program (docs/decisions/0007).
package grpc

import (
	"encoding/binary"
	"time"

	"keg/internal/fault"
)

// The two kinds of field that messages are made of
// (protobuf.dev/programming-guides/encoding):
//
//	varint     (number << 3 | 0) value
//	delimited  (number << 3 | 2) length bytes
//
// Fixed ones are passed over.

// Kinds of fields.
const (
	Varint    = 0
	Delimited = 2

	fixed64 = 1
	fixed32 = 5
)

// Field is one of a message: a number or bytes. Data is part of the message.
type Field struct {
	Number int
	Kind   int
	Value  uint64
	Data   []byte
}

// Each hands out the fields of a message in their order.
func Each(b []byte, yield func(Field) error) error {
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 || key>>3 == 0 || key>>3 > 1<<29-1 {
			return fault.Invalidf("the client sent a message with a field that has no number")
		}
		b = b[n:]
		f := Field{Number: int(key >> 3), Kind: int(key & 7)}
		size := uint64(0)
		switch f.Kind {
		case Varint:
			if f.Value, n = binary.Uvarint(b); n <= 0 {
				return fault.Invalidf("the client sent a message that is cut off")
			}
			b = b[n:]
		case Delimited:
			if size, n = binary.Uvarint(b); n <= 0 {
				return fault.Invalidf("the client sent a message that is cut off")
			}
			b = b[n:]
		case fixed64:
			size = 8
		case fixed32:
			size = 4
		default:
			return fault.Invalidf("the client sent a field of the unknown kind %d", f.Kind)
		}
		if size > uint64(len(b)) {
			return fault.Invalidf("the client sent a message that is cut off")
		}
		f.Data, b = b[:size], b[size:]
		if f.Kind == fixed64 || f.Kind == fixed32 {
			continue
		}
		if err := yield(f); err != nil {
			return err
		}
	}
	return nil
}

// AppendNumber adds a number; zero is not written.
func AppendNumber(b []byte, number int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(number)<<3|Varint), v)
}

// AppendText adds bytes; empty ones are not written.
func AppendText[T string | []byte](b []byte, number int, v T) []byte {
	if len(v) == 0 {
		return b
	}
	return AppendMessage(b, number, v)
}

// AppendMessage adds bytes, empty ones too: a message that is there.
func AppendMessage[T string | []byte](b []byte, number int, v T) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|Delimited)
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// AppendTime adds a google.protobuf.Timestamp: seconds 1, nanoseconds 2.
func AppendTime(b []byte, number int, t *time.Time) []byte {
	if t == nil {
		return b
	}
	return AppendMessage(b, number, AppendNumber(AppendNumber(nil, 1, uint64(t.Unix())), 2, uint64(t.Nanosecond())))
}
