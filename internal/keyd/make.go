package keyd

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"

	"filippo.io/mldsa"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/recipe"
)

// Material, in a blob and in a slot, is what an import carries: an Ed25519 or
// ML-DSA-65 seed of 32 bytes, a fixed-length big-endian ECDSA scalar, the
// PKCS#1 RSAPrivateKey DER (RFC 8017, A.1.2), a raw HMAC key of 16 to 256
// bytes, a raw AES-256 key, a machine key as its recipe set has it. Everything
// in this file runs inside Do.

var (
	errMaterial = claviger.Errorf(claviger.Invalid, "the material is no valid key of the algorithm", "check the algorithm, the size and the encoding of the key")
	errAlgo     = claviger.Errorf(claviger.Unsupported, "the key process does not have this algorithm", "use a server and a key process of one release")
)

// fresh makes new material for an algorithm.
func fresh(a claviger.Algorithm) ([]byte, error) {
	switch a {
	case claviger.Ed25519, claviger.MLDSA65, claviger.AES256GCM, claviger.HMACSHA256, claviger.HMACSHA384, claviger.HMACSHA512:
		n := 32
		if a.Protects() == claviger.MAC {
			n = a.Hash().Size()
		}
		secret := make([]byte, n)
		_, err := rand.Read(secret)
		return secret, err
	case claviger.ECDSAP256, claviger.ECDSAP384:
		key, err := ecdsa.GenerateKey(curve(a), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate key: %w", err)
		}
		return key.Bytes()
	}
	params, ok := a.RSA()
	if !ok {
		return nil, errAlgo
	}
	key, err := rsa.GenerateKey(rand.Reader, params.Bits)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return encodeRSA(key)
}

// publicHalf checks material strictly and returns its raw public key, empty
// for a symmetric key.
func publicHalf(a claviger.Algorithm, secret []byte) ([]byte, error) {
	size := func(min, max int) error {
		if len(secret) < min || len(secret) > max {
			return errMaterial
		}
		return nil
	}
	switch a {
	case claviger.Ed25519:
		if err := size(32, 32); err != nil {
			return nil, err
		}
		return ed25519.NewKeyFromSeed(secret)[32:], nil
	case claviger.ECDSAP256, claviger.ECDSAP384:
		key, err := ecdsa.ParseRawPrivateKey(curve(a), secret)
		if err != nil {
			return nil, errMaterial
		}
		return key.PublicKey.Bytes()
	case claviger.MLDSA65:
		key, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), secret)
		if err != nil {
			return nil, errMaterial
		}
		return key.PublicKey().Bytes(), nil
	case claviger.AES256GCM:
		return nil, size(32, 32)
	case claviger.HMACSHA256, claviger.HMACSHA384, claviger.HMACSHA512:
		return nil, size(16, 256)
	}
	params, ok := a.RSA()
	if !ok {
		return nil, errAlgo
	}
	return publicRSA(params.Bits, secret)
}

func curve(a claviger.Algorithm) elliptic.Curve {
	if a == claviger.ECDSAP384 {
		return elliptic.P384()
	}
	return elliptic.P256()
}

// fingerprintOf is documented at claviger.Fingerprint.
func (r *root) fingerprintOf(a claviger.Algorithm, public, secret []byte) (f claviger.Fingerprint, err error) {
	if a.Asymmetric() {
		return sha256.Sum256(append([]byte(string(a)+"\x00"), public...)), nil
	}
	err = r.fingerprint.Use(hazmat.Token{}, func(key []byte) error {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(string(a) + "\x00"))
		h.Write(secret)
		h.Sum(f[:0])
		return nil
	})
	return f, err
}

// finish turns checked material into what may be known of it.
func (p *Process) finish(r *root, b frames.Binding, secret []byte) (made frames.Made, err error) {
	var public []byte
	if b.Algorithm == claviger.MachineKey {
		err = recipe.Set(b.Recipe).Check(secret)
	} else {
		public, err = publicHalf(b.Algorithm, secret)
	}
	if err != nil {
		return made, err
	}
	made.Public, made.Level = public, p.level
	if b.Origin == claviger.Imported {
		made.Level = claviger.Exposed
	}
	if made.Fingerprint, err = r.fingerprintOf(b.Algorithm, public, secret); err != nil {
		return made, err
	}
	m := material{fingerprint: made.Fingerprint, secret: secret}
	if signsWithPublic(b.Algorithm) {
		m.public = public
	}
	made.Blob, made.Generation, err = r.wrap(b, m)
	return made, err
}

// signsWithPublic says that a signature needs the public half, which would
// cost a scalar multiplication to compute each time.
func signsWithPublic(a claviger.Algorithm) bool {
	return a == claviger.Ed25519 || a == claviger.ECDSAP256 || a == claviger.ECDSAP384
}

// generate makes material for a version.
func (p *Process) generate(req *frames.GenerateRequest) (*frames.GenerateResponse, error) {
	r, err := p.rooted()
	if err != nil {
		return nil, err
	}
	if err := req.Binding.Validate(); err != nil {
		return nil, err
	}
	if req.Binding.Origin != claviger.Generated {
		return nil, claviger.Errorf(claviger.Invalid, "what is generated cannot be bound as imported", "bind it as generated")
	}
	resp := &frames.GenerateResponse{}
	hazmat.Do(func() {
		var secret []byte
		if req.Binding.Algorithm == claviger.MachineKey {
			secret, err = recipe.Set(req.Binding.Recipe).Fresh(rand.Reader)
		} else {
			secret, err = fresh(req.Binding.Algorithm)
		}
		if err == nil {
			resp.Made, err = p.finish(r, req.Binding, secret)
		}
		clear(secret)
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}
