package keyd

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

// stored wraps material as the server keeps it.
func stored(t testing.TB, p *Process, a claviger.Algorithm, secret []byte) frames.Stored {
	t.Helper()
	b := frames.Binding{KeyID: claviger.NewID(time.Now()), Version: 1, Algorithm: a, Recipe: claviger.PlainRecipe, Origin: claviger.Generated}
	made, err := p.finish(p.root.Load(), b, secret)
	if err != nil {
		t.Fatal(err)
	}
	return frames.Stored{Binding: b, Blob: made.Blob, Fingerprint: made.Fingerprint}
}

// texts are the places in which a secret may stand, with the offset at which it
// is to be found and the name of the encoding.
func texts(secret []byte) map[string]struct {
	text   string
	offset int
	name   string
} {
	type place = struct {
		text   string
		offset int
		name   string
	}
	x, b64 := hex.EncodeToString(secret), base64.StdEncoding.EncodeToString
	all := map[string]place{
		"raw":       {string(secret), 0, "raw"},
		"hex":       {x, 0, "hex"},
		"upper hex": {strings.ToUpper(x), 0, "hex"},
		"hex lines": {x[:20] + "\r\n  " + x[20:], 0, "hex"},
	}
	for shift := range 3 {
		padded := append(bytes.Repeat([]byte{0xa5}, shift), secret...)
		at := 0
		if shift > 0 {
			at = shift + 1
		}
		text := b64(padded)
		all[fmt.Sprint("base64 ", shift)] = place{text, at, "base64"}
		all[fmt.Sprint("base64 url ", shift)] = place{base64.RawURLEncoding.EncodeToString(padded), at, "base64"}
		all[fmt.Sprint("base64 more ", shift)] = place{b64(append(padded, "more"...)), at, "base64"}
		all[fmt.Sprint("base64 lines ", shift)] = place{text[:16] + "\n" + text[16:], at, "base64"}
	}
	return all
}

func TestSearch(t *testing.T) {
	t.Parallel()
	p := rootedProcess(t)
	var items []frames.Stored
	var secrets [][]byte
	for _, a := range []claviger.Algorithm{claviger.AES256GCM, claviger.HMACSHA256, claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, claviger.MLDSA65, "rsa-2048-pss-sha256"} {
		secret, err := fresh(a)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, stored(t, p, a, bytes.Clone(secret)))
		if _, ok := a.RSA(); ok {
			k, err := decodeRSA(secret)
			if err != nil {
				t.Fatal(err)
			}
			secret = k.Primes[1].Bytes()
		}
		secrets = append(secrets, secret)
	}
	for _, n := range []int{16, 64, 256} { // imported codes may be of other sizes
		secret := make([]byte, n)
		_, _ = rand.Read(secret)
		items, secrets = append(items, stored(t, p, claviger.HMACSHA512, secret)), append(secrets, secret)
	}
	ask := func(haystack string) []frames.Hit {
		t.Helper()
		resp, err := p.search(&frames.SearchRequest{Items: items, Haystack: []byte(haystack)})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Found
	}
	const before, after = "key: \"", "\", and so on"
	for i, secret := range secrets {
		for name, place := range texts(secret) {
			want := []frames.Hit{{Item: uint32(i), Offset: uint32(len(before) + place.offset), Encoding: place.name}}
			if diff := cmp.Diff(want, ask(before+place.text+after)); diff != "" {
				t.Errorf("%s of %s (-want +got):\n%s", name, items[i].Binding.Algorithm, diff)
			}
			if got := ask(place.text); len(got) != 1 {
				t.Errorf("%s of %s alone: %+v", name, items[i].Binding.Algorithm, got)
			}
		}
		for at := range secret {
			near := bytes.Clone(secret)
			near[at] ^= 1 << (at % 8)
			if got := ask(string(near) + hex.EncodeToString(near) + " " + base64.StdEncoding.EncodeToString(near)); len(got) > 0 {
				t.Fatalf("a bit off at %d: %+v", at, got)
			}
			if at > 40 {
				break
			}
		}
		// The neighbours must not happen to be what was cut.
		first, last := secret[0], secret[len(secret)-1]
		cut := string(secret[:len(secret)-1]) + string([]byte{^last}) + "z" + hex.EncodeToString(secret)[1:]
		if got := ask(cut + string([]byte{^first}) + string(secret[1:])); len(got) > 0 {
			t.Errorf("all but a byte: %+v", got)
		}
	}
	var all strings.Builder
	for _, secret := range secrets {
		all.Write(secret)
	}
	if got := ask(all.String()); len(got) != len(secrets) {
		t.Errorf("all at once: %d of %d", len(got), len(secrets))
	}
	if got := ask(""); len(got) > 0 {
		t.Errorf("in nothing: %+v", got)
	}
}

// wide writes text in UTF-16.
func wide(text string, order binary.AppendByteOrder) string {
	var out []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		out = order.AppendUint16(out, unit)
	}
	return string(out)
}

// TestSearchWide looks for secrets in files of UTF-16, in either byte order, as
// the text that they are and as what they are written in.
func TestSearchWide(t *testing.T) {
	t.Parallel()
	p := rootedProcess(t)
	random := make([]byte, 48)
	_, _ = rand.Read(random)
	random[0] = 0xff // no text
	for name, secret := range map[string]string{
		"ASCII": "mk-test-secret-0001-not-a-real-one", "text": "schl\u00fcssel-\u20ac-\U0001f511-0001-not-real", "bytes": string(random),
	} {
		item := stored(t, p, claviger.HMACSHA256, []byte(secret))
		x := hex.EncodeToString([]byte(secret))
		spellings := map[string]string{
			"hex": x, "upper hex": strings.ToUpper(x), "hex lines": x[:30] + "\r\n\t" + x[30:],
			"base64": base64.StdEncoding.EncodeToString([]byte(secret)), "base64 url": base64.RawURLEncoding.EncodeToString([]byte(secret)),
		}
		if name != "bytes" {
			spellings["verbatim"] = secret
		}
		for spelling, text := range spellings {
			for order, bytes := range map[string]binary.AppendByteOrder{"little": binary.LittleEndian, "big": binary.BigEndian} {
				const before = "<machineKey key=\""
				ask := func(text string) []frames.Hit {
					t.Helper()
					resp, err := p.search(&frames.SearchRequest{Items: []frames.Stored{item}, Haystack: []byte(wide(before+text+"\" />", bytes))})
					if err != nil {
						t.Fatal(err)
					}
					return resp.Found
				}
				hits := ask(text)
				if len(hits) != 1 || int(hits[0].Offset)/2 != len(before) {
					t.Errorf("%s as %s, %s-endian: %+v", name, spelling, order, hits)
				}
				// Less than all of it, and another: nothing.
				half := len(text) / 2
				for !utf8.RuneStart(text[half]) {
					half++
				}
				if got := ask(text[:half] + "!" + text[half+1:]); utf8.RuneStart(text[half+1]) && len(got) > 0 {
					t.Errorf("%s as %s, %s-endian, with a character changed: %+v", name, spelling, order, got)
				}
			}
		}
	}
}

// TestSearchIsWhole checks that nothing is left out silently, and the bound on
// the answer.
func TestSearchIsWhole(t *testing.T) {
	t.Parallel()
	p := rootedProcess(t)
	secret := make([]byte, 16)
	_, _ = rand.Read(secret)
	good := stored(t, p, claviger.HMACSHA256, secret)
	for name, change := range map[string]func(*frames.Stored){
		"blob":        func(s *frames.Stored) { s.Blob = bytes.Clone(s.Blob); s.Blob[len(s.Blob)-1] ^= 1 },
		"version":     func(s *frames.Stored) { s.Binding.Version++ },
		"fingerprint": func(s *frames.Stored) { s.Fingerprint[0] ^= 1 },
	} {
		bad := good
		change(&bad)
		if _, err := p.search(&frames.SearchRequest{Items: []frames.Stored{good, bad}, Haystack: secret}); !errors.Is(err, claviger.CodeOf(errBlob)) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	resp, err := p.search(&frames.SearchRequest{Items: []frames.Stored{good, good}, Haystack: bytes.Repeat(secret, 5000)})
	if err != nil || len(resp.Found) != maxHits {
		t.Errorf("%d hits, %v", len(resp.Found), err)
	}
	// What is found many times hides no other, wherever that stands.
	other := make([]byte, 16)
	_, _ = rand.Read(other)
	for name, text := range map[string]string{"raw": string(other), "hex": hex.EncodeToString(other)} {
		resp, err := p.search(&frames.SearchRequest{Items: []frames.Stored{good, stored(t, p, claviger.HMACSHA256, other)}, Haystack: append(bytes.Repeat(secret, 5000), text...)})
		if err != nil || len(resp.Found) != maxHits || !slices.Contains(resp.Found, frames.Hit{Item: 1, Offset: 16 * 5000, Encoding: name}) {
			t.Errorf("the other one, %s, is not among %d hits, %v", name, len(resp.Found), err)
		}
	}
}

// contains looks for one needle by eachMatch.
func contains(haystack, text []byte) (found bool) {
	eachMatch(haystack, []needle{{text, 7}}, func(int) bool { return found }, func(item, at int) {
		found = item == 7 && bytes.Equal(haystack[at:at+len(text)], text)
	})
	return found
}

func TestContains(t *testing.T) {
	t.Parallel()
	needle := []byte("0123456789abcdef")
	for at := range 40 {
		hay := bytes.Repeat([]byte{'.'}, 40+len(needle))
		copy(hay[at:], needle)
		if !contains(hay, needle) {
			t.Errorf("not found at %d", at)
		}
		hay[at+5] ^= 1
		if contains(hay, needle) {
			t.Errorf("found at %d with a bit flipped", at)
		}
	}
	if contains(nil, needle) || contains(needle[1:], needle) || contains(needle, nil) {
		t.Error("found in less than itself, or nothing was found")
	}
}

// FuzzContains compares with bytes.Contains.
func FuzzContains(f *testing.F) {
	f.Add([]byte("haystack"), []byte("st"))
	f.Add([]byte{0, 0, 0, 0, 1}, []byte{0, 0, 1})
	f.Fuzz(func(t *testing.T, haystack, needle []byte) {
		want := len(needle) > 0 && bytes.Contains(haystack, needle)
		if got := contains(haystack, needle); got != want {
			t.Errorf("contains is %v, want %v", got, want)
		}
	})
}

// BenchmarkSearch searches 1 MiB for 1000 keys.
func BenchmarkSearch(b *testing.B) {
	p := rootedProcess(b)
	var items []frames.Stored
	for range frames.MaxItems {
		secret := make([]byte, 32)
		_, _ = rand.Read(secret)
		items = append(items, stored(b, p, claviger.AES256GCM, secret))
	}
	random := make([]byte, frames.MaxInput)
	source := mrand.NewChaCha8([32]byte{1})
	_, _ = source.Read(random)
	for name, haystack := range map[string][]byte{
		"random": random, "text": bytes.Repeat([]byte("a line of a log, with a=1\n"), frames.MaxInput/26), "base64": []byte(base64.StdEncoding.EncodeToString(random[:frames.MaxInput*3/4])),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(haystack)))
			for b.Loop() {
				if resp, err := p.search(&frames.SearchRequest{Items: items, Haystack: haystack}); err != nil || len(resp.Found) > 0 {
					b.Fatal(resp, err)
				}
			}
		})
	}
}
