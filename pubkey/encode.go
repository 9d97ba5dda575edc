package pubkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"

	"claviger.dev"
	"filippo.io/mldsa"
	"golang.org/x/crypto/ssh"
)

// oidMLDSA65 is id-ml-dsa-65 (RFC 9881, section 2).
var oidMLDSA65 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 18}

// spki is SubjectPublicKeyInfo (RFC 5280, 4.1).
type spki struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}

// SPKI returns the key as SubjectPublicKeyInfo, DER. RSA keys are written as
// rsaEncryption for PSS too, which is what most programs read.
func (k Key) SPKI() []byte {
	if _, ok := k.std.(*mldsa.PublicKey); ok {
		der, _ := asn1.Marshal(spki{pkix.AlgorithmIdentifier{Algorithm: oidMLDSA65}, asn1.BitString{Bytes: k.raw, BitLength: 8 * len(k.raw)}})
		return der
	}
	der, _ := x509.MarshalPKIXPublicKey(k.std) // fails only for types that Parse does not make
	return der
}

// PEM returns the SPKI as a PEM block of type PUBLIC KEY.
func (k Key) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.SPKI()})
}

// FromSPKI reads a key of the algorithm from SubjectPublicKeyInfo, DER. Only
// the form that SPKI writes is accepted.
func FromSPKI(alg claviger.Algorithm, der []byte) (Key, error) {
	if len(der) > 4096 {
		return Key{}, claviger.Errorf(claviger.TooLarge, "the public key is longer than 4096 bytes", "give one public key")
	}
	var info spki
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 {
		return Key{}, invalid("the public key is not a SubjectPublicKeyInfo")
	}
	k, err := Parse(alg, info.Key.RightAlign())
	if err != nil {
		return Key{}, err
	}
	if !bytes.Equal(k.SPKI(), der) {
		return Key{}, invalid("the SubjectPublicKeyInfo names another algorithm or curve")
	}
	return k, nil
}

// FromStd returns the key for a public key of the types that Std returns.
func FromStd(alg claviger.Algorithm, pub crypto.PublicKey) (Key, error) {
	switch p := pub.(type) {
	case ed25519.PublicKey:
		return Parse(alg, p)
	case *ecdsa.PublicKey:
		raw, err := p.Bytes()
		if err != nil {
			return Key{}, invalid("the public key is not on its curve")
		}
		return Parse(alg, raw)
	case *rsa.PublicKey:
		return Parse(alg, x509.MarshalPKCS1PublicKey(p))
	case *mldsa.PublicKey:
		return Parse(alg, p.Bytes())
	}
	return Key{}, invalid("the public key is of a type that is not offered")
}

// jwk holds the members of a public JWK (RFC 7517, 7518 section 6, RFC 8037;
// for ML-DSA the kty AKP). Members are in lexical order, as RFC 7638 asks.
type jwk struct {
	Alg string `json:"alg,omitempty"`
	Crv string `json:"crv,omitempty"`
	E   string `json:"e,omitempty"`
	KID string `json:"kid,omitempty"`
	Kty string `json:"kty"`
	N   string `json:"n,omitempty"`
	Pub string `json:"pub,omitempty"`
	Use string `json:"use,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
}

// required returns the members that RFC 7638 hashes, and no others.
func (k Key) required() jwk {
	b64 := base64.RawURLEncoding.EncodeToString
	switch p := k.std.(type) {
	case ed25519.PublicKey:
		return jwk{Kty: "OKP", Crv: "Ed25519", X: b64(p)}
	case *ecdsa.PublicKey:
		n := len(k.raw) / 2
		return jwk{Kty: "EC", Crv: p.Params().Name, X: b64(k.raw[1 : 1+n]), Y: b64(k.raw[1+n:])}
	case *rsa.PublicKey:
		return jwk{Kty: "RSA", E: b64(big.NewInt(int64(p.E)).Bytes()), N: b64(p.N.Bytes())}
	case *mldsa.PublicKey:
		return jwk{Kty: "AKP", Alg: "ML-DSA-65", Pub: b64(k.raw)}
	}
	return jwk{}
}

// JWK returns the key as a JSON Web Key with alg, kid and use.
func (k Key) JWK() []byte {
	j := k.required()
	j.Alg, j.KID, j.Use = JWSAlgorithm(k.alg), k.Thumbprint(), "sig"
	b, _ := json.Marshal(j) // strings only: cannot fail
	return b
}

// Thumbprint returns the RFC 7638 thumbprint by SHA-256, in unpadded base64url.
// It is the key id (kid) of the version.
func (k Key) Thumbprint() string {
	b, _ := json.Marshal(k.required())
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// JWSAlgorithm returns the JWS name of an algorithm (RFC 7518, RFC 8037), or ""
// for one that does not sign.
func JWSAlgorithm(alg claviger.Algorithm) string {
	switch alg {
	case claviger.Ed25519:
		return "EdDSA"
	case claviger.ECDSAP256:
		return "ES256"
	case claviger.ECDSAP384:
		return "ES384"
	case claviger.MLDSA65:
		return "ML-DSA-65"
	}
	params, ok := alg.RSA()
	if !ok {
		return ""
	}
	bits := strings.TrimPrefix(params.Hash.String(), "SHA-")
	if params.PSS {
		return "PS" + bits
	}
	return "RS" + bits
}

// SSH returns the key as a line of an authorized_keys file, without comment
// and ending in a newline. ML-DSA-65 has no OpenSSH form: Unsupported.
func (k Key) SSH() (string, error) {
	pub, err := ssh.NewPublicKey(k.std)
	if err != nil {
		return "", claviger.Errorf(claviger.Unsupported, "OpenSSH has no form for a public key of this algorithm", "use PEM or JWK")
	}
	return string(ssh.MarshalAuthorizedKey(pub)), nil
}
