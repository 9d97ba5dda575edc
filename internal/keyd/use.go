package keyd

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha512" // crypto.SHA384 and crypto.SHA512
	"crypto/subtle"
	"fmt"
	"math/big"

	"filippo.io/mldsa"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
)

var (
	errOperation = claviger.Errorf(claviger.Unsupported, "the key's algorithm does not have this operation", "use an operation of the key's algorithm")
	errPrehashed = claviger.Errorf(claviger.Invalid, "a digest has the length of the algorithm's hash, and some algorithms take no digest", "send the message itself, or its digest under the algorithm's own hash")
)

// signer makes one signature. It may write to scratch, which is erased.
type signer func(input []byte) ([]byte, error)

// newSigner prepares material for signing. It is called inside Do, and the
// signer lives no longer than that.
func newSigner(a claviger.Algorithm, public, secret []byte) (signer, error) {
	switch a {
	case claviger.Ed25519:
		// crypto/ed25519 keeps a weak pointer to the key, so it cannot be
		// in the arena: it has to be a copy.
		key := append(append(make(ed25519.PrivateKey, 0, ed25519.PrivateKeySize), secret...), public...)
		return func(message []byte) ([]byte, error) { return ed25519.Sign(key, message), nil }, nil
	case claviger.ECDSAP256, claviger.ECDSAP384:
		half := 1 + len(public)/2
		// Parsing the scalar would compute the public point again, which
		// costs as much as half a signature. crypto/ecdsa checks both.
		//lint:ignore SA1019 the values were checked when the material was made, and are not changed
		key := &ecdsa.PrivateKey{D: new(big.Int).SetBytes(secret)}
		key.Curve, key.X, key.Y = curve(a), new(big.Int).SetBytes(public[1:half]), new(big.Int).SetBytes(public[half:])
		return func(digest []byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, key, digest) }, nil
	case claviger.MLDSA65:
		key, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), secret)
		if err != nil {
			return nil, errMaterial
		}
		return func(message []byte) ([]byte, error) { return key.Sign(rand.Reader, message, crypto.Hash(0)) }, nil
	}
	params, ok := a.RSA()
	if !ok {
		return nil, errOperation
	}
	key, err := decodeRSA(secret)
	if err != nil {
		return nil, err
	}
	key.Precompute()
	if params.PSS {
		options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: params.Hash}
		return func(digest []byte) ([]byte, error) {
			return rsa.SignPSS(rand.Reader, key, params.Hash, digest, options)
		}, nil
	}
	return func(digest []byte) ([]byte, error) { return rsa.SignPKCS1v15(rand.Reader, key, params.Hash, digest) }, nil
}

// signatureSize is the largest signature of the algorithm, in bytes.
func signatureSize(a claviger.Algorithm) int {
	switch a {
	case claviger.Ed25519:
		return ed25519.SignatureSize
	case claviger.ECDSAP256:
		return 72
	case claviger.ECDSAP384:
		return 104
	case claviger.MLDSA65:
		return mldsa.MLDSA65SignatureSize
	}
	params, _ := a.RSA()
	return params.Bits / 8
}

// signAll signs each input. Results are in memory of the caller's, so that
// they are not erased and their erasure not paid for.
func signAll(a claviger.Algorithm, public []byte, secret hazmat.Secret, inputs [][]byte) ([][]byte, error) {
	size := signatureSize(a)
	if size == 0 {
		return nil, errOperation
	}
	out, space := make([][]byte, len(inputs)), make([]byte, size*len(inputs))
	err := secret.Use(hazmat.Token{}, func(key []byte) error {
		sign, err := newSigner(a, public, key)
		if err != nil {
			return err
		}
		for i, input := range inputs {
			sig, err := sign(input)
			if err != nil {
				return fmt.Errorf("sign: %w", err)
			}
			n := copy(space[i*size:(i+1)*size], sig)
			out[i] = space[i*size : i*size+n : i*size+n]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (p *Process) sign(req *frames.SignRequest) (*frames.SignResponse, error) {
	v, err := p.slots.get(req.Use)
	if err != nil {
		return nil, err
	}
	if !v.binding.Algorithm.Asymmetric() {
		return nil, errOperation
	}
	inputs, err := digests(v.binding.Algorithm.Hash(), req.Inputs, req.Prehashed)
	if err != nil {
		return nil, err
	}
	sigs, err := signAll(v.binding.Algorithm, v.public, v.secret, inputs)
	if err != nil {
		return nil, err
	}
	return &frames.SignResponse{Fingerprint: v.fingerprint, Signatures: sigs}, nil
}

// digests returns what the primitive signs for each input.
func digests(hash crypto.Hash, inputs [][]byte, prehashed bool) ([][]byte, error) {
	if prehashed {
		for _, in := range inputs {
			if hash == 0 || len(in) != hash.Size() {
				return nil, errPrehashed
			}
		}
		return inputs, nil
	}
	if hash == 0 {
		return inputs, nil
	}
	out, h := make([][]byte, len(inputs)), hash.New()
	for i, in := range inputs {
		h.Reset()
		h.Write(in)
		out[i] = h.Sum(nil)
	}
	return out, nil
}

// macAll computes the code of each input.
func macAll(a claviger.Algorithm, secret hazmat.Secret, inputs [][]byte) ([][]byte, error) {
	size := a.Hash().Size()
	out, space := make([][]byte, len(inputs)), make([]byte, size*len(inputs))
	err := secret.Use(hazmat.Token{}, func(key []byte) error {
		h := hmac.New(a.Hash().New, key)
		for i, input := range inputs {
			h.Reset()
			h.Write(input)
			out[i] = h.Sum(space[i*size : i*size : (i+1)*size])
		}
		return nil
	})
	return out, err
}

func (p *Process) mac(u frames.Use, inputs [][]byte) (*slot, [][]byte, error) {
	v, err := p.slots.get(u)
	if err != nil {
		return nil, nil, err
	}
	if v.binding.Algorithm.Protects() != claviger.MAC {
		return nil, nil, errOperation
	}
	out, err := macAll(v.binding.Algorithm, v.secret, inputs)
	return v, out, err
}

func (p *Process) computeMAC(req *frames.MACRequest) (*frames.MACResponse, error) {
	v, out, err := p.mac(req.Use, req.Inputs)
	if err != nil {
		return nil, err
	}
	return &frames.MACResponse{Fingerprint: v.fingerprint, MACs: out}, nil
}

func (p *Process) verifyMAC(req *frames.VerifyMACRequest) (*frames.VerifyMACResponse, error) {
	v, out, err := p.mac(req.Use, req.Inputs)
	if err != nil {
		return nil, err
	}
	resp := &frames.VerifyMACResponse{Fingerprint: v.fingerprint, Valid: make([]bool, len(out))}
	for i := range out {
		resp.Valid[i] = subtle.ConstantTimeCompare(out[i], req.MACs[i]) == 1
		clear(out[i]) // the right code of a wrong message is for nobody
	}
	return resp, nil
}

// withCipher calls f with the slot's AES-256-GCM, inside Do.
func (p *Process) withCipher(u frames.Use, f func(cipher.AEAD)) (*slot, error) {
	v, err := p.slots.get(u)
	if err != nil {
		return nil, err
	}
	if v.binding.Algorithm != claviger.AES256GCM {
		return nil, errOperation
	}
	return v, v.secret.Use(hazmat.Token{}, func(key []byte) error {
		aead, err := newCipher(key)
		if err == nil {
			f(aead)
		}
		return err
	})
}

// newCipher returns AES-GCM with nonces that it makes itself and puts before
// the ciphertext.
func newCipher(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, errMaterial
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (p *Process) seal(req *frames.SealRequest) (*frames.SealResponse, error) {
	resp := &frames.SealResponse{Sealed: make([][]byte, len(req.Items))}
	for i, item := range req.Items {
		resp.Sealed[i] = make([]byte, 0, len(item.Plaintext)+28)
	}
	v, err := p.withCipher(req.Use, func(aead cipher.AEAD) {
		for i, item := range req.Items {
			resp.Sealed[i] = aead.Seal(resp.Sealed[i], nil, item.Plaintext, item.AssociatedData)
		}
	})
	if err != nil {
		return nil, err
	}
	resp.Fingerprint = v.fingerprint
	return resp, nil
}

func (p *Process) open(req *frames.OpenRequest) (*frames.OpenResponse, error) {
	resp := &frames.OpenResponse{Opened: make([]frames.Opened, len(req.Items))}
	for i, item := range req.Items {
		resp.Opened[i].Plaintext = make([]byte, 0, len(item.Sealed))
	}
	v, err := p.withCipher(req.Use, func(aead cipher.AEAD) {
		for i, item := range req.Items {
			resp.Opened[i] = openOne(aead, resp.Opened[i].Plaintext, item)
		}
	})
	if err != nil {
		return nil, err
	}
	resp.Fingerprint = v.fingerprint
	return resp, nil
}

func openOne(aead cipher.AEAD, dst []byte, item frames.Sealed) frames.Opened {
	plaintext, err := aead.Open(dst, nil, item.Sealed, item.AssociatedData)
	if err != nil {
		return frames.Opened{}
	}
	return frames.Opened{OK: true, Plaintext: plaintext}
}
