package recipe

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"io"
)

// The schemes that derive keys for each token, from salts of the token's own.

const ironSalt = 32

// makeIron makes salt (32) | IV (16) | ciphertext | salt (32) | MAC (32). Aside
// is the id of the password and the expiry as they stand in the token, with
// "*" between them.
func makeIron(dst, master []byte, random io.Reader, it Item) ([]byte, bool) {
	fresh := make([]byte, 2*ironSalt+aes.BlockSize)
	if _, err := io.ReadFull(random, fresh); err != nil {
		return nil, false
	}
	salt, iv, macSalt := fresh[:ironSalt], fresh[ironSalt:ironSalt+aes.BlockSize], fresh[ironSalt+aes.BlockSize:]
	key, ok := ironKey(master, salt)
	if !ok {
		return nil, false
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, false
	}
	dst = append(append(dst, salt...), iv...)
	start := len(dst)
	dst = encrypt(dst, block, iv, it.Data)
	tag, ok := ironTag(master, macSalt, salt, iv, dst[start:], it.Aside)
	return append(append(dst, macSalt...), tag...), ok
}

func openIron(dst, master []byte, it Item) ([]byte, bool) {
	const head, tail = ironSalt + aes.BlockSize, ironSalt + sha256.Size
	if len(it.Data) < head+aes.BlockSize+tail {
		return nil, false
	}
	n := len(it.Data) - tail
	salt, iv, ct := it.Data[:ironSalt], it.Data[ironSalt:head], it.Data[head:n]
	tag, ok := ironTag(master, it.Data[n:n+ironSalt], salt, iv, ct, it.Aside)
	if !ok || !hmac.Equal(tag, it.Data[n+ironSalt:]) {
		return nil, false
	}
	key, ok := ironKey(master, salt)
	if !ok {
		return nil, false
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, false
	}
	return decrypt(dst, block, iv, ct)
}

// ironKey derives with the salt's hexadecimal text, as iron does.
func ironKey(master, salt []byte) ([]byte, bool) {
	key, err := pbkdf2.Key(sha1.New, string(master), hex.AppendEncode(nil, salt), 1, 32)
	return key, err == nil
}

// ironTag is the MAC over the token's text up to the expiry.
func ironTag(master, macSalt, salt, iv, ct, aside []byte) ([]byte, bool) {
	id, expiry, ok := bytes.Cut(aside, []byte("*"))
	const word = base64Alphabet + "_"
	if !ok || len(aside) > 256 || len(bytes.TrimLeft(id, word)) > 0 || len(bytes.TrimLeft(expiry, "0123456789")) > 0 {
		return nil, false
	}
	key, ok := ironKey(master, macSalt)
	text := append(append([]byte("Fe26.2*"), id...), '*')
	text = append(hex.AppendEncode(text, salt), '*')
	text = append(base64.RawURLEncoding.AppendEncode(text, iv), '*')
	text = append(base64.RawURLEncoding.AppendEncode(text, ct), '*')
	text = append(text, expiry...)
	return sum(sha256.New, key, text), ok
}

// ringLabel is the template of associated data of Data Protection.
func (r Recipe) ringLabel(id []byte) []byte {
	n, _ := countPurposes(r.Purposes)
	label := append([]byte{0x09, 0xf0, 0xc9, 0xf0}, id...)
	return append(binary.BigEndian.AppendUint32(label, n), r.Purposes...)
}

const ringModifier = 16

// ringKey is what the keys of a token are derived from: the master, and then
// the id of the entry and the context that is the same for all.
func (r Recipe) ringKey(entry []byte) ([]byte, error) {
	context, ok := r.ringContext(int(r.Size), r.ringMAC())
	if !ok || len(entry) <= idSize {
		return nil, errMaterial
	}
	return Pair(entry[idSize:], append(bytes.Clone(entry[:idSize]), context...)), nil
}

// ringID returns the id in what ringKey made.
func ringID(key []byte) []byte {
	_, rest, _ := split(key)
	return rest[:idSize]
}

func (r Recipe) ringMAC() int {
	if r.Scheme == RingGCM {
		return 0
	}
	return r.MAC.Size()
}

// ringKeys derives the keys of one token.
func (r Recipe) ringKeys(key, modifier, label []byte) (encryption, validation []byte, ok bool) {
	master, context, ok := split(key)
	n := int(r.Size)
	keys := counter(master, label, append(bytes.Clone(context[idSize:]), modifier...), n+r.ringMAC())
	return keys[:n], keys[n:], ok
}

// ringContext is the header that names the algorithms: their sizes, and what
// they make of nothing under keys derived from nothing.
func (r Recipe) ringContext(size, mac int) ([]byte, bool) {
	keys := counter(nil, nil, nil, size+mac)
	numbers := []uint32{uint32(size), aes.BlockSize, uint32(mac), uint32(mac)}
	head := []byte{0, 0}
	if r.Scheme == RingGCM {
		head, numbers = []byte{0, 1}, []uint32{uint32(size), 12, aes.BlockSize, 16}
	}
	for _, n := range numbers {
		head = binary.BigEndian.AppendUint32(head, n)
	}
	if r.Scheme == RingGCM {
		aead, ok := newGCM(keys)
		if !ok {
			return nil, false
		}
		return aead.Seal(head, make([]byte, 12), nil, nil), true
	}
	block, err := aes.NewCipher(keys[:size])
	if err != nil {
		return nil, false
	}
	head = encrypt(head, block, make([]byte, aes.BlockSize), nil)
	return append(head, sum(r.MAC.constructor(), keys[size:])...), true
}

func (r Recipe) sealRing(dst, key []byte, random io.Reader, plain, label []byte) ([]byte, bool) {
	fresh := make([]byte, ringModifier)
	if _, err := io.ReadFull(random, fresh); err != nil {
		return nil, false
	}
	encryption, validation, ok := r.ringKeys(key, fresh, label)
	if !ok {
		return nil, false
	}
	dst = append(dst, fresh...)
	if r.Scheme == RingGCM {
		return sealGCM(dst, encryption, random, plain, nil)
	}
	iv := make([]byte, aes.BlockSize)
	block, err := aes.NewCipher(encryption)
	if _, errRandom := io.ReadFull(random, iv); err != nil || errRandom != nil {
		return nil, false
	}
	start := len(dst)
	dst = encrypt(append(dst, iv...), block, iv, plain)
	return append(dst, sum(r.MAC.constructor(), validation, dst[start:])...), true
}

func (r Recipe) openRing(dst, key, sealed, label []byte) ([]byte, bool) {
	if len(sealed) < ringModifier {
		return nil, false
	}
	encryption, validation, ok := r.ringKeys(key, sealed[:ringModifier], label)
	if !ok {
		return nil, false
	}
	sealed = sealed[ringModifier:]
	if r.Scheme == RingGCM {
		return openGCM(dst, encryption, sealed, nil)
	}
	n := len(sealed) - len(validation)
	if n < 2*aes.BlockSize || !hmac.Equal(sum(r.MAC.constructor(), validation, sealed[:n]), sealed[n:]) {
		return nil, false
	}
	block, err := aes.NewCipher(encryption)
	if err != nil {
		return nil, false
	}
	return decrypt(dst, block, sealed[:aes.BlockSize], sealed[aes.BlockSize:n])
}
