package appsecret

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"

	"claviger.dev"
)

var errCredentials = claviger.Errorf(claviger.Invalid, "the credentials do not open under this key", "give the key of this file by --master-key: config/master.key, or config/credentials/ENVIRONMENT.key")

// readCredentials decrypts Rails credentials: AES-128-GCM, three parts in
// base64, of a String of Marshal that is YAML.
func readCredentials(data, masterKey []byte) ([]candidate, error) {
	key, err := hex.DecodeString(string(bytes.TrimSpace(masterKey)))
	defer clear(key)
	if err != nil || len(key) != 16 {
		return nil, claviger.Errorf(claviger.Invalid, "the master key is not 32 hexadecimal digits", "give config/master.key by --master-key; it is the content of RAILS_MASTER_KEY in a file")
	}
	var parts [3][]byte // ciphertext, nonce, tag
	list := bytes.Split(bytes.TrimSpace(data), []byte("--"))
	if len(list) != len(parts) {
		return nil, claviger.Errorf(claviger.Invalid, "the file is not encrypted as Rails does since 5.2", "give config/credentials.yml.enc")
	}
	for i, text := range list {
		if parts[i], err = base64.StdEncoding.AppendDecode(nil, text); err != nil {
			return nil, errCredentials
		}
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, errCredentials
	}
	aead, err := cipher.NewGCM(block)
	if err != nil || len(parts[1]) != aead.NonceSize() || len(parts[2]) != aead.Overhead() {
		return nil, errCredentials
	}
	plain, err := aead.Open(nil, parts[1], append(parts[0], parts[2]...), nil)
	if err != nil {
		return nil, errCredentials
	}
	defer clear(plain)
	text, ok := unmarshalText(plain)
	if !ok {
		return nil, claviger.Errorf(claviger.Invalid, "the credentials hold something else than a text", "adopt the secret through standard input: rails credentials:show")
	}
	all, err := readYAML(text)
	for i := range all { // lines of what nobody sees
		all[i].line = 0
	}
	return all, err
}
