// Package backup copies an embedded store and its audit log into one archive
// that is encrypted to age recipients, and puts one back.
//
// It promises that an archive is one consistent moment of the store, that
// nothing of an archive is used before all of it was verified, that a restore
// happens whole or not at all, and that it does not bring back what was
// revoked unless that was asked for. It holds wrapped blobs only: it must never
// read or write the directory of the root key's slots, nor write outside the
// directory that it was given.
//
// Age says who can read an archive, not who wrote it: whoever knows a recipient
// can make an archive for it. Keep archives where they cannot be exchanged.
package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"

	"claviger.dev"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
)

// Names in an archive and below the server's data directory.
const (
	StoreFile    = "claviger.db"
	AuditDir     = "audit"
	manifestFile = "manifest.json"
	format       = "claviger-backup/1"
)

// Limits of an archive.
const (
	maxRecipients = 64
	maxFiles      = 100_000
	maxManifest   = 32 << 20
	maxBytes      = 1 << 40 // of all files together
)

// Manifest is the last file of an archive and says what the others are.
type Manifest struct {
	Format   string    `json:"format"`
	Created  time.Time `json:"created"`
	Sequence uint64    `json:"sequence"` // the store's change sequence
	Files    []File    `json:"files"`
}

// File is one file of an archive.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // hex
}

// Source is what a backup is made of.
type Source struct {
	Store *store.DB
	Audit string           // directory of the audit segments; empty for none
	Dir   string           // where the snapshot stands while it is copied: the data directory
	Now   func() time.Time // nil means time.Now
}

// Write writes an archive, encrypted to age recipients ("age1..."). It answers
// claviger.Unsupported for a store on PostgreSQL and claviger.Invalid for bad
// recipients, before anything is written. What was written when it fails is no
// archive: it does not decrypt to its end.
func Write(ctx context.Context, w io.Writer, src Source, recipients []string) (m Manifest, err error) {
	to, err := parseRecipients(recipients)
	if err != nil {
		return m, err
	}
	snapshot, err := os.CreateTemp(src.Dir, "backup-*.tmp") // mode 0600
	if err != nil {
		return m, unavailable(fmt.Errorf("create snapshot: %w", err))
	}
	defer func() { err = errors.Join(err, snapshot.Close(), removeStore(snapshot.Name())) }()
	if err := src.Store.Snapshot(ctx, snapshot); err != nil {
		return m, err
	}
	if m.Sequence, err = sqlite.Sequence(ctx, snapshot.Name()); err != nil {
		return m, err
	}
	now := time.Now
	if src.Now != nil {
		now = src.Now
	}
	m.Format, m.Created = format, now().UTC()
	encrypted, err := age.Encrypt(w, to...)
	if err != nil {
		return m, claviger.Errorf(claviger.Invalid, "the recipients cannot be used together", "use either classic or post-quantum recipients, not both").Wrap(err)
	}
	archive := writer{tar: tar.NewWriter(encrypted), manifest: &m}
	if err := archive.writeAll(ctx, snapshot.Name(), src.Audit); err != nil {
		return m, unavailable(err)
	}
	if err := encrypted.Close(); err != nil {
		return m, unavailable(fmt.Errorf("end archive: %w", err))
	}
	return m, nil
}

func parseRecipients(texts []string) ([]age.Recipient, error) {
	if len(texts) == 0 || len(texts) > maxRecipients {
		return nil, claviger.Errorf(claviger.Invalid, "a backup is encrypted to 1 to 64 recipients", "make one with age-keygen and name its age1... recipient")
	}
	var to []age.Recipient
	for _, text := range texts {
		some, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(some) != 1 || len(text) > 4096 {
			return nil, claviger.Errorf(claviger.Invalid, "a recipient is not one of age", "a recipient begins with age1; make one with age-keygen").Wrap(err)
		}
		to = append(to, some[0])
	}
	return to, nil
}

// removeStore removes a database and what SQLite leaves beside it.
func removeStore(path string) error {
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func unavailable(err error) error {
	if _, ok := errors.AsType[*claviger.Error](err); ok {
		return err
	}
	return claviger.Errorf(claviger.Unavailable, "the backup could not be written or read", "check the disk and where the archive goes to; then begin again").Wrap(err)
}

// writer writes the files of an archive and notes them in the manifest.
type writer struct {
	tar      *tar.Writer
	manifest *Manifest
}

// writeAll writes the store, then the segments of the audit log, which may
// have grown since and so cover all that the store holds, then the manifest.
func (w writer) writeAll(ctx context.Context, snapshot, audit string) error {
	if err := w.file(ctx, StoreFile, snapshot); err != nil {
		return err
	}
	if audit != "" {
		segments, err := filepath.Glob(filepath.Join(audit, "*.jsonl")) // in the order of names
		if err != nil {
			return fmt.Errorf("list segments: %w", err)
		}
		for _, path := range segments {
			if err := w.file(ctx, AuditDir+"/"+filepath.Base(path), path); err != nil {
				return err
			}
		}
	}
	b, err := json.Marshal(w.manifest)
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	if err := w.tar.WriteHeader(header(manifestFile, int64(len(b)))); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if _, err := w.tar.Write(b); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if err := w.tar.Close(); err != nil {
		return fmt.Errorf("end archive: %w", err)
	}
	return nil
}

// file copies a file as long as it is now.
func (w writer) file(ctx context.Context, name, path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := length(f, strings.HasSuffix(name, ".jsonl"))
	if err != nil {
		return fmt.Errorf("measure %s: %w", name, err)
	}
	if err := w.tar.WriteHeader(header(name, size)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(w.tar, h), reader{ctx, f}, size); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	w.manifest.Files = append(w.manifest.Files, File{Name: name, Size: size, SHA256: hex.EncodeToString(h.Sum(nil))})
	return nil
}

// length returns how much of a file is copied: all of it, or of one that is
// being appended to, all of its whole lines.
func length(f *os.File, lines bool) (int64, error) {
	info, err := f.Stat()
	if err != nil || !lines {
		return info.Size(), err
	}
	const step = 64 << 10
	for end := info.Size(); end > 0; end = max(0, end-step) {
		from := max(0, end-step)
		b := make([]byte, end-from)
		if _, err := f.ReadAt(b, from); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
	}
	return 0, nil
}

func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, Format: tar.FormatGNU}
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, claviger.Errorf(claviger.Deadline, "the deadline passed or the call was given up", "begin again").Wrap(err)
	}
	return r.r.Read(p)
}
