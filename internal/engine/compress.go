package engine

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"

	"keg/internal/fault"
	"keg/internal/image"
)

// maxZstdWindow bounds the memory that a layer can make us take (security.md IM4).
const maxZstdWindow = 128 << 20

// inflate opens the tar inside a layer blob. It reads ahead in goroutines of its own.
func inflate(r io.Reader, c image.Compression) (io.ReadCloser, error) {
	switch c {
	case image.Uncompressed:
		return io.NopCloser(r), nil
	case image.Gzip:
		z, err := pgzip.NewReader(r)
		if err != nil {
			return nil, fault.Invalidf("inflate gzip: %w", err)
		}
		return z, nil
	case image.Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, fault.Invalidf("inflate zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return nil, fault.Unsupportedf("layer compression %q is not supported", c)
}

// deflateBlock makes parallel gzip give the same bytes on every machine.
const deflateBlock = 1 << 20

// deflate writes src to dst, compressed; the same input gives the same output everywhere.
func deflate(dst io.Writer, src io.Reader, c image.Compression) error {
	z, err := deflater(dst, c)
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, src); err != nil {
		z.Close()
		return fmt.Errorf("compress layer: %w", err)
	}
	return z.Close()
}

func deflater(dst io.Writer, c image.Compression) (io.WriteCloser, error) {
	switch c {
	case image.Gzip:
		z, err := pgzip.NewWriterLevel(dst, pgzip.DefaultCompression)
		if err != nil {
			return nil, err
		}
		return z, z.SetConcurrency(deflateBlock, 4)
	case image.Zstd:
		return zstd.NewWriter(dst, zstd.WithEncoderConcurrency(4))
	}
	return nil, fault.Unsupportedf("compression %q is not supported: choose gzip or zstd", c)
}
