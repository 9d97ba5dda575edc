package recipe

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
)

// Derives reports whether the recipe uses a derived key that is the same for
// every token, and so is worth keeping.
func (r Recipe) Derives() bool { return r.Derivation != Verbatim }

// Key returns what Make and Check take as key: the keys derived from the
// master, or the master itself where Derives is false. Derived keys stay in the
// process that holds the master. The recipe was admitted.
func (r Recipe) Key(master []byte) ([]byte, error) {
	h := r.Hash.constructor()
	switch r.Derivation {
	case Concat:
		d := h()
		d.Write([]byte(r.Salt))
		d.Write(master)
		return d.Sum(nil), nil
	case Label:
		return sum(h, master, []byte(r.Salt)), nil
	case PBKDF2:
		return r.stretch(h, master)
	case HKDF:
		info, n := "NextAuth.js Generated Encryption Key", 32
		if r.Scheme == JWECBC {
			info, n = "Auth.js Generated Encryption Key", 64
		}
		if r.Salt != "" || r.Scheme == JWECBC {
			info += " (" + r.Salt + ")"
		}
		return hkdf.Key(sha256.New, master, []byte(r.Salt), info, n)
	case Counter:
		if r.Scheme == RingCBC || r.Scheme == RingGCM {
			return r.ringKey(master)
		}
		decryption, validation, ok := split(master)
		if !ok {
			return nil, errMaterial
		}
		label, context := []byte(r.Salt), []byte(r.Purposes)
		return Pair(counter(decryption, label, context, len(decryption)), counter(validation, label, context, len(validation))), nil
	}
	return master, nil
}

// stretch derives by PBKDF2: one key, or two where the scheme has two.
func (r Recipe) stretch(h func() hash.Hash, master []byte) ([]byte, error) {
	size, second := int(r.Size), 0
	switch r.Scheme {
	case RailsCBC:
		size, second = 32, 64
	case PlugGCM:
		if r.Salt2 != "" {
			second = int(r.Size)
		}
	}
	key, err := pbkdf2.Key(h, string(master), []byte(r.Salt), int(r.Iterations), size)
	if err == nil && second > 0 {
		var more []byte
		more, err = pbkdf2.Key(h, string(master), []byte(r.Salt2), int(r.Iterations), second)
		key = append(key, more...)
	}
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return key, nil
}

// counter is the KDF in counter mode of SP 800-108r1, 4.1, with HMAC-SHA-512
// and 32-bit numbers, as .NET has it: n bytes.
func counter(key, label, context []byte, n int) []byte {
	mac := hmac.New(sha512.New, key)
	out := make([]byte, 0, n+sha512.Size)
	fixed := append(append(append([]byte(nil), label...), 0), context...)
	fixed = binary.BigEndian.AppendUint32(fixed, uint32(n)*8)
	var number [4]byte
	for i := uint32(1); len(out) < n; i++ {
		mac.Reset()
		binary.BigEndian.PutUint32(number[:], i)
		mac.Write(number[:])
		mac.Write(fixed)
		out = mac.Sum(out)
	}
	clear(out[n:])
	return out[:n]
}

func sum(h func() hash.Hash, key []byte, message ...[]byte) []byte {
	mac := hmac.New(h, key)
	for _, m := range message {
		mac.Write(m)
	}
	return mac.Sum(nil)
}
