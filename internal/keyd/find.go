package keyd

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
)

// find tells whether a buffer contains the slot's own material, whole.
func (p *Process) find(req *frames.FindRequest) (*frames.FindResponse, error) {
	v, err := p.slots.get(req.Use)
	if err != nil {
		return nil, err
	}
	resp := &frames.FindResponse{Fingerprint: v.fingerprint}
	// Text is often wrapped in lines: what is encoded is looked for without them.
	unwrapped := make([]byte, 0, len(req.Haystack))
	for _, b := range req.Haystack {
		if b != '\n' && b != '\r' && b != ' ' && b != '\t' {
			unwrapped = append(unwrapped, b)
		}
	}
	err = v.secret.Use(hazmat.Token{}, func(key []byte) error {
		secrets := [][]byte{key}
		if _, ok := v.binding.Algorithm.RSA(); ok {
			k, err := decodeRSA(key)
			if err != nil {
				return err
			}
			secrets = [][]byte{k.Primes[0].Bytes(), k.Primes[1].Bytes()}
		}
		for _, secret := range secrets {
			resp.Found = resp.Found || contains(req.Haystack, secret)
			for _, text := range encodings(secret) {
				resp.Found = resp.Found || contains(unwrapped, text)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// encodings returns the usual texts of a secret: hexadecimal in both cases,
// and base64 in both alphabets at each of the three places it can have in a
// larger text, without the outermost characters that depend on neighbours.
func encodings(secret []byte) [][]byte {
	lower := hex.AppendEncode(nil, secret)
	out := [][]byte{lower, []byte(strings.ToUpper(string(lower)))}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 {
			text := enc.AppendEncode(nil, append(make([]byte, shift, shift+len(secret)), secret...))
			if (shift+len(secret))%3 != 0 {
				text = text[:len(text)-1]
			}
			if shift > 0 {
				text = text[shift+1:]
			}
			out = append(out, text)
		}
	}
	return out
}

// contains looks for a needle with a rolling hash under a random multiplier
// and compares in constant time where the hash agrees. A search that stops at
// the first byte that differs would tell its caller by its duration how much
// of the needle was guessed.
func contains(haystack, needle []byte) bool {
	n := len(needle)
	if n == 0 || len(haystack) < n {
		return false
	}
	var seed [8]byte
	_, _ = rand.Read(seed[:])
	m := binary.LittleEndian.Uint64(seed[:]) | 1
	var want, have uint64
	leading := uint64(1) // m^n
	for i := range n {
		want = want*m + uint64(needle[i])
		have = have*m + uint64(haystack[i])
		leading *= m
	}
	found := 0
	for i := n; ; i++ {
		if have == want {
			found |= subtle.ConstantTimeCompare(haystack[i-n:i], needle)
		}
		if i == len(haystack) {
			return found == 1
		}
		have = have*m + uint64(haystack[i]) - leading*uint64(haystack[i-n])
	}
}
