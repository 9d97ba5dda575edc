package state

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"claviger.dev/internal/recipe"
)

// ASP.NET with machineKey. Digest: sha256 (validation="HMACSHA256"). Cipher:
// "aes", or "3des". Encoding: of the text, "hex" (upper case), "base64",
// "base64url" with or without "token", or "raw".
const (
	// MachineKey.Protect, as bytes in Encoding ("hex"). Purpose:
	// "User.MachineKey.Protect". Purposes: the caller's. Every other purpose of
	// the framework is this format with its name as Purpose; Cipher "aes-told"
	// makes output that the framework caches.
	ASPNETProtect Format = "aspnet.protect"
	// A FormsAuthentication ticket: the payload is a serialised Ticket.
	ASPNETForms Format = "aspnet.forms"
	// __VIEWSTATE. Purposes: "TemplateSourceDirectory: /APP", "Type: PAGE_ASPX"
	// and, where the page sets one, "ViewStateUserKey: ...".
	ASPNETViewState Format = "aspnet.viewstate"
	// OWIN cookies and tokens. Purposes: the three of the middleware; without
	// them those of CookieAuthenticationMiddleware.
	ASPNETOWIN Format = "aspnet.owin"
	// __VIEWSTATE of the modes before Framework45: checked and opened, never
	// made. Modifier: the number of the page and the user's key. Cipher: "none"
	// (default), "aes" or "3des". Digest: sha1, and md5 where nothing is encrypted.
	ASPNETLegacyViewState Format = "aspnet.legacy-viewstate"
)

func aspnet(f Format) codec {
	c := codec{sets: []recipe.Set{recipe.ASPNET}}
	purpose, encoding, purposes := "User.MachineKey.Protect", "hex", []string(nil)
	switch f {
	case ASPNETProtect:
	case ASPNETForms:
		purpose = "FormsAuthentication.Ticket"
	case ASPNETViewState:
		purpose, encoding = "WebForms.HiddenFieldPageStatePersister.ClientState", "base64"
	case ASPNETOWIN:
		encoding = "base64url"
		purposes = []string{"Microsoft.Owin.Security.Cookies.CookieAuthenticationMiddleware", "ApplicationCookie", "v1"}
	case ASPNETLegacyViewState:
		return legacyViewState()
	default:
		return codec{}
	}
	c.recipe = func(p Params) (recipe.Recipe, error) {
		r := recipe.Recipe{Scheme: recipe.MachineKey, Derivation: recipe.Counter, MAC: or(p.Digest, recipe.SHA256), Salt: or(p.Purpose, purpose)}
		switch or(p.Cipher, "aes") {
		case "aes":
		case "3des":
			r.Scheme = recipe.MachineKey3DES
		case "aes-told":
			r.Scheme = recipe.MachineKeyTold
		default:
			return r, errParams
		}
		if p.Purposes == nil {
			p.Purposes = purposes
		}
		r.Purposes = recipe.Purposes(p.Purposes...)
		return r, nil
	}
	c.protect = func(p Params, payload []byte) (making, error) {
		if f == ASPNETForms {
			if _, ok := ParseTicket(payload); !ok {
				return making{}, errPayload
			}
		}
		return making{0, recipe.Item{Data: payload}, func(out []byte) []byte { return netEncode(or(p.Encoding, encoding), out) }}, nil
	}
	c.open = func(p Params, token []byte) (opening, bool) {
		sealed, ok := netDecode(or(p.Encoding, encoding), token)
		return opening{recipe.Item{Data: sealed}, func(out []byte) ([]byte, Facts, bool) {
			if f != ASPNETForms {
				return out, Facts{}, true
			}
			t, ok := ParseTicket(out)
			return out, Facts{Issued: t.Issued, Expires: t.Expires}, ok
		}}, ok
	}
	return c
}

func legacyViewState() codec {
	return codec{
		sets: []recipe.Set{recipe.ASPNETLegacy},
		recipe: func(p Params) (recipe.Recipe, error) {
			r := recipe.Recipe{Scheme: recipe.LegacyMAC, MAC: or(p.Digest, recipe.SHA1)}
			switch or(p.Cipher, "none") {
			case "none":
			case "aes":
				r.Scheme = recipe.LegacyAES
			case "3des":
				r.Scheme = recipe.Legacy3DES
			default:
				return r, errParams
			}
			return r, nil
		},
		open: func(p Params, token []byte) (opening, bool) {
			data, ok := netDecode(or(p.Encoding, "base64"), token)
			return opening{recipe.Item{Data: data, Aside: p.Modifier}, func(out []byte) ([]byte, Facts, bool) { return out, Facts{}, true }}, ok
		},
	}
}

// netEncode writes bytes in the texts that ASP.NET uses. A URL token is base64url
// with the number of padding characters, left out, as a digit at the end.
func netEncode(encoding string, b []byte) []byte {
	switch encoding {
	case "base64":
		return encode(b64, b)
	case "base64url":
		return encode(b64u, b)
	case "token":
		if len(b) == 0 {
			return nil
		}
		return append(encode(b64u, b), '0'+byte((3-len(b)%3)%3))
	case "raw":
		return b
	}
	return bytes.ToUpper(hex.AppendEncode(nil, b))
}

func netDecode(encoding string, text []byte) ([]byte, bool) {
	var enc *base64.Encoding
	switch encoding {
	case "raw":
		return text, true
	case "hex":
		out, err := hex.AppendDecode(nil, text)
		return out, err == nil && bytes.Equal(netEncode(encoding, out), text)
	case "base64":
		enc = b64
	case "base64url":
		enc = b64u
	case "token":
		if len(text) == 0 {
			return nil, false
		}
		out, ok := decode(b64u, text[:len(text)-1])
		return out, ok && bytes.Equal(netEncode(encoding, out), text)
	default:
		return nil, false
	}
	return decode(enc, text)
}

// Ticket is a FormsAuthentication ticket. Times have a resolution of 100 ns.
type Ticket struct {
	Version    byte
	Issued     time.Time
	Expires    time.Time
	Persistent bool
	Name       string
	UserData   string
	Path       string
}

// ticksEpoch is how many units of 100 ns lie between the year 1 and 1970.
const ticksEpoch = 621_355_968_000_000_000

func ticks(t time.Time) uint64 { return uint64(t.Unix()*1e7+int64(t.Nanosecond())/100) + ticksEpoch }

func fromTicks(n uint64) time.Time {
	since := int64(n) - ticksEpoch
	return time.Unix(since/1e7, since%1e7*100).UTC()
}

// Append appends the serialised ticket.
func (t Ticket) Append(dst []byte) []byte {
	dst = append(dst, 1, t.Version)
	dst = append(binary.LittleEndian.AppendUint64(dst, ticks(t.Issued)), 0xfe)
	dst = binary.LittleEndian.AppendUint64(dst, ticks(t.Expires))
	persistent := byte(0)
	if t.Persistent {
		persistent = 1
	}
	dst = append(dst, persistent)
	for _, s := range []string{t.Name, t.UserData, t.Path} {
		units := 0
		for _, r := range s {
			units += utf16.RuneLen(r)
		}
		dst = slices.Grow(binary.AppendUvarint(dst, uint64(units)), 2*units+1)
		for _, r := range s {
			var pair [2]uint16
			for _, u := range utf16.AppendRune(pair[:0], r) {
				dst = binary.LittleEndian.AppendUint16(dst, u)
			}
		}
	}
	return append(dst, 0xff)
}

// ParseTicket reads a serialised ticket, and nothing but one that Append would
// write the same.
func ParseTicket(b []byte) (t Ticket, ok bool) {
	if len(b) < 24 || b[0] != 1 || b[10] != 0xfe || b[19] > 1 {
		return t, false
	}
	issued, expires := binary.LittleEndian.Uint64(b[2:]), binary.LittleEndian.Uint64(b[11:])
	if issued > 1<<62 || expires > 1<<62 {
		return t, false
	}
	t = Ticket{Version: b[1], Issued: fromTicks(issued), Expires: fromTicks(expires), Persistent: b[19] == 1}
	rest := b[20:]
	for _, s := range []*string{&t.Name, &t.UserData, &t.Path} {
		n, used := binary.Uvarint(rest[:min(len(rest), 5)])
		if used <= 0 || n > uint64(len(rest)) || uint64(len(rest)-used) < 2*n {
			return Ticket{}, false
		}
		if *s, ok = decodeUTF16(rest[used : used+int(2*n)]); !ok {
			return Ticket{}, false
		}
		rest = rest[used+int(2*n):]
	}
	if !bytes.Equal(t.Append(make([]byte, 0, len(b))), b) {
		return Ticket{}, false
	}
	return t, true
}

// decodeUTF16 reads an even number of bytes of UTF-16, little-endian, that is
// whole: half a pair is refused.
func decodeUTF16(b []byte) (string, bool) {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i += 2 {
		r := rune(binary.LittleEndian.Uint16(b[i:]))
		if utf16.IsSurrogate(r) {
			if i += 2; i == len(b) {
				return "", false
			}
			if r = utf16.DecodeRune(r, rune(binary.LittleEndian.Uint16(b[i:]))); r == utf8.RuneError {
				return "", false
			}
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out), true
}
