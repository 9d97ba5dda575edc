package recipe

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/hmac"
	"crypto/md5"
)

// openLegacy checks view state of the modes before Framework45. Aside is the
// modifier: the page's number, and the user's key where there is one. None of
// these is ever made.
func (r Recipe) openLegacy(dst, pair []byte, it Item) ([]byte, bool) {
	decryption, validation, ok := split(pair)
	n := len(it.Data) - r.MAC.Size()
	if !ok || n < 1 {
		return nil, false
	}
	data, tag := it.Data[:n], it.Data[n:]
	var want []byte
	switch {
	case r.MAC == MD5:
		// The key is written over the modifier, of which only the length is left.
		d := md5.New()
		d.Write(data)
		d.Write(validation)
		d.Write(make([]byte, len(it.Aside)))
		want = d.Sum(nil)
	case r.Scheme == LegacyMAC:
		want = sum(r.MAC.constructor(), validation, data, it.Aside)
	default:
		want = sum(r.MAC.constructor(), validation, data)
	}
	if !hmac.Equal(want, tag) {
		return nil, false
	}
	if r.Scheme == LegacyMAC {
		return append(dst, data...), true
	}
	var block cipher.Block
	var err error
	if r.Scheme == Legacy3DES {
		block, err = des.NewTripleDESCipher(decryption)
	} else {
		block, err = aes.NewCipher(decryption)
	}
	if err != nil {
		return nil, false
	}
	// In place of an IV there is a random text of the key's size before the data.
	plain, ok := decrypt(nil, block, make([]byte, block.BlockSize()), data)
	if !ok || len(plain) < len(decryption)+len(it.Aside) || !bytes.HasSuffix(plain, it.Aside) {
		return nil, false
	}
	return append(dst, plain[len(decryption):len(plain)-len(it.Aside)]...), true
}
