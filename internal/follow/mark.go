package follow

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// slot is the size of one of the two places in the mark's file. Writes go to
// each in turn, so that one which was cut short leaves the other.
const slot = 256

// mark is the newest position that was seen here, and the file that has it.
type mark struct {
	path  string // "" for none
	at    store.Position
	write uint64 // counts writes
}

// line is how a mark stands in its file.
type line struct {
	Write uint64 `json:"write"`
	store.Position
	Sum string `json:"sum"` // over the line without it
}

func (l line) sum() string {
	l.Sum = ""
	text, _ := json.Marshal(l) // numbers and strings: never fails
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// openMark reads a mark. No file is a server that has seen nothing yet.
func openMark(path string) (mark, error) {
	m := mark{path: path}
	if path == "" {
		return m, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("read mark: %w", err)
	}
	whole := 0
	for len(text) > 0 {
		part := text[:min(slot, len(text))]
		text = text[len(part):]
		var l line
		if err := json.Unmarshal(bytes.TrimSpace(part), &l); err != nil || l.Sum != l.sum() {
			continue
		}
		if whole++; l.Write >= m.write {
			m.write, m.at = l.Write, l.Position
		}
	}
	if whole == 0 {
		return m, claviger.Errorf(claviger.Stale, "the file that remembers the newest change seen here is damaged: "+path,
			"look whether its disk is sound; then run 'claviger server accept-database --lower-mark' on this host")
	}
	return m, nil
}

// put makes a position the mark; it is durable when put returns.
func (m *mark) put(at store.Position) (err error) {
	if m.path == "" || at == m.at {
		m.at = at
		return nil
	}
	l := line{Write: m.write + 1, Position: at}
	l.Sum = l.sum()
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode mark: %w", err)
	}
	if len(text) >= slot {
		return fmt.Errorf("write mark: %d bytes do not fit", len(text))
	}
	text = append(append(text, bytes.Repeat([]byte(" "), slot-1-len(text))...), '\n')
	f, err := os.OpenFile(m.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	_, err = f.WriteAt(text, int64(l.Write%2)*slot)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	if m.write == 0 { // the file is new
		if err := syncDir(filepath.Dir(m.path)); err != nil {
			return fmt.Errorf("write mark: %w", err)
		}
	}
	m.write, m.at = l.Write, at
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Accept makes what the store holds now the mark in a file, whatever was seen
// before, and returns both; from is zero where there was no mark, or a damaged
// one. A server that runs on that mark takes it up at its next poll. With
// dry set it only looks.
func Accept(ctx context.Context, db *store.DB, path string, dry bool) (from, to store.Position, holds bool, err error) {
	m, err := openMark(path)
	if err != nil && !errors.Is(err, claviger.Stale) {
		return from, to, false, err
	}
	err = db.View(ctx, func(tx *store.Tx) (err error) {
		to, holds, err = tx.Position(m.at)
		return err
	})
	if err != nil || dry {
		return m.at, to, holds, err
	}
	from = m.at
	return from, to, holds, m.put(to)
}
