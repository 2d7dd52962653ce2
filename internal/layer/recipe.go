package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// A recipe tells how to re-create a tar from the tree that was made of it (or it of):
// literal bytes, which are headers and padding, and contents of files. It is read in
// chunks, so that any offset of a large tar is found with little memory.
//
//	recipe  = "keg recipe 1\n" chunk* index trailer
//	chunk   = flag byte (0 stored, 1 zstd), ops
//	op      = 1, uvarint n, n bytes                             literal
//	        | 2, uvarint size, sha256, uvarint n, n bytes path  contents of a file
//	index   = per chunk: uvarint bytes of tar, uvarint bytes of recipe
//	trailer = u64 size of tar, sha256 of tar, u32 chunks, u64 offset of index,
//	          u32 crc32c of index and the trailer before it        (little endian)
const (
	recipeMagic = "keg recipe 1\n"
	trailerSize = 8 + sha256.Size + 4 + 8 + 4
	chunkRaw    = 64 << 10 // ops of a chunk before compression, about
	opLiteral   = 1
	opFile      = 2
)

type recorder struct {
	w      io.Writer
	err    error
	at     int64 // bytes of recipe written
	ops    []byte
	lit    []byte // literal not yet in ops
	covers int64  // bytes of tar in this chunk
	index  []byte
	chunks uint32
	enc    *zstd.Encoder
	lost   bool // the tree does not keep all contents

	name string
	size int64
	sum  hash.Hash
}

func newRecorder(w io.Writer) *recorder {
	r := &recorder{w: w}
	r.write([]byte(recipeMagic))
	return r
}

func (r *recorder) write(p []byte) {
	if r.err == nil {
		_, r.err = r.w.Write(p)
		r.at += int64(len(p))
	}
}

// literal records bytes of the tar as they are.
func (r *recorder) literal(p []byte) {
	for len(p) > 0 && !r.lost {
		n := min(len(p), chunkRaw-len(r.lit))
		r.lit, p = append(r.lit, p[:n]...), p[n:]
		if len(r.lit) == chunkRaw {
			r.flush()
		}
	}
}

func (r *recorder) closeLiteral() {
	if len(r.lit) == 0 {
		return
	}
	r.ops = append(r.ops, opLiteral)
	r.ops = binary.AppendUvarint(r.ops, uint64(len(r.lit)))
	r.ops = append(r.ops, r.lit...)
	r.covers += int64(len(r.lit))
	r.lit = r.lit[:0]
}

// begin says that the next size bytes are those of a file of the tree; the function
// takes them.
func (r *recorder) begin(name string, size int64) func([]byte) {
	r.name, r.size, r.sum = name, size, sha256.New()
	return func(p []byte) { r.sum.Write(p) }
}

func (r *recorder) end() {
	if r.size > 0 {
		r.file(r.name, r.size, r.sum.Sum(nil))
	}
}

// file records contents whose sha256 is known.
func (r *recorder) file(name string, size int64, sum []byte) {
	if r.lost || size == 0 {
		return
	}
	r.closeLiteral()
	r.ops = append(r.ops, opFile)
	r.ops = binary.AppendUvarint(r.ops, uint64(size))
	r.ops = append(r.ops, sum...)
	r.ops = binary.AppendUvarint(r.ops, uint64(len(name)))
	r.ops = append(r.ops, name...)
	r.covers += size
	if len(r.ops) >= chunkRaw {
		r.flush()
	}
}

// flush ends a chunk.
func (r *recorder) flush() {
	r.closeLiteral()
	if r.covers == 0 {
		return
	}
	chunk := append(make([]byte, 0, len(r.ops)+1), 0)
	if len(r.ops) > 4<<10 { // an encoder costs a millisecond to set up
		if r.enc == nil {
			r.enc, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		}
		chunk[0] = 1
		chunk = r.enc.EncodeAll(r.ops, chunk)
	} else {
		chunk = append(chunk, r.ops...)
	}
	r.write(chunk)
	r.index = binary.AppendUvarint(r.index, uint64(r.covers))
	r.index = binary.AppendUvarint(r.index, uint64(len(chunk)))
	r.chunks++
	r.ops, r.covers = r.ops[:0], 0
}

// close ends the recipe of a tar with this digest. It reports whether the recipe is of
// use.
func (r *recorder) close(d digest.Digest, size int64) (bool, error) {
	if r.lost || r.err != nil {
		return false, r.err
	}
	r.flush()
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return false, err
	}
	at := r.at
	tail := r.index
	tail = binary.LittleEndian.AppendUint64(tail, uint64(size))
	tail = append(tail, sum...)
	tail = binary.LittleEndian.AppendUint32(tail, r.chunks)
	tail = binary.LittleEndian.AppendUint64(tail, uint64(at))
	tail = binary.LittleEndian.AppendUint32(tail, crc32.Checksum(tail, crc32.MakeTable(crc32.Castagnoli)))
	r.write(tail)
	return r.err == nil, r.err
}
