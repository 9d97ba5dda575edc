package hunt

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
	"time"

	"claviger.dev"
)

// state is what a hunt needs to go on after it was interrupted. It has no
// bytes that were found.
type state struct {
	Hunt       string `json:"hunt"` // digest of keys, targets and settings: a state is for one hunt
	Target     int    `json:"target"`
	Done       string `json:"done"`    // the last file of the target that is done
	Current    string `json:"current"` // the file after it
	Offset     int64  `json:"offset"`  // up to which that one is done
	Unsearched bool   `json:"unsearched"`
	Report     Report `json:"report"`
}

const (
	maxState  = 64 << 20
	saveEvery = 5 * time.Second
)

func (h *hunt) digest(targets []Target) string {
	d := sha256.New()
	for _, k := range h.config.Keys {
		fmt.Fprintf(d, "%s\n", k.Public.Fingerprint())
	}
	fmt.Fprintf(d, "%v %v %d %+v", h.config.Symmetric != nil, h.config.EveryByte, h.config.Unpacked, targets)
	return hex.EncodeToString(d.Sum(nil))
}

// resume reads the state file, if there is one.
func (h *hunt) resume(targets []Target) error {
	h.state.Hunt, h.lastSave = h.digest(targets), time.Now()
	if h.config.State == "" {
		return nil
	}
	text, err := os.ReadFile(h.config.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	var saved state
	if len(text) > maxState || json.Unmarshal(text, &saved) != nil || saved.Hunt != h.state.Hunt || saved.Target < 0 || saved.Offset < 0 {
		return claviger.Errorf(claviger.Conflict, "the state file is not of this hunt", "give the same keys, targets and flags as before, or another --resume file")
	}
	h.state = saved
	for _, f := range saved.Report.Findings {
		h.seen[seen{f.Place, f.Offset, -1}] = true
		for i, k := range h.config.Keys {
			if k.Name == f.Key && k.Public.Fingerprint() == f.Fingerprint {
				h.seen[seen{f.Place, f.Offset, i}] = true
			}
		}
	}
	return nil
}

// checkpoint saves the state now and then, when everything before it is scanned.
func (h *hunt) checkpoint(ctx context.Context, now bool) error {
	if h.config.State == "" || !now && time.Since(h.lastSave) < saveEvery {
		return ctx.Err()
	}
	h.drain()
	h.lastSave = time.Now()
	h.mu.Lock()
	var text bytes.Buffer
	err := json.NewEncoder(&text).Encode(h.state)
	h.mu.Unlock()
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	temporary := h.config.State + ".new"
	if err := os.WriteFile(temporary, text.Bytes(), 0o600); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := os.Rename(temporary, h.config.State); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return ctx.Err()
}
