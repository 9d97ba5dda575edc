// Package dpop makes and checks proofs of possession for OAuth tokens
// (RFC 9449, DPoP): a proof is a small JWT that is signed with the key a token
// is bound to, so that the token alone is worth nothing.
//
// It owns the text of proofs, nonces, the record of proofs that were used, the
// net/http handler of a resource server and the round tripper of a client. It
// promises that a proof is accepted once, within its time, and only after every
// check of section 4.3; that whatever cannot be known is refused; and that what
// it tells a stranger names the rule and no secret. It must never accept a
// token that is bound as a bearer token, or a key from anywhere but the proof.
package dpop

import (
	"errors"
	"fmt"
	"time"

	"claviger.dev/pubkey"
)

// The limits of a proof.
const (
	MaxProof = 12 << 10 // bytes; a proof by ML-DSA-65 has about 8.5 KiB
	MaxJTI   = 256      // bytes
	MaxURL   = 8 << 10  // bytes of htu
)

// The OAuth error codes of a refusal (RFC 6750, 3.1; RFC 9449, 5, 7.1 and 8).
const (
	InvalidProof   = "invalid_dpop_proof"
	UseNonce       = "use_dpop_nonce"
	InvalidToken   = "invalid_token"
	InvalidRequest = "invalid_request"
	Unavailable    = "temporarily_unavailable" // what a check rests on cannot be had: nothing is accepted
)

// Error is a refusal. Its text is safe to show to the caller.
type Error struct {
	Code string // of the constants above
	Msg  string // which rule is broken, and what is expected
	Err  error  // the cause, for the log alone; nil for most
}

// Error implements error.
func (e *Error) Error() string { return e.Code + ": " + e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the OAuth code of an error of this package, or "" for another.
func CodeOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

func refuse(format string, args ...any) error {
	return &Error{Code: InvalidProof, Msg: fmt.Sprintf(format, args...)}
}

// Proof is what a proof that was accepted says.
type Proof struct {
	Key        pubkey.Key
	Thumbprint string    // RFC 7638, SHA-256: what cnf.jkt of a token has to be
	JTI        string    // its identifier, chosen by the client
	IssuedAt   time.Time // by the client's clock
	Nonce      string    // "" where the verifier asks for none
}
