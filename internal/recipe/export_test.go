package recipe

import "io"

// The framework's own tests of Data Protection take any associated data, which
// a recipe does not.

// SealRing seals under a label that no recipe has.
func (r Recipe) SealRing(master []byte, random io.Reader, plain, label []byte) ([]byte, bool) {
	key, err := r.ringKey(Entry([idSize]byte{}, master))
	if err != nil {
		return nil, false
	}
	return r.sealRing(nil, key, random, plain, label)
}

// OpenRing undoes SealRing.
func (r Recipe) OpenRing(master, sealed, label []byte) ([]byte, bool) {
	key, err := r.ringKey(Entry([idSize]byte{}, master))
	if err != nil {
		return nil, false
	}
	return r.openRing(nil, key, sealed, label)
}

// CounterMode is the KDF by itself.
func CounterMode(key, label, context []byte, n int) []byte { return counter(key, label, context, n) }
