package state_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// TestTimed makes a token of each format at a time and reads the time back,
// where the format says that it carries one and nowhere else.
func TestTimed(t *testing.T) {
	t.Parallel()
	issued := time.Unix(1760000000, 0).UTC()
	for _, f := range state.Formats() {
		if f == state.ASPNETLegacyViewState { // checked, never made; it carries none
			continue
		}
		p := params()
		p.Issued, p.Header = issued, nil
		u := &local{set: f.Sets()[0], key: bytes.Repeat([]byte("k"), 32)}
		switch f.Sets()[0] {
		case recipe.ASPNET:
			u.key = recipe.Pair(u.key, u.key)
		case recipe.DataProtection:
			u.key = recipe.Entry([16]byte{1}, bytes.Repeat([]byte("k"), 64))
			p.KeyID = ""
		}
		payload := []byte(`{"iat":1760000000}`)
		switch f {
		case state.ASPNETForms:
			payload = state.Ticket{Version: 1, Name: "alice", Issued: issued, Expires: issued.Add(time.Hour), Path: "/"}.Append(nil)
		case state.DjangoHMAC, state.CookieSignature:
			payload = p.Over
		case state.DjangoReset, state.KeygripSignature, state.SymfonySignature:
			payload = nil
		case state.LaravelClosure:
			p.Over, payload = []byte(`O:1:"A":0:{}`), nil
		case state.SymfonyHash:
			p.Over, payload = []byte("https://example.com/x?a=b"), nil
		case state.PlugToken, state.PlugEncryptedToken: // {1, milliseconds, 86400}
			payload = binary.LittleEndian.AppendUint64([]byte{131, 104, 3, 97, 1, 110, 6, 0}, uint64(issued.UnixMilli()))[:14]
			payload = append(payload, 98, 0, 1, 0x51, 0x80)
		case state.SymfonyURI, state.LaravelURL:
			payload = []byte("https://example.com/x?a=b")
		case state.SymfonyRemember:
			payload = []byte("alice")
		}
		if f == state.Iron || f == state.IronSession {
			p.KeyID = ""
		}
		token, err := state.Protect(t.Context(), u, f, p, payload)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		_, facts, err := state.Unprotect(t.Context(), u, f, p, token)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if !facts.Issued.IsZero() != f.Timed() || f.Timed() && !facts.Issued.Equal(issued) {
			t.Errorf("%s: issued %v, but Timed is %v", f, facts.Issued, f.Timed())
		}
	}
}
