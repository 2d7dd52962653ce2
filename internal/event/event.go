// Package event is the journal of what happened: JSON lines with sequence numbers.
package event

import (
	"context"

	"github.com/moby/moby/api/types/events"
)

// Message is Docker's event: type, action, actor with attributes, time.
type Message = events.Message

// Journal appends to and reads the events file of one engine. Several processes may
// hold one Journal each on the same directory.
type Journal struct{ root string }

// Open uses the directory root/; nothing is read or made until the first Append.
func Open(root string) *Journal { return &Journal{root} }

// Append writes one message; time is set when zero. It never blocks for long and an
// error is not worth failing the act that is reported.
func (j *Journal) Append(m Message) error { panic("unwritten") }

// Read calls yield for each message with since <= time (unix nanoseconds, 0 = from the
// oldest kept), then, when follow is set, for each later one until ctx ends or until
// (0 = never) is passed.
func (j *Journal) Read(ctx context.Context, since, until int64, follow bool, yield func(Message) error) error {
	panic("unwritten")
}
