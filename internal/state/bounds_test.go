package state_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
	"claviger.dev/pubkey"
)

// hostileSize is how long a hostile token is, and hostileMemory what it may
// cost, both in bytes.
const (
	hostileSize   = 64 << 10
	hostileMemory = 1 << 20
)

// repeat returns n bytes of a text over and over.
func repeat(s string, n int) []byte { return []byte(strings.Repeat(s, n/len(s)+1)[:n]) }

// number returns n bytes of text, each time with another number in it.
func number(format string, n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, format, i)
	}
	return b.Bytes()[:n]
}

// noise is what nothing compresses and no parser knows, the same each time.
func noise(n int) []byte {
	var out []byte
	for block := sha256.Sum256(nil); len(out) < n; block = sha256.Sum256(block[:]) {
		out = append(out, block[:]...)
	}
	return out[:n]
}

// bomb is zlib that becomes a thousand times as much.
var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	w, _ := zlib.NewWriterLevel(&b, zlib.BestCompression)
	_, _ = w.Write(make([]byte, 1000*hostileSize))
	_ = w.Close()
	return b.Bytes()
})

// shapes are what hurts parsers, of at most n bytes.
func shapes(n int) map[string][]byte {
	wrap := func(head, body, tail string) []byte {
		return []byte(head + strings.Repeat(body, (n-len(head)-len(tail))/len(body)) + tail)
	}
	half := strings.Repeat("[", n/2) + strings.Repeat("]", n/2)
	return map[string][]byte{
		"letters": repeat("A", n), "zeros": make([]byte, n), "noise": noise(n), "high bytes": repeat("\xff", n), "digits": repeat("9", n),
		"dots": repeat(".", n), "colons": repeat(":", n), "dashes": repeat("-", n), "stars": repeat("*", n), "ampersands": repeat("&", n),
		"padding": repeat("=", n), "equals": repeat("x=", n), "percents": repeat("%41", n), "slashes": repeat("/", n), "tildes": repeat("~", n),
		"line breaks": repeat("A\n", n), "short parts": repeat("A.", n), "short parts, colons": repeat("A:", n), "short parts, dashes": repeat("AA--", n),
		"query": wrap("/x?", "&a=b", ""), "query of names": append([]byte("/x?"), number("a%d=%%25&", n/8)...), "few names": append([]byte("/x?"), number("a%d=b&", min(n, 6500))...),
		"long value": wrap("/x?a=", "%20", ""), "many expiries": wrap("/x?", "&expires=1", ""),
		"arrays": repeat("[", n), "closed arrays": []byte(half), "objects": repeat(`{"a":`, n), "deep member": wrap(`{"alg":`, "[", ""), "deep closed member": []byte(`{"alg":` + half + "}"),
		"quotes": wrap(`{"alg":"`, `\u0041`, `"}`), "quoted control": wrap(`{"kid":"`, `\u0000`, `"}`), "surrogates": wrap(`{"kid":"`, `\ud83d`, `"}`), "slashed": wrap(`{"value":"`, `\/`, `"}`),
		"members": append([]byte(`{"x":0`), number(`,"%x":0`, n-6)...), "same members": wrap(`{"a":0`, `,"a":0`, "}"), "big members": append([]byte(`{"x":0`), number(`,"%0300x":0`, n-6)...),
		"long number": wrap(`{"exp":`, "9", "}"), "long fraction": wrap(`{"exp":0.`, "9", "}"), "exponents": wrap(`{"exp":1e`, "9", "}"), "spaces": wrap(`{"alg":"HS256","exp":1`, " ", "}"),
		"array of numbers": wrap(`{"iat":[1`, ",1", "]}"), "strings": wrap(`{"iat":["a"`, `,"a"`, "]}"),
		"envelope": wrap(`{"_rails":{"message":"`, "AAAA", `","exp":null,"pur":"p"}}`), "envelope, deep": wrap(`{"_rails":{"data":`, "[", ""),
		"envelope, closed": []byte(`{"_rails":{"data":` + half + `,"pur":"p"}}`), "envelope, escaped": wrap(`{"_rails":{"message":"`, `\u0041`, `","exp":null,"pur":null}}`),
		"envelope, purpose": wrap(`{"_rails":{"data":1,"pur":"`, `\u003c`, `"}}`), "envelope, objects": wrap(`{"_rails":{"data":`, `{"a":`, ""), "envelope, members": wrap(`{"_rails":{"message":"","a":1`, `,"pur":"a"`, "}}"),
		"envelope, purpose, message": wrap(`{"_rails":{"message":"","exp":null,"pur":"`, `\u003c`, `"}}`), "envelope, raw purpose": wrap(`{"_rails":{"message":"","exp":null,"pur":"`, "\xff", `"}}`),
		"marshal arrays": wrap("\x04\x08", "[\x06", ""), "marshal hash": wrap("\x04\x08{\x03\xff\xff\x00", "i\x06i\x06", ""), "PHP arrays": repeat("a:1:{i:0;", n), "PHP object": wrap(`O:9999:"`, "a", ""),
		"terms": wrap("\x83h\x03", "h\xff", ""), "term lists": wrap("\x83h\x03", "l\x00\x00\x00\x01", ""), "term atoms": wrap("\x83h\x03", "w\x00", ""), "term nils": wrap("\x83h\x03l\x00\x00\xff\x00", "j", ""),
		"ticket": wrap("\x01\x02\x00\x00\x00\x00\x00\x00\x00\x08\xfe\x00\x00\x00\x00\x00\x00\x00\x08\x00\x80\xe0\x01", "a\x00", "\x00\x00\xff"), "ring": wrap("\x09\xf0\xc9\xf0", "\x00", ""),
		"ticket, lone": wrap("\x01\x02\x00\x00\x00\x00\x00\x00\x00\x08\xfe\x00\x00\x00\x00\x00\x00\x00\x08\x00\x80\xe0\x01", "\x00\xd8", "\x00\x00\xff"),
		"bomb":         bomb()[:min(n, len(bomb()))], "cookies": repeat("session=e30=; session.sig=AAAA; ", n), "laravel": laravel(n, "A"), "laravel, slashes": laravel(n, "/"),
	}
}

// laravel is the JSON of an encrypted value, n bytes.
func laravel(n int, letter string) []byte {
	head, tail := `{"iv":"AAAAAAAAAAAAAAAAAAAAAA==","value":"`, `","mac":"`+strings.Repeat("0", 64)+`","tag":""}`
	return []byte(head + string(repeat(letter, (n-len(head)-len(tail))/4*4)) + tail)
}

// dresses put a shape where a format's parser gets at it. over is how many
// bytes more there are for each of the shape.
var dresses = map[string]struct {
	over float64
	put  func(shape []byte) []byte
}{
	"as it is":   {1, func(b []byte) []byte { return b }},
	"hex":        {2, func(b []byte) []byte { return hex.AppendEncode(nil, b) }},
	"HEX":        {2, func(b []byte) []byte { return bytes.ToUpper(hex.AppendEncode(nil, b)) }},
	"base64":     {4.0 / 3, func(b []byte) []byte { return in64(base64.StdEncoding, b) }},
	"base64url":  {4.0 / 3, func(b []byte) []byte { return in64(base64.RawURLEncoding, b) }},
	"URL token":  {4.0 / 3, func(b []byte) []byte { return append(in64(base64.RawURLEncoding, b), '0'+byte((3-len(b)%3)%3)) }},
	"signed":     {1, func(b []byte) []byte { return join(b, ":1zzzzz:AAAA") }},
	"packed":     {4.0 / 3, func(b []byte) []byte { return join(".", in64(base64.RawURLEncoding, b), ":1zzzzz:AAAA") }},
	"flask":      {4.0 / 3, func(b []byte) []byte { return join(".", in64(base64.RawURLEncoding, b), ".aOhJAA.AAAA") }},
	"express":    {1, func(b []byte) []byte { return join("s:", b, ".AAAA") }},
	"rails":      {4.0 / 3, func(b []byte) []byte { return join(in64(base64.StdEncoding, b), "--0000") }},
	"rails, URL": {4.0 / 3, func(b []byte) []byte { return join(in64(base64.RawURLEncoding, b), "--0000") }},
	"rails, GCM": {4.0 / 3, func(b []byte) []byte {
		return join(in64(base64.StdEncoding, b), "--AAAAAAAAAAAAAAAA--AAAAAAAAAAAAAAAAAAAAAA==")
	}},
	"rails, CBC": {16.0 / 9, func(b []byte) []byte {
		return join(in64(base64.StdEncoding, join(in64(base64.StdEncoding, b), "--AAAAAAAAAAAAAAAAAAAAAA==")), "--", strings.Repeat("0", 40))
	}},
	"paseto":     {4.0 / 3, func(b []byte) []byte { return join("v4.public.", in64(base64.RawURLEncoding, b)) }},
	"JWT header": {4.0 / 3, func(b []byte) []byte { return join(in64(base64.RawURLEncoding, b), ".e30.AAAA") }},
	"JWT claims": {4.0 / 3, func(b []byte) []byte { return join("eyJhbGciOiJIUzI1NiJ9.", in64(base64.RawURLEncoding, b), ".AAAA") }},
	"plug":       {4.0 / 3, func(b []byte) []byte { return join("SFMyNTY.", in64(base64.RawURLEncoding, b), ".AAAA") }},
	"plug, XCP":  {4.0 / 3, func(b []byte) []byte { return join("XCP.", in64(base64.RawURLEncoding, b)) }},
	"plug, GCM": {4.0 / 3, func(b []byte) []byte {
		return join("QTEyOEdDTQ.", strings.Repeat("A", 59), ".AAAAAAAAAAAAAAAA.", in64(base64.RawURLEncoding, b), ".AAAAAAAAAAAAAAAAAAAAAA")
	}},
	"JWE": {4.0 / 3, func(b []byte) []byte {
		return join("eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..AAAAAAAAAAAAAAAA.", in64(base64.RawURLEncoding, b), ".AAAAAAAAAAAAAAAAAAAAAA")
	}},
	"JWE, CBC": {4.0 / 3, func(b []byte) []byte {
		return join(recipe.JWEHeader(make([]byte, 64)), "..AAAAAAAAAAAAAAAAAAAAAA.", in64(base64.RawURLEncoding, b), ".", strings.Repeat("A", 43))
	}},
	"JWE header": {4.0 / 3, func(b []byte) []byte {
		return join(in64(base64.RawURLEncoding, b[:min(len(b), 3000)]), "..AAAAAAAAAAAAAAAA.", in64(base64.RawURLEncoding, b[:max(0, len(b)-3000)]), ".AAAAAAAAAAAAAAAAAAAAAA")
	}},
	"iron session": {4.0 / 3, func(b []byte) []byte { return join(ironed(b), "~2") }},
	"iron":         {4.0 / 3, ironed},
	"session":      {4.0 / 3, func(b []byte) []byte { return join("name=", in64(base64.StdEncoding, b), "; name.sig=AAAA") }},
	"laravel URL":  {1, func(b []byte) []byte { return join(b, "&signature=00") }},
	"symfony URI":  {1, func(b []byte) []byte { return join(b, "&name=AAAA") }},
	"remember me": {4.0 / 3, func(b []byte) []byte {
		return join("C:", bytes.ReplaceAll(in64(base64.StdEncoding, b), []byte("="), []byte("~")), ":1900000000:", strings.Repeat("A", 43), "~", properties())
	}},
}

func ironed(b []byte) []byte {
	return join("Fe26.2**", strings.Repeat("0", 64), "*AAAAAAAAAAAAAAAAAAAAAA*", in64(base64.RawURLEncoding, b), "**", strings.Repeat("0", 64), "*", strings.Repeat("A", 43))
}

// properties is what Symfony puts for the properties of params.
func properties() string {
	sum := sha256.Sum256([]byte(":YQ==:Yg=="))
	return strings.NewReplacer("+", "-", "/", "_", "=", "~").Replace(base64.StdEncoding.EncodeToString(sum[:]))
}

func in64(enc *base64.Encoding, b []byte) []byte { return enc.AppendEncode(nil, b) }

// join puts texts and bytes together.
func join(parts ...any) []byte {
	var out []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			out = append(out, p...)
		case []byte:
			out = append(out, p...)
		}
	}
	return out
}

// dressed says in which dresses a format's parser is reached, and under which
// parameters it has another parser.
func dressed(f state.Format) (in []string, all []state.Params) {
	var ciphers, encodings []string
	switch f {
	case state.DjangoSigner, state.DjangoTimestamp, state.DjangoCookie, state.DjangoDumps, state.DjangoSession, state.DjangoCookieDumps:
		in = []string{"signed", "packed"}
	case state.ItsdangerousSigner, state.ItsdangerousTimestamp, state.ItsdangerousURLSafe, state.ItsdangerousTimed, state.FlaskSession:
		in = []string{"flask"}
	case state.DjangoReset, state.DjangoHMAC:
		in = []string{"hex"}
	case state.RailsVerifier, state.RailsSignedCookie:
		in, encodings = []string{"rails", "rails, URL"}, []string{"base64url", "base64url-padded"}
	case state.RailsEncrypted, state.RailsEncryptedCookie:
		in, encodings = []string{"rails, GCM"}, []string{"base64url", "base64url-padded"}
	case state.RailsCBC, state.RailsCBCCookie:
		in = []string{"rails, CBC"}
	case state.LaravelEncrypted:
		in, ciphers = []string{"base64"}, []string{"gcm"}
	case state.LaravelURL:
		in = []string{"laravel URL"}
	case state.LaravelClosure, state.SymfonyHash, state.SymfonySignature, state.ASPNETLegacyViewState:
		in, encodings = []string{"base64", "base64url"}, []string{"base64url"}
	case state.CookieSignature, state.ExpressCookie:
		in = []string{"express"}
	case state.KeygripSignature:
		in, encodings = []string{"base64", "base64url", "hex"}, []string{"hex", "base64"}
	case state.CookieSession:
		in = []string{"session"}
	case state.Iron:
		in = []string{"iron"}
	case state.IronSession:
		in = []string{"iron session"}
	case state.NextAuth, state.AuthJS:
		in = []string{"JWE", "JWE, CBC", "JWE header"}
	case state.JWT:
		in = []string{"JWT header", "JWT claims"}
	case state.PlugVerifier, state.PlugToken:
		in = []string{"plug"}
	case state.PlugEncrypted, state.PlugEncryptedToken:
		in, ciphers = []string{"plug, XCP", "plug, GCM"}, []string{"gcm"}
	case state.SymfonyURI:
		in = []string{"symfony URI"}
	case state.SymfonyRemember:
		in = []string{"remember me"}
	case state.ASPNETProtect, state.ASPNETForms, state.ASPNETViewState, state.ASPNETOWIN, state.DataProtection:
		in, encodings = []string{"HEX", "base64", "base64url", "URL token"}, []string{"hex", "base64", "base64url", "token", "raw"}
	}
	p := params()
	if f == state.Iron || f == state.IronSession {
		p.KeyID = ""
	}
	all = []state.Params{p}
	for _, cipher := range ciphers {
		p := p
		p.Cipher = cipher
		all = append(all, p)
	}
	for _, encoding := range encodings {
		p := p
		p.Encoding = encoding
		all = append(all, p)
	}
	return append(in, "as it is"), all
}

// hostile returns every shape in a dress, each at most hostileSize bytes.
func hostile(t testing.TB, dress string) map[string][]byte {
	d, ok := dresses[dress]
	if !ok {
		t.Fatalf("there is no dress %q", dress)
	}
	out := shapes(int(float64(hostileSize-400)/d.over) / 12 * 12)
	for shape, b := range out {
		if out[shape] = d.put(b); len(out[shape]) > hostileSize {
			t.Fatalf("%s, %s: %d bytes", shape, dress, len(out[shape]))
		}
	}
	return out
}

// counting finds everything right, and counts what a parser asks of custody.
type counting struct {
	gullible
	runs, bytes int
}

func (c *counting) Run(ctx context.Context, r recipe.Recipe, make bool, items []recipe.Item) ([]recipe.Result, error) {
	c.runs++
	for _, it := range items {
		c.bytes += len(it.Data) + len(it.Aside)
	}
	return c.gullible.Run(ctx, r, make, items)
}

// TestBounds gives every format 64 KiB of what is meant to hurt, and bounds
// what it costs: bytes and objects of memory, and bytes that custody sees. That
// what is meant to reach a parser does is held against it too.
func TestBounds(t *testing.T) {
	cache := map[string]map[string][]byte{}
	for _, f := range state.Formats() {
		in, all := dressed(f)
		reached := false
		for _, dress := range in {
			if cache[dress] == nil {
				cache[dress] = hostile(t, dress)
			}
			for shape, token := range cache[dress] {
				if slowed && len(shape)%5 > 0 {
					continue
				}
				for _, p := range all {
					u := &counting{}
					bytes, objects, err := cost(t, u, f, p, token)
					if err != nil && err != state.ErrToken {
						t.Errorf("%s, %s, %s: %v", f, shape, dress, err)
					}
					if bytes > hostileMemory || objects > 4096 || u.runs > 1 || u.bytes > hostileSize+1024 {
						t.Errorf("%s%s%s, %s, %s: %d KiB in %d objects, custody was asked %d times with %d bytes",
							f, p.Cipher, p.Encoding, shape, dress, bytes>>10, objects, u.runs, u.bytes)
					}
					reached = reached || u.bytes > hostileSize/4
				}
			}
		}
		if detached := f == state.DjangoReset || f == state.SymfonySignature; !reached && !detached && !slowed {
			t.Errorf("%s: nothing long came as far as custody", f)
		}
	}
}

// cost returns the bytes and the objects that a token takes.
func cost(t testing.TB, u state.User, f state.Format, p state.Params, token []byte) (bytes, objects uint64, err error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err = state.Unprotect(t.Context(), u, f, p, token)
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, after.Mallocs - before.Mallocs, err
}

// TestNativeBounds has what public keys alone check, with as many keys as a
// key has versions in a grace.
func TestNativeBounds(t *testing.T) {
	s := newSigner(t, claviger.Ed25519)
	keys := slices.Repeat([]pubkey.Key{s.public}, 8)
	for _, dress := range []string{"as it is", "JWT header", "JWT claims", "paseto"} {
		for shape, token := range hostile(t, dress) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := state.VerifyJWT(keys, token)
			_, _, err2 := state.VerifyPASETO(keys, token, nil)
			runtime.ReadMemStats(&after)
			if bytes, objects := after.TotalAlloc-before.TotalAlloc, after.Mallocs-before.Mallocs; bytes > hostileMemory || objects > 4096 {
				t.Errorf("%s, %s: %d KiB in %d objects", shape, dress, bytes>>10, objects)
			}
			if err != state.ErrToken || err2 != state.ErrToken {
				t.Errorf("%s, %s: %v, %v", shape, dress, err, err2)
			}
		}
	}
}

// BenchmarkHostile is what the dearest token costs in each format: it looks for
// that among those of TestBounds, and names it.
func BenchmarkHostile(b *testing.B) {
	cache := map[string]map[string][]byte{}
	for _, f := range state.Formats() {
		var name string
		var token []byte
		var params state.Params
		dearest := time.Duration(0)
		in, all := dressed(f)
		for _, dress := range in {
			if cache[dress] == nil {
				cache[dress] = hostile(b, dress)
			}
			for shape, text := range cache[dress] {
				for _, p := range all {
					least := time.Hour
					for range 3 {
						start := time.Now()
						_, _, _ = state.Unprotect(b.Context(), gullible{}, f, p, text)
						least = min(least, time.Since(start))
					}
					if least > dearest {
						name, token, params, dearest = strings.ReplaceAll(shape+", "+dress, " ", "-"), text, p, least
					}
				}
			}
		}
		b.Run(string(f)+"/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = state.Unprotect(b.Context(), gullible{}, f, params, token)
			}
		})
	}
}
