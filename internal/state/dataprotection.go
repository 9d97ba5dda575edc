package state

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"claviger.dev/internal/recipe"
)

// DataProtection is a payload of ASP.NET Core Data Protection. Purposes: the chain of purposes, from the
// application's name on. Cipher: "cbc" (AES-256-CBC with HMACSHA256, the
// default) or "gcm". Size: of the AES key, 32. Digest: sha256 or sha512.
// Encoding: "base64url", or "raw".
const DataProtection Format = "dataprotection"

const dpMagic = "\x09\xf0\xc9\xf0"

func dataProtection(f Format) codec {
	if f != DataProtection {
		return codec{}
	}
	return codec{
		sets: []recipe.Set{recipe.DataProtection},
		recipe: func(p Params) (recipe.Recipe, error) {
			r := recipe.Recipe{Scheme: recipe.RingCBC, Derivation: recipe.Counter, MAC: or(p.Digest, recipe.SHA256), Purposes: recipe.Purposes(p.Purposes...), Size: or(p.Size, 32)}
			switch or(p.Cipher, "cbc") {
			case "cbc":
			case "gcm":
				r.Scheme, r.MAC = recipe.RingGCM, ""
			default:
				return r, errParams
			}
			return r, nil
		},
		protect: func(p Params, payload []byte) (making, error) {
			return making{0, recipe.Item{Data: payload}, func(out []byte) []byte {
				return netEncode(or(p.Encoding, "base64url"), append([]byte(dpMagic), out...))
			}}, nil
		},
		open: func(p Params, token []byte) (opening, bool) {
			raw, ok := netDecode(or(p.Encoding, "base64url"), token)
			sealed, is := bytes.CutPrefix(raw, []byte(dpMagic))
			if !ok || !is || len(sealed) < 16 {
				return opening{}, false
			}
			f := Facts{KeyID: FormatGUID(sealed[:16])}
			return opening{recipe.Item{Data: sealed}, func(out []byte) ([]byte, Facts, bool) { return out, f, true }}, true
		},
	}
}

// KeyIDOf returns the GUID of the key that a Data Protection payload names, in
// base64url. It is in clear, so that no key is needed to know whose it is.
func KeyIDOf(token []byte) (string, bool) {
	raw, ok := decode(b64u, token[:min(len(token), 28)/4*4])
	raw, is := bytes.CutPrefix(raw, []byte(dpMagic))
	if !ok || !is || len(raw) < 16 {
		return "", false
	}
	return FormatGUID(raw[:16]), true
}

// ParseGUID returns the bytes of a GUID as .NET has them: its first three
// groups little-endian.
func ParseGUID(s string) ([]byte, bool) {
	groups := strings.Split(s, "-")
	if len(s) != 36 || len(groups) != 5 {
		return nil, false
	}
	b, err := hex.DecodeString(strings.Join(groups, ""))
	if err != nil || len(b) != 16 {
		return nil, false
	}
	swap(b)
	return b, FormatGUID(b) == strings.ToLower(s)
}

// FormatGUID writes the 16 bytes of a GUID, as .NET has them, as text.
func FormatGUID(b []byte) string {
	b = bytes.Clone(b)
	swap(b)
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func swap(b []byte) {
	binary.LittleEndian.PutUint32(b, binary.BigEndian.Uint32(b))
	binary.LittleEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:]))
	binary.LittleEndian.PutUint16(b[6:], binary.BigEndian.Uint16(b[6:]))
}
