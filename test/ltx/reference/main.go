// The reference implementation of LTX as a command, for tests that exchange files with it.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/superfly/ltx"
)

type page struct {
	Number uint32 `json:"number"`
	Hash   string `json:"hash"`
}

type file struct {
	MinTXID      string `json:"minTxid"`
	MaxTXID      string `json:"maxTxid"`
	Commit       uint32 `json:"commit"`
	PageSize     uint32 `json:"pageSize"`
	TimestampMs  int64  `json:"timestampMs"`
	WALOffset    int64  `json:"walOffset"`
	WALSize      int64  `json:"walBytes"`
	FileChecksum string `json:"fileChecksum"`
	Pages        []page `json:"pages"`
}

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command string, args []string) error {
	switch command {
	case "show":
		return show(args[0])
	case "recode":
		return recode(args[0], args[1])
	case "compact":
		out, err := os.Create(args[0])
		if err != nil {
			return err
		}
		defer out.Close()
		return compact(out, args[1:])
	case "restore":
		return restore(args[0], args[1:])
	}
	return fmt.Errorf("unknown command %q", command)
}

func read(path string) (*ltx.FileSpec, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	spec := &ltx.FileSpec{}
	_, err = spec.ReadFrom(in)
	return spec, err
}

func show(path string) error {
	spec, err := read(path)
	if err != nil {
		return err
	}
	h := spec.Header
	shown := file{
		MinTXID: h.MinTXID.String(), MaxTXID: h.MaxTXID.String(), Commit: h.Commit, PageSize: h.PageSize,
		TimestampMs: h.Timestamp, WALOffset: h.WALOffset, WALSize: h.WALSize,
		FileChecksum: fmt.Sprintf("%016x", uint64(spec.Trailer.FileChecksum)), Pages: []page{},
	}
	for _, p := range spec.Pages {
		hash := sha256.Sum256(p.Data)
		shown.Pages = append(shown.Pages, page{p.Header.Pgno, hex.EncodeToString(hash[:])})
	}
	return json.NewEncoder(os.Stdout).Encode(shown)
}

// Writes a file anew with this library's own encoding.
func recode(to, from string) error {
	spec, err := read(from)
	if err != nil {
		return err
	}
	for i := range spec.Pages {
		spec.Pages[i].Header.Flags = 0
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = spec.WriteTo(out)
	return err
}

func compact(out io.Writer, paths []string) error {
	readers := make([]io.Reader, len(paths))
	for i, path := range paths {
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		readers[i] = in
	}
	c, err := ltx.NewCompactor(out, readers)
	if err != nil {
		return err
	}
	c.HeaderFlags = ltx.HeaderFlagNoChecksum
	return c.Compact(context.Background())
}

// Restores as Litestream does: a compaction piped into a decoder.
func restore(to string, paths []string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(compact(pw, paths)) }()
	return ltx.NewDecoder(pr).DecodeDatabaseTo(out)
}
