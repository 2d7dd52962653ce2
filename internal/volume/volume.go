// Package volume keeps named volumes: a directory of data and a record each.
package volume

import (
	"context"

	"github.com/moby/moby/api/types/volume"
)

// Volume is Docker's volume record; Mountpoint is the absolute path of its data.
type Volume = volume.Volume

// Store owns volumes/<name>/{_data/,volume.json} below its root.
type Store struct{ root string }

// Open uses the directory root; it is made when first needed.
func Open(root string) *Store { return &Store{root} }

// CreateOptions say what to make. An empty Name makes an anonymous volume (64 hex
// digits, label com.docker.volume.anonymous).
type CreateOptions struct {
	Name, Driver    string // Driver "" or "local"
	Options, Labels map[string]string
}

// Create makes the volume, or returns the existing one of that name when its driver
// and options agree (Docker's rule); otherwise fault.Conflict.
func (s *Store) Create(ctx context.Context, o CreateOptions) (Volume, error) { panic("unwritten") }

// Get is fault.NotFound ("no such volume: x") for a name that does not exist.
func (s *Store) Get(name string) (Volume, error) { panic("unwritten") }

// List returns all volumes, by name.
func (s *Store) List() ([]Volume, error) { panic("unwritten") }

// Remove deletes the data. The caller has checked that no container refers to it.
func (s *Store) Remove(ctx context.Context, name string) error { panic("unwritten") }

// Size returns the bytes of data (allocated blocks, hard links once).
func (s *Store) Size(name string) (int64, error) { panic("unwritten") }
