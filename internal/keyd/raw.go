package keyd

import (
	"crypto/cipher"
	"crypto/hmac"

	claviger "claviger.dev"
	"claviger.dev/internal/hazmat"
)

// Raw runs the primitive of an algorithm as the key process does, with the
// same care for memory but without frames, on a fresh key: the limit that
// measurements compare with. It is safe for concurrent use.
type Raw struct {
	algorithm claviger.Algorithm
	public    []byte
	secret    hazmat.Secret
}

// NewRaw makes a key of the algorithm in the arena.
func NewRaw(arena *hazmat.Arena, a claviger.Algorithm) (*Raw, error) {
	r := &Raw{algorithm: a}
	var err error
	hazmat.Do(func() {
		var secret []byte
		if secret, err = fresh(a); err != nil {
			return
		}
		if r.public, err = publicHalf(a, secret); err != nil {
			return
		}
		r.secret, err = arena.New(hazmat.Token{}, len(secret), func(b []byte) error { copy(b, secret); return nil })
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Do protects each input once, as one batch of the key process: it signs,
// computes codes or seals.
func (r *Raw) Do(inputs [][]byte) error {
	switch r.algorithm.Protects() {
	case claviger.MAC:
		_, err := macAll(r.algorithm, r.secret, inputs)
		return err
	case claviger.Seal:
		return r.secret.Use(hazmat.Token{}, func(key []byte) error {
			aead, err := newCipher(key)
			if err == nil {
				sealEach(aead, inputs)
			}
			return err
		})
	}
	in, err := digests(r.algorithm.Hash(), inputs, false)
	if err == nil {
		_, err = signAll(r.algorithm, r.public, r.secret, in)
	}
	return err
}

// Unprotected returns a function that protects one input as the standard
// library does it by itself: the key on the heap, prepared once, nothing erased.
func (r *Raw) Unprotected() (func(input []byte) error, error) {
	var heap []byte
	err := r.secret.Use(hazmat.Token{}, func(key []byte) error { heap = append(heap, key...); return nil })
	if err != nil {
		return nil, err
	}
	switch r.algorithm.Protects() {
	case claviger.MAC:
		return func(in []byte) error {
			h := hmac.New(r.algorithm.Hash().New, heap)
			h.Write(in)
			h.Sum(nil)
			return nil
		}, nil
	case claviger.Seal:
		aead, err := newCipher(heap)
		return func(in []byte) error { sealEach(aead, [][]byte{in}); return nil }, err
	}
	sign, err := newSigner(r.algorithm, r.public, heap)
	hash := r.algorithm.Hash()
	return func(in []byte) error {
		digest, err := digests(hash, [][]byte{in}, false)
		if err == nil {
			_, err = sign(digest[0])
		}
		return err
	}, err
}

func sealEach(aead cipher.AEAD, inputs [][]byte) {
	for _, in := range inputs {
		aead.Seal(nil, nil, in, nil)
	}
}
