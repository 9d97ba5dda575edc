package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"

	claviger "claviger.dev"
	"claviger.dev/pubkey"
)

// The native formats, for new systems: tokens that a signing key makes in
// custody and that public keys alone check, so that a cluster of instances
// holds nothing worth stealing.

// Signer signs by handle with one version of a signing key.
type Signer interface {
	// Public is the public half of the version that signs.
	Public() pubkey.Key
	// Sign signs a message; ECDSA signatures are ASN.1.
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

var errNative = claviger.Errorf(claviger.Unsupported, "a key of this algorithm makes no such token",
	"use ed25519 for PASETO, and ed25519, ecdsa-p256-sha256 or ml-dsa-65 for JWT")

const pasetoHead = "v4.public."

// pae is PASETO's pre-authentication encoding.
func pae(parts ...[]byte) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(parts)))
	for _, p := range parts {
		out = append(binary.LittleEndian.AppendUint64(out, uint64(len(p))), p...)
	}
	return out
}

// SignPASETO makes a v4.public token with an Ed25519 key. implicit is what both
// sides know and the token does not carry.
func SignPASETO(ctx context.Context, s Signer, payload, footer, implicit []byte) ([]byte, error) {
	if s.Public().Algorithm() != claviger.Ed25519 {
		return nil, errNative
	}
	if len(payload)+len(footer) > MaxPayload {
		return nil, errLarge
	}
	sig, err := s.Sign(ctx, pae([]byte(pasetoHead), payload, footer, implicit))
	if err != nil {
		return nil, err
	}
	token := append([]byte(pasetoHead), encode(b64u, join("", payload, sig))...)
	if len(footer) > 0 {
		token = join(".", token, encode(b64u, footer))
	}
	return token, nil
}

// VerifyPASETO checks a v4.public token with the public keys of every version
// that may have made it, and returns its payload and footer, or ErrToken. What
// the payload says of times is for the caller to check.
func VerifyPASETO(keys []pubkey.Key, token, implicit []byte) (payload, footer []byte, err error) {
	rest, ok := bytes.CutPrefix(token, []byte(pasetoHead))
	body, foot, hasFooter := bytes.Cut(rest, []byte("."))
	message, ok1 := decode(b64u, body)
	footer, ok2 := decode(b64u, foot)
	if len(token) > MaxToken || !ok || !ok1 || !ok2 || hasFooter && len(footer) == 0 || len(message) < 64 {
		return nil, nil, ErrToken
	}
	payload, sig := message[:len(message)-64], message[len(message)-64:]
	signed := pae([]byte(pasetoHead), payload, footer, implicit)
	for _, k := range keys {
		if k.Algorithm() == claviger.Ed25519 && k.Verify(signed, sig, pubkey.P1363) {
			return payload, footer, nil
		}
	}
	return nil, nil, ErrToken
}

// nativeAlgorithm is the alg of a JWT by an algorithm, "" where there is none.
func nativeAlgorithm(a claviger.Algorithm) string {
	switch a {
	case claviger.Ed25519, claviger.ECDSAP256, claviger.MLDSA65:
		return pubkey.JWSAlgorithm(a)
	}
	return ""
}

// SignJWT makes a JWT of claims with EdDSA, ES256 or ML-DSA-65, as the key's
// algorithm says. Its kid is the thumbprint of the version (RFC 7638).
func SignJWT(ctx context.Context, s Signer, payload []byte) ([]byte, error) {
	public := s.Public()
	alg := nativeAlgorithm(public.Algorithm())
	if alg == "" {
		return nil, errNative
	}
	if _, ok := object(payload); !ok {
		return nil, errPayload
	}
	if len(payload) > MaxPayload {
		return nil, errLarge
	}
	kid, err := json.Marshal(public.Thumbprint())
	if err != nil {
		return nil, err
	}
	header := join("", []byte(`{"alg":"`+alg+`","typ":"JWT","kid":`), kid, []byte("}"))
	signed := join(".", encode(b64u, header), encode(b64u, payload))
	sig, err := s.Sign(ctx, signed)
	if err == nil && public.Algorithm() == claviger.ECDSAP256 {
		sig, err = pubkey.ToP1363(public.Algorithm(), sig)
	}
	if err != nil {
		return nil, err
	}
	return join(".", signed, encode(b64u, sig)), nil
}

// VerifyJWT checks a JWT with the public keys of every version that may have
// made it. The key's algorithm decides, never the token's; a kid that is none
// of theirs is refused. It returns the claims, or ErrToken.
func VerifyJWT(keys []pubkey.Key, token []byte) ([]byte, Facts, error) {
	signed, encoded, ok := cutLast(token, ".")
	head, body, ok1 := bytes.Cut(signed, []byte("."))
	sig, ok2 := decode(b64u, encoded)
	payload, ok3 := decode(b64u, body)
	if len(token) > MaxToken || len(head) > maxText || !ok || !ok1 || !ok2 || !ok3 { // the header is read for each key
		return nil, Facts{}, ErrToken
	}
	for _, k := range keys {
		alg := nativeAlgorithm(k.Algorithm())
		header, kid, ok := joseHeader(head, alg)
		if alg == "" || !ok || header["kid"] != nil && kid != k.Thumbprint() || !k.Verify(signed, sig, pubkey.P1363) {
			continue
		}
		f := claims(payload)
		f.KeyID = kid
		f.Header, _ = decode(b64u, head)
		return payload, f, nil
	}
	return nil, Facts{}, ErrToken
}
