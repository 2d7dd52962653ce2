package buildsession

import (
	"encoding/binary"
	"time"

	"keg/internal/fault"
)

// The two kinds of field that the messages of a session are made of
// (protobuf.dev/programming-guides/encoding):
//
//	varint     (number << 3 | 0) value
//	delimited  (number << 3 | 2) length bytes
//
// Fixed ones are passed over.

const (
	kindVarint    = 0
	kindFixed64   = 1
	kindDelimited = 2
	kindFixed32   = 5
)

// field is one of a message: a number or bytes. data is part of the message.
type field struct {
	number int
	kind   int
	value  uint64
	data   []byte
}

// each hands out the fields of a message in their order.
func each(b []byte, yield func(field) error) error {
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 || key>>3 == 0 || key>>3 > 1<<29-1 {
			return fault.Invalidf("the session sent a message with a field that has no number")
		}
		b = b[n:]
		f := field{number: int(key >> 3), kind: int(key & 7)}
		size := uint64(0)
		switch f.kind {
		case kindVarint:
			if f.value, n = binary.Uvarint(b); n <= 0 {
				return fault.Invalidf("the session sent a message that is cut off")
			}
			b = b[n:]
		case kindDelimited:
			if size, n = binary.Uvarint(b); n <= 0 {
				return fault.Invalidf("the session sent a message that is cut off")
			}
			b = b[n:]
		case kindFixed64:
			size = 8
		case kindFixed32:
			size = 4
		default:
			return fault.Invalidf("the session sent a field of the unknown kind %d", f.kind)
		}
		if size > uint64(len(b)) {
			return fault.Invalidf("the session sent a message that is cut off")
		}
		f.data, b = b[:size], b[size:]
		if f.kind == kindFixed64 || f.kind == kindFixed32 {
			continue
		}
		if err := yield(f); err != nil {
			return err
		}
	}
	return nil
}

// appendNumber adds a number; zero is not written.
func appendNumber(b []byte, number int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(number)<<3|kindVarint), v)
}

// appendText adds bytes; empty ones are not written.
func appendText[T string | []byte](b []byte, number int, v T) []byte {
	if len(v) == 0 {
		return b
	}
	return appendMessage(b, number, v)
}

// appendMessage adds bytes, empty ones too: a message that is there.
func appendMessage[T string | []byte](b []byte, number int, v T) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|kindDelimited)
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// appendTime adds a google.protobuf.Timestamp: seconds 1, nanoseconds 2.
func appendTime(b []byte, number int, t *time.Time) []byte {
	if t == nil {
		return b
	}
	return appendMessage(b, number, appendNumber(appendNumber(nil, 1, uint64(t.Unix())), 2, uint64(t.Nanosecond())))
}
