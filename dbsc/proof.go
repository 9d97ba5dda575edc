package dbsc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"

	"github.com/go-jose/go-jose/v4"
)

// maxProof bounds a proof, in bytes: RS256 with a key of 4096 bits has about 2000.
const maxProof = 4 << 10

// proof is a DBSC proof that is well formed, by whatever key.
type proof struct {
	signed    *jose.JSONWebSignature
	challenge string // jti
}

// readProof reads Secure-Session-Response (section 9.10 of the draft).
func readProof(h http.Header) (*proof, error) {
	text, err := stringField(h, "Secure-Session-Response")
	if err != nil {
		return nil, err
	}
	signed, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		return nil, errors.New("the proof is not a JWT by ES256 or RS256")
	}
	if signed.Signatures[0].Protected.ExtraHeaders[jose.HeaderType] != "dbsc+jwt" {
		return nil, errors.New("the proof's typ is not dbsc+jwt")
	}
	var claims struct {
		Challenge string `json:"jti"`
	}
	if err := json.Unmarshal(signed.UnsafePayloadWithoutVerification(), &claims); err != nil || claims.Challenge == "" {
		return nil, errors.New("the proof has no jti")
	}
	return &proof{signed, claims.Challenge}, nil
}

// own is the key in the proof's header, nil where there is none that is good.
func (p *proof) own() crypto.PublicKey {
	header := p.signed.Signatures[0].Protected
	if header.JSONWebKey == nil || !header.JSONWebKey.Valid() || !header.JSONWebKey.IsPublic() {
		return nil
	}
	switch key := header.JSONWebKey.Key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() {
			return key
		}
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits >= 2048 && bits <= 4096 {
			return key
		}
	}
	return nil
}

// thumbprint is that of a key that own returned (RFC 7638).
func thumbprint(key crypto.PublicKey) string {
	sum, err := (&jose.JSONWebKey{Key: key}).Thumbprint(crypto.SHA256)
	if err != nil {
		panic("dbsc: a key that was read has no thumbprint: " + err.Error())
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// by reports whether a key signed the proof.
func (p *proof) by(key crypto.PublicKey) bool {
	_, err := p.signed.Verify(key)
	return err == nil
}

// stringField reads a field that holds one string (RFC 9651, 3.3.3), without
// parameters that matter. Chromium 156 leaves the quotes out.
func stringField(h http.Header, name string) (string, error) {
	values := h.Values(name)
	if len(values) != 1 || len(values[0]) > maxProof {
		return "", errors.New("the request needs the field " + name + " once")
	}
	text := strings.TrimSpace(values[0])
	if quoted, ok := strings.CutPrefix(text, `"`); ok {
		if text, _, ok = strings.Cut(quoted, `"`); !ok {
			return "", errors.New("the field " + name + " is no string")
		}
	}
	if strings.ContainsAny(text, "\\\" ") {
		return "", errors.New("the field " + name + " is no string")
	}
	return text, nil
}

// Memory is Keys of an application in one process, which tells it of its
// sessions. The zero value is ready.
type Memory struct {
	mu   sync.Mutex
	keys map[string]crypto.PublicKey // nil value: not bound
}

// Begin says that there is a session.
func (m *Memory) Begin(session string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		m.keys = map[string]crypto.PublicKey{}
	}
	m.keys[session] = nil
}

// End says that there is a session no more.
func (m *Memory) End(session string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, session)
}

// Key implements Keys.
func (m *Memory) Key(_ context.Context, session string) (crypto.PublicKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key, ok := m.keys[session]
	if !ok {
		return nil, ErrEnded
	}
	return key, nil
}

// Bind implements Keys.
func (m *Memory) Bind(_ context.Context, session string, key crypto.PublicKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	have, ok := m.keys[session]
	switch equal, comparable := have.(interface{ Equal(crypto.PublicKey) bool }); {
	case !ok:
		return ErrEnded
	case have == nil:
		m.keys[session] = key
	case !comparable || !equal.Equal(key):
		return ErrBound
	}
	return nil
}
