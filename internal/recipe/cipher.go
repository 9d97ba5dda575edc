package recipe

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"io"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// seal encrypts under a fresh nonce. What is made:
//
//	rails-gcm, laravel-gcm  nonce (12) | ciphertext | tag (16)
//	*-cbc, machinekey       IV | ciphertext | MAC
//	plug-xchacha            nonce (24) | tag (16) | ciphertext
//	plug-gcm                wrapped key (16) | its tag (16) | its nonce (12) | nonce (12) | ciphertext | tag (16)
//	ring-gcm, ring-cbc      id of the key (16), key modifier (16), then as the others
func (r Recipe) seal(dst, key []byte, random io.Reader, plain []byte) ([]byte, bool) {
	switch r.Scheme {
	case RailsGCM, LaravelGCM:
		return sealGCM(dst, key, random, plain, nil)
	case PlugXChaCha:
		return sealXChaCha(dst, key, random, plain)
	case PlugGCM:
		return r.sealWrapped(dst, key, random, plain)
	case RingGCM, RingCBC:
		id := ringID(key)
		return r.sealRing(append(dst, id...), key, random, plain, r.ringLabel(id))
	}
	block, mac, ok := r.blockAndMAC(key)
	if !ok {
		return nil, false
	}
	iv := make([]byte, block.BlockSize())
	if r.Scheme == MachineKeyTold {
		told := sha256.Sum256(plain)
		copy(iv, told[:])
	} else if _, err := io.ReadFull(random, iv); err != nil {
		return nil, false
	}
	start := len(dst)
	dst = encrypt(append(dst, iv...), block, iv, plain)
	return r.authenticate(dst, mac, iv, dst[start+len(iv):]), true
}

// open undoes seal.
func (r Recipe) open(dst, key, sealed []byte) ([]byte, bool) {
	switch r.Scheme {
	case RailsGCM, LaravelGCM:
		return openGCM(dst, key, sealed, nil)
	case PlugXChaCha:
		return openXChaCha(dst, key, sealed)
	case PlugGCM:
		return r.openWrapped(dst, key, sealed)
	case RingGCM, RingCBC:
		id := ringID(key)
		rest, ours := bytes.CutPrefix(sealed, id)
		if !ours {
			return nil, false
		}
		return r.openRing(dst, key, rest, r.ringLabel(id))
	}
	block, mac, ok := r.blockAndMAC(key)
	if !ok {
		return nil, false
	}
	ivSize, tagSize := block.BlockSize(), r.MAC.Size()
	if len(sealed) < 2*ivSize+tagSize {
		return nil, false
	}
	iv, ct, tag := sealed[:ivSize], sealed[ivSize:len(sealed)-tagSize], sealed[len(sealed)-tagSize:]
	if !hmac.Equal(r.authenticate(nil, mac, iv, ct), tag) {
		return nil, false
	}
	return decrypt(dst, block, iv, ct)
}

// blockAndMAC returns the cipher and the key of the tag.
func (r Recipe) blockAndMAC(key []byte) (block cipher.Block, mac []byte, ok bool) {
	var err error
	switch r.Scheme {
	case RailsCBC:
		block, err = aes.NewCipher(key[:32])
		mac = key[32:]
	case LaravelCBC:
		block, err = aes.NewCipher(key)
		mac = key
	case MachineKey, MachineKeyTold, MachineKey3DES:
		first, second, both := split(key)
		if !both {
			return nil, nil, false
		}
		if mac = second; r.Scheme == MachineKey3DES {
			block, err = des.NewTripleDESCipher(first)
		} else {
			block, err = aes.NewCipher(first)
		}
	default:
		return nil, nil, false
	}
	return block, mac, err == nil
}

// authenticate appends the tag over an IV and a ciphertext, in the texts in
// which the framework has them.
func (r Recipe) authenticate(dst, key, iv, ct []byte) []byte {
	mac := hmac.New(r.MAC.constructor(), key)
	text := base64.StdEncoding
	switch r.Scheme {
	case LaravelCBC:
		mac.Write(text.AppendEncode(text.AppendEncode(nil, iv), ct))
	case RailsCBC:
		inner := text.AppendEncode(append(text.AppendEncode(nil, ct), "--"...), iv)
		mac.Write(text.AppendEncode(nil, inner))
	default:
		mac.Write(iv)
		mac.Write(ct)
	}
	return mac.Sum(dst)
}

// encrypt appends plain in CBC mode with the padding of PKCS #7.
func encrypt(dst []byte, block cipher.Block, iv, plain []byte) []byte {
	size := block.BlockSize()
	pad := size - len(plain)%size
	start := len(dst)
	dst = append(dst, plain...)
	for range pad {
		dst = append(dst, byte(pad))
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(dst[start:], dst[start:])
	return dst
}

// decrypt undoes encrypt. The ciphertext was authenticated before.
func decrypt(dst []byte, block cipher.Block, iv, ct []byte) ([]byte, bool) {
	size := block.BlockSize()
	if len(ct) == 0 || len(ct)%size != 0 {
		return nil, false
	}
	start := len(dst)
	dst = append(dst, ct...)
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(dst[start:], dst[start:])
	pad := int(dst[len(dst)-1])
	if pad == 0 || pad > size {
		clear(dst[start:])
		return nil, false
	}
	wrong := byte(0)
	for _, b := range dst[len(dst)-pad:] {
		wrong |= b ^ byte(pad)
	}
	if subtle.ConstantTimeByteEq(wrong, 0) != 1 {
		clear(dst[start:])
		return nil, false
	}
	return dst[:len(dst)-pad], true
}

func newGCM(key []byte) (cipher.AEAD, bool) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, false
	}
	aead, err := cipher.NewGCM(block)
	return aead, err == nil
}

func sealGCM(dst, key []byte, random io.Reader, plain, aad []byte) ([]byte, bool) {
	aead, ok := newGCM(key)
	nonce := make([]byte, 12)
	if _, err := io.ReadFull(random, nonce); err != nil || !ok {
		return nil, false
	}
	return aead.Seal(append(dst, nonce...), nonce, plain, aad), true
}

func openGCM(dst, key, sealed, aad []byte) ([]byte, bool) {
	aead, ok := newGCM(key)
	if !ok || len(sealed) < 12 {
		return nil, false
	}
	out, err := aead.Open(dst, sealed[:12], sealed[12:], aad)
	return out, err == nil
}

const plugAAD = "A128GCM"

// sealXChaCha puts the tag before the ciphertext, as plug_crypto does.
func sealXChaCha(dst, key []byte, random io.Reader, plain []byte) ([]byte, bool) {
	aead, err := chacha20poly1305.NewX(key[:32])
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	if _, errRandom := io.ReadFull(random, nonce); err != nil || errRandom != nil {
		return nil, false
	}
	sealed := aead.Seal(nil, nonce, plain, []byte(plugAAD))
	n := len(sealed) - chacha20poly1305.Overhead
	return append(append(append(dst, nonce...), sealed[n:]...), sealed[:n]...), true
}

func openXChaCha(dst, key, sealed []byte) ([]byte, bool) {
	const nonce, tag = chacha20poly1305.NonceSizeX, chacha20poly1305.Overhead
	if len(sealed) < nonce+tag {
		return nil, false
	}
	aead, err := chacha20poly1305.NewX(key[:32])
	if err != nil {
		return nil, false
	}
	out, err := aead.Open(dst, sealed[:nonce], slices.Concat(sealed[nonce+tag:], sealed[nonce:nonce+tag]), []byte(plugAAD))
	return out, err == nil
}

// sealWrapped is plug_crypto 1.x: a key for the token, wrapped by AES-GCM with
// the signing key as what is bound beside it.
func (r Recipe) sealWrapped(dst, key []byte, random io.Reader, plain []byte) ([]byte, bool) {
	cek := make([]byte, 16)
	if _, err := io.ReadFull(random, cek); err != nil {
		return nil, false
	}
	wrapped, ok := sealGCM(nil, key[:32], random, cek, r.signing(key))
	if !ok {
		return nil, false
	}
	dst = append(append(dst, wrapped[12:]...), wrapped[:12]...)
	return sealGCM(dst, cek, random, plain, []byte(plugAAD))
}

func (r Recipe) openWrapped(dst, key, sealed []byte) ([]byte, bool) {
	const wrapped = 16 + 16 + 12
	if len(sealed) < wrapped {
		return nil, false
	}
	cek, ok := openGCM(nil, key[:32], slices.Concat(sealed[32:wrapped], sealed[:32]), r.signing(key))
	if !ok {
		return nil, false
	}
	return openGCM(dst, cek, sealed[wrapped:], []byte(plugAAD))
}

// signing is the second of two derived keys; nil where there is one alone.
func (r Recipe) signing(key []byte) []byte {
	if r.Salt2 == "" {
		return nil
	}
	return key[r.Size:]
}

// makeJWE makes the parts of a JWE: for A256CBC-HS512 first the thumbprint of
// the key (64 bytes), which the header has; then IV, ciphertext and tag. The
// header is fixed, so that none can be made that says something else.
func (r Recipe) makeJWE(dst, key []byte, random io.Reader, it Item) ([]byte, bool) {
	if len(it.Aside) > 0 {
		return nil, false
	}
	if r.Scheme == JWEGCM {
		return sealGCM(dst, key, random, it.Data, JWEHeader(nil))
	}
	id := jweKeyID(key)
	iv := make([]byte, aes.BlockSize)
	block, err := aes.NewCipher(key[32:])
	if _, errRandom := io.ReadFull(random, iv); err != nil || errRandom != nil {
		return nil, false
	}
	dst = append(append(dst, id...), iv...)
	start := len(dst)
	dst = encrypt(dst, block, iv, it.Data)
	return append(dst, jweTag(key[:32], JWEHeader(id), iv, dst[start:])...), true
}

// JWEHeader is the protected header, as text, that makeJWE binds: with a key id
// that of Auth.js 5, without that of NextAuth 4.
func JWEHeader(id []byte) []byte {
	header := `{"alg":"dir","enc":"A256GCM"}`
	if id != nil {
		header = `{"alg":"dir","enc":"A256CBC-HS512","kid":"` + base64.RawURLEncoding.EncodeToString(id) + `"}`
	}
	return base64.RawURLEncoding.AppendEncode(nil, []byte(header))
}

func (r Recipe) openJWE(dst, key []byte, it Item) ([]byte, bool) {
	if r.Scheme == JWEGCM {
		return openGCM(dst, key, it.Data, it.Aside)
	}
	const iv, tag = aes.BlockSize, 32
	if len(it.Data) < 2*iv+tag {
		return nil, false
	}
	ct := it.Data[iv : len(it.Data)-tag]
	if !hmac.Equal(jweTag(key[:32], it.Aside, it.Data[:iv], ct), it.Data[len(it.Data)-tag:]) {
		return nil, false
	}
	block, err := aes.NewCipher(key[32:])
	if err != nil {
		return nil, false
	}
	return decrypt(dst, block, it.Data[:iv], ct)
}

// jweTag is RFC 7518, 5.2.2.1 for A256CBC-HS512.
func jweTag(key, aad, iv, ct []byte) []byte {
	size := binary.BigEndian.AppendUint64(nil, uint64(len(aad))*8)
	return sum(sha512.New, key, aad, iv, ct, size)[:32]
}
