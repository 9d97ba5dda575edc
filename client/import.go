package client

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"time"

	"filippo.io/mldsa"
	mldsax509 "filippo.io/mldsa/x509"
	"github.com/go-jose/go-jose/v4"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/recipe"
	"claviger.dev/pubkey"
)

// maxMaterial is the longest input of an import: 64 KiB.
const maxMaterial = 64 << 10

// Import moves material into custody, one way, as a new version of a key. It
// reads PEM, PKCS#8, a private JWK or raw bytes, reduces them to the raw
// components of the key's algorithm, and seals those to a one-time key of the
// key process whose identity is pinned (SHA-256 of its public key): the server
// in between can neither read nor redirect them. The caller's own copies
// remain; destroying them is the caller's duty.
func (c *Client) Import(ctx context.Context, ref string, data []byte, pin [32]byte, reason string) (*clavigerv1.Key, error) {
	record, err := c.GetKey(ctx, ref)
	if err != nil {
		return nil, err
	}
	alg, err := claviger.ParseAlgorithm(record.Algorithm)
	if err != nil {
		return nil, err
	}
	if alg == claviger.MachineKey {
		return nil, claviger.Errorf(claviger.Invalid, "a machine key is adopted for one recipe set", "say which: the server must not choose it")
	}
	material, public, err := readMaterial(alg, data)
	if err != nil {
		return nil, err
	}
	defer clear(material)
	return c.moveIn(ctx, record, frames.Binding{Algorithm: alg, Recipe: claviger.PlainRecipe}, material, public, pin, &clavigerv1.ImportKeyRequest{Reason: reason})
}

// Adoption is a framework's secret that moves into custody.
type Adoption struct {
	Key      string
	Set      string            // the recipe set that it is to answer, and nothing else
	Material []byte            // decoded, as the set has it: 1 to 1024 bytes; the caller clears it
	Place    *clavigerv1.Place // where it stood, to be remembered; nil for none
	Older    bool              // it is not in use any more, and makes no tokens
	Pin      [32]byte          // SHA-256 of the key process's identity
	Reason   string
}

// Adopt moves a framework's secret into custody, one way, as a new version of a
// machine key, under the terms of Import. The key process binds it to its
// recipe set, whatever the server in between says. A secret that the key has
// already makes no version.
func (c *Client) Adopt(ctx context.Context, a Adoption) (*clavigerv1.Key, error) {
	parsed, err := recipe.ParseSet(a.Set)
	if err != nil {
		return nil, err
	}
	if err := parsed.Check(a.Material); err != nil {
		return nil, err
	}
	record, err := c.GetKey(ctx, a.Key)
	if err != nil {
		return nil, err
	}
	if record.Algorithm != string(claviger.MachineKey) || record.Recipe != a.Set {
		return nil, claviger.Errorf(claviger.Conflict, "the key is no machine key of this recipe set", "create one with the algorithm machine-key and this set")
	}
	return c.moveIn(ctx, record, frames.Binding{Algorithm: claviger.MachineKey, Recipe: a.Set}, a.Material, nil, a.Pin,
		&clavigerv1.ImportKeyRequest{Reason: a.Reason, Place: a.Place, Older: a.Older})
}

// moveIn seals material to a one-time key of the key process and has it adopted.
// b says what the one-time key must be for, and request what is said beside.
func (c *Client) moveIn(ctx context.Context, record *clavigerv1.Key, b frames.Binding, material, public []byte, pin [32]byte, request *clavigerv1.ImportKeyRequest) (*clavigerv1.Key, error) {
	answer, err := call(ctx, c, once, c.keys.BeginImport, &clavigerv1.BeginImportRequest{Key: record.Id})
	if err != nil {
		return nil, err
	}
	key, err := oneTime(answer, record.Id, b)
	if err != nil {
		return nil, err
	}
	if err := key.Verify(pin, c.now()); err != nil {
		return nil, err
	}
	sealed, err := key.Seal(material)
	if err != nil {
		return nil, claviger.Errorf(claviger.Invalid, "the one-time key is malformed", "try again").Wrap(err)
	}
	request.Key, request.ImportKeyId, request.Sealed = record.Id, key.ID, sealed
	out, err := call(ctx, c, once, c.keys.ImportKey, request)
	if err != nil {
		return nil, err
	}
	for _, v := range out.Versions {
		if (v.Number == key.Binding.Version || b.Algorithm == claviger.MachineKey) && bytes.Equal(v.Public, public) {
			return out, nil
		}
	}
	return nil, claviger.Errorf(claviger.Internal, "the imported version does not show the material's public half", "do not use the key, and report this")
}

// oneTime reads a one-time key and checks that it is for this import. The
// statement that it verifies against is built from what is expected.
func oneTime(m *clavigerv1.OneTimeKey, id string, b frames.Binding) (onetime.Key, error) {
	if m.KeyId != id || m.Algorithm != string(b.Algorithm) || m.Version == 0 || !m.Expires.IsValid() {
		return onetime.Key{}, claviger.Errorf(claviger.Denied, "the one-time key is for something else", "send nothing; check the server")
	}
	return onetime.Key{
		ID: m.Id, Purpose: onetime.Import, Public: m.Public, Expires: m.Expires.AsTime().Truncate(time.Second), Identity: m.Identity, Signature: m.Signature,
		Binding: frames.Binding{KeyID: claviger.ID(id), Version: m.Version, Algorithm: b.Algorithm, Recipe: b.Recipe, Origin: claviger.Imported},
	}, nil
}

// ReadMaterial checks and reduces material to the raw components that a key of
// the algorithm takes: Ed25519 and ML-DSA-65, the 32-byte seed; ECDSA, the
// fixed-length scalar; RSA, PKCS#1 RSAPrivateKey DER; HMAC, 16 to 256 bytes;
// AES-256-GCM, 32 bytes. The input is PEM, DER (PKCS#8, PKCS#1, SEC 1), a
// private JWK, or the raw components themselves. A symmetric key that is not a
// JWK is taken as it is, to the last byte. Clear the result after use.
func ReadMaterial(alg claviger.Algorithm, data []byte) ([]byte, error) {
	material, _, err := readMaterial(alg, data)
	return material, err
}

func unreadable(msg string) *claviger.Error {
	return claviger.Errorf(claviger.Invalid, msg, "give PEM, PKCS#8, a private JWK or the raw components of a key of the algorithm that was named")
}

func readMaterial(alg claviger.Algorithm, data []byte) (material, public []byte, err error) {
	if len(data) == 0 || len(data) > maxMaterial {
		return nil, nil, claviger.Errorf(claviger.TooLarge, "the material is empty or longer than 64 KiB", "give one key")
	}
	if !alg.Asymmetric() {
		material, err = symmetric(alg, data)
		return material, nil, err
	}
	private, err := private(alg, data)
	if err != nil {
		return nil, nil, err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, nil, unreadable("the material is not a private key that signs")
	}
	half, err := pubkey.FromStd(alg, signer.Public())
	if err != nil {
		return nil, nil, err
	}
	switch k := private.(type) {
	case ed25519.PrivateKey:
		material = k.Seed()
	case *ecdsa.PrivateKey:
		material, err = k.Bytes()
	case *mldsa.PrivateKey:
		material = k.Bytes()
	case *rsa.PrivateKey:
		if err = k.Validate(); err == nil {
			material = x509.MarshalPKCS1PrivateKey(k)
		}
	}
	if err != nil || material == nil {
		return nil, nil, unreadable("the private key is not consistent").Wrap(err)
	}
	return material, half.Raw(), nil
}

func symmetric(alg claviger.Algorithm, data []byte) ([]byte, error) {
	material := bytes.Clone(data)
	var jwk struct{ Kty, K string }
	if json.Unmarshal(data, &jwk) == nil && jwk.Kty == "oct" {
		var err error
		if material, err = base64.RawURLEncoding.Strict().DecodeString(jwk.K); err != nil {
			return nil, unreadable("the JWK is malformed")
		}
	}
	if n := len(material); alg == claviger.AES256GCM && n != 32 || n < 16 || n > 256 {
		clear(material)
		return nil, unreadable("a key has 32 bytes for AES-256-GCM, and 16 to 256 for HMAC")
	}
	return material, nil
}

// private reads a private key in whichever form it has.
func private(alg claviger.Algorithm, data []byte) (any, error) {
	if trimmed := bytes.TrimSpace(data); bytes.HasPrefix(trimmed, []byte("{")) {
		return privateJWK(trimmed)
	}
	if block, rest := pem.Decode(data); block != nil {
		if len(bytes.TrimSpace(rest)) > 0 && block.Type != "EC PARAMETERS" {
			return nil, unreadable("the PEM has more than one block")
		}
		if block.Type == "EC PARAMETERS" { // openssl ecparam writes it before the key
			if block, _ = pem.Decode(rest); block == nil {
				return nil, unreadable("the PEM has no private key")
			}
		}
		if block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY" {
			return nil, unreadable("the private key is encrypted by a passphrase; decrypt it first")
		}
		return privateDER(block.Bytes)
	}
	if key, err := privateDER(data); err == nil {
		return key, nil
	}
	switch {
	case alg == claviger.Ed25519 && len(data) == ed25519.SeedSize:
		return ed25519.NewKeyFromSeed(data), nil
	case alg == claviger.MLDSA65 && len(data) == mldsa.PrivateKeySize:
		return mldsa.NewPrivateKey(mldsa.MLDSA65(), data)
	case alg == claviger.ECDSAP256:
		return privateScalar(elliptic.P256(), data)
	case alg == claviger.ECDSAP384:
		return privateScalar(elliptic.P384(), data)
	}
	return nil, unreadable("the material has none of the forms that can be read")
}

func privateScalar(curve elliptic.Curve, data []byte) (any, error) {
	key, err := ecdsa.ParseRawPrivateKey(curve, data)
	if err != nil {
		return nil, unreadable("the material has none of the forms that can be read")
	}
	return key, nil
}

func privateDER(der []byte) (any, error) {
	if key, err := mldsax509.ParsePKCS8PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	return nil, unreadable("the material is not a private key in PKCS#8, PKCS#1 or SEC 1")
}

func privateJWK(data []byte) (any, error) {
	var akp struct{ Kty, Alg, Priv string }
	if json.Unmarshal(data, &akp) == nil && akp.Kty == "AKP" {
		seed, err := base64.RawURLEncoding.Strict().DecodeString(akp.Priv)
		if err != nil || akp.Alg != "ML-DSA-65" {
			return nil, unreadable("the JWK is not a private key")
		}
		key, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), seed)
		if err != nil {
			return nil, unreadable("the JWK is not a private key")
		}
		return key, nil
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(data); err != nil || key.IsPublic() {
		return nil, unreadable("the JWK is not a private key")
	}
	return key.Key, nil
}
