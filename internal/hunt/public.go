package hunt

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"

	"claviger.dev"
	"claviger.dev/pubkey"
)

// ParsePublic reads a public key from PEM (SPKI, "PUBLIC KEY") or a JWK (RFC
// 7517). For RSA the padding and hash of the algorithm mean nothing here. A file
// with a private key is refused: it has no business where the hunt runs.
func ParsePublic(text []byte) (pubkey.Key, error) {
	if text = bytes.TrimSpace(text); len(text) > 0 && text[0] == '{' {
		return parseJWK(text)
	}
	block, _ := pem.Decode(text)
	switch {
	case block == nil:
		return pubkey.Key{}, badPublic("the file is neither PEM nor a JWK")
	case strings.Contains(block.Type, "PRIVATE"):
		return pubkey.Key{}, private()
	case block.Type != "PUBLIC KEY":
		return pubkey.Key{}, badPublic("the PEM block is not of type PUBLIC KEY")
	}
	if k, err := pubkey.FromSPKI(claviger.MLDSA65, block.Bytes); err == nil {
		return k, nil
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return pubkey.Key{}, badPublic("the PEM block is not a public key")
	}
	return fromStd(pub)
}

func badPublic(msg string) error {
	return claviger.Errorf(claviger.Invalid, msg, "give the public half, as 'claviger key public' prints it, or the name of a key on the server")
}

func private() error {
	return claviger.Errorf(claviger.Invalid, "the file holds a private key", "the hunt needs the public half alone: give 'claviger key public KEY' or 'openssl pkey -pubout', and delete the private one where it should not be")
}

func fromStd(pub crypto.PublicKey) (pubkey.Key, error) {
	switch p := pub.(type) {
	case ed25519.PublicKey:
		return pubkey.FromStd(claviger.Ed25519, p)
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256():
			return pubkey.FromStd(claviger.ECDSAP256, p)
		case elliptic.P384():
			return pubkey.FromStd(claviger.ECDSAP384, p)
		}
	case *rsa.PublicKey:
		alg, err := claviger.ParseAlgorithm(fmt.Sprintf("rsa-%d-pss-sha256", p.N.BitLen()))
		if err != nil {
			return pubkey.Key{}, badPublic("RSA keys of this size are not hunted")
		}
		return pubkey.FromStd(alg, p)
	}
	return pubkey.Key{}, badPublic("keys of this kind are not hunted")
}

func parseJWK(text []byte) (pubkey.Key, error) {
	var members struct {
		Kty, Crv, Alg, X, Y, N, E, Pub string
		D, K, Priv, P                  json.RawMessage
	}
	if err := json.Unmarshal(text, &members); err != nil {
		return pubkey.Key{}, badPublic("the JWK is not JSON")
	}
	if members.K != nil || members.Kty == "oct" {
		return pubkey.Key{}, Symmetric("the JWK")
	}
	if members.D != nil || members.Priv != nil || members.P != nil {
		return pubkey.Key{}, private()
	}
	bytesOf := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return nil
		}
		return b
	}
	point := append([]byte{4}, append(bytesOf(members.X), bytesOf(members.Y)...)...)
	switch members.Kty + " " + members.Crv {
	case "EC P-256":
		return pubkey.Parse(claviger.ECDSAP256, point)
	case "EC P-384":
		return pubkey.Parse(claviger.ECDSAP384, point)
	case "OKP Ed25519":
		return pubkey.Parse(claviger.Ed25519, bytesOf(members.X))
	case "AKP ":
		return pubkey.Parse(claviger.MLDSA65, bytesOf(members.Pub))
	case "RSA ":
		e := new(big.Int).SetBytes(bytesOf(members.E))
		if !e.IsInt64() || e.Int64() > 1<<31-1 {
			return pubkey.Key{}, badPublic("the JWK's exponent is too large")
		}
		return fromStd(&rsa.PublicKey{N: new(big.Int).SetBytes(bytesOf(members.N)), E: int(e.Int64())})
	}
	return pubkey.Key{}, badPublic("keys of this kind are not hunted")
}
