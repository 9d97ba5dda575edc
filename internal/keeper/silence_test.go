package keeper_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/state"
)

// logged is a log that is kept.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// TestNothingInLogs imports a secret, makes, checks and refuses tokens, exposes
// the version, and finds neither the secret nor a token nor a payload in the
// log, the record or the store.
func TestNothingInLogs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	log := &logged{}
	cfg := w.config()
	cfg.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.open(cfg)
	secret, payload := []byte("a secret of a framework that stands nowhere"), []byte(`{"user":"alice-the-payload"}`)
	const name = "prod/shop/logged"
	if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{
		Name: name, Algorithm: "machine-key", Recipe: "django", Owner: "shop-owner", ForImport: true, Settings: claviger.Settings{RecordTokens: true},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := adopt(t, w, w.op, name, "django", string(secret), keeper.Place{}); err != nil {
		t.Fatal(err)
	}
	by := w.caller(7)
	w.grant(by, name, claviger.Conditions{}, claviger.Protect, claviger.Unprotect)
	made, err := w.Protect(t.Context(), by, keeper.ProtectRequest{Key: name, Format: state.DjangoDumps, Payloads: [][]byte{payload}})
	if err != nil {
		t.Fatal(err)
	}
	token := made.Tokens[0]
	wrong := append(bytes.Clone(token), "tampered-with"...)
	_, err = w.Unprotect(t.Context(), by, keeper.UnprotectRequest{Key: name, Format: state.DjangoDumps, Tokens: [][]byte{token, wrong}})
	wantCode(t, "unprotect", err, "")
	_, err = w.Protect(t.Context(), by, keeper.ProtectRequest{Key: name, Format: state.ASPNETForms, Payloads: [][]byte{payload}})
	wantCode(t, "another set's format", err, claviger.Unsupported)
	_, err = w.Unprotect(t.Context(), w.caller(8), keeper.UnprotectRequest{Key: name, Format: state.DjangoDumps, Tokens: [][]byte{token}})
	wantCode(t, "a stranger", err, claviger.Denied)
	if _, err := w.Expose(t.Context(), w.op, keeper.ExposeRequest{Key: name, Since: time.Now().Add(-time.Hour), Reason: "the-reason-that-is-told"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	places := map[string][]byte{"log": log.b.Bytes()}
	err = filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		places[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := func(needle []byte) (where []string) {
		for place, text := range places {
			for _, form := range [][]byte{needle, []byte(base64.StdEncoding.EncodeToString(needle)), []byte(base64.RawURLEncoding.EncodeToString(needle)), []byte(hex.EncodeToString(needle))} {
				if bytes.Contains(text, form) {
					where = append(where, place)
				}
			}
		}
		return where
	}
	for what, needle := range map[string][]byte{"the secret": secret, "a payload": payload, "a token": token, "a token's signature": token[len(token)-20:], "what was tampered with": []byte("tampered-with")} {
		if where := found(needle); len(where) > 0 {
			t.Errorf("%s stands in %v", what, where)
		}
	}
	if len(found([]byte("the-reason-that-is-told"))) == 0 || !bytes.Contains(log.b.Bytes(), []byte("shop-owner")) {
		t.Error("the control: what is told stands nowhere")
	}
}

// TestDerivedOnce has a format with the most iterations of PBKDF2: its first
// use pays for them, and five more together cost less than that one, of which
// each would cost as much.
func TestDerivedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := newShop(w, "rails", claviger.Settings{})
	params := state.Params{Name: "cart", Iterations: 1 << 16}
	s.token(state.RailsEncryptedCookie, state.Params{Name: "warm"}, "{}")
	first := s.took(1, params)
	for range 5 { // the machine is shared: one quiet moment is enough
		if s.took(5, params) < first {
			return
		}
	}
	t.Errorf("the first use took %v, and five more took longer", first)
}

func (s shop) took(n int, params state.Params) time.Duration {
	s.Helper()
	began := time.Now()
	for range n {
		s.passes(state.RailsEncryptedCookie, params, []byte("AAAA--AAAAAAAAAAAAAAAA--AAAAAAAAAAAAAAAAAAAAAA=="))
	}
	return time.Since(began)
}
