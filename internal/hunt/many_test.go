package hunt_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/big"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// TestManyOfAKind hunts for few keys of a kind and for many, which are told in
// different ways, and finds each in each of its encodings.
func TestManyOfAKind(t *testing.T) {
	t.Parallel()
	for _, alg := range algorithms() {
		for _, count := range []int{3, 20} {
			t.Run(fmt.Sprint(alg, count), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				var keys []hunt.Key
				want := map[string]bool{}
				for i := range count {
					if alg == rsa2048 && i > 0 {
						keys = append(keys, moduli(t, count)...) // one private key of them is enough
						break
					}
					s := newSecret(t, alg)
					s.Name = strconv.Itoa(i)
					keys = append(keys, s.Key)
					little := reversed(s.raw)
					if alg == claviger.Ed25519 || alg == claviger.MLDSA65 {
						little = s.raw // seeds are no numbers
					}
					for form, data := range map[string][]byte{"raw": s.raw, "little": little, "hex": []byte(hex.EncodeToString(s.raw)), "base64": []byte(base64.StdEncoding.EncodeToString(s.raw))} {
						write(t, dir, s.Name+" "+form, append(bytes.Repeat([]byte("ordinary "), 8), data...))
						want[s.Name+" "+form] = true
					}
				}
				for _, f := range run(t, hunt.Config{Keys: keys}, hunt.Target{Path: dir}).Findings {
					name := filepath.Base(f.File)
					if !strings.HasPrefix(name, f.Key+" ") {
						t.Errorf("%+v", f)
					}
					delete(want, name)
				}
				if len(want) > 0 {
					t.Errorf("not found: %v", want)
				}
			})
		}
	}
}

// moduli are keys whose moduli are random numbers: enough of them that they are
// not all divided by every window.
func moduli(t *testing.T, count int) (out []hunt.Key) {
	t.Helper()
	for i := range 4 * count {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 2046))
		if err != nil {
			t.Fatal(err)
		}
		n.SetBit(n.SetBit(n, 2047, 1), 0, 1)
		public, err := pubkey.FromStd(rsa2048, &rsa.PublicKey{N: n, E: 65537})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, hunt.Key{Name: fmt.Sprint("modulus", i), Public: public})
	}
	return out
}

// TestTakenUpLate finds a key within base64 that seems to begin some characters
// earlier than it does, as where a page's number stands before it.
func TestTakenUpLate(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.Ed25519)
	dir := t.TempDir()
	prose := strings.Repeat("it is said that keys are kept here, ", 100)
	text := base64.StdEncoding.EncodeToString([]byte(prose[:2400] + string(s.raw) + prose))
	for _, before := range []string{"", "x", "xy", "xyz"} {
		write(t, dir, "after "+before, []byte("\x00\x00\x18"+before+text))
	}
	if found := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: dir}).Findings; len(found) != 4 {
		t.Errorf("found %+v", found)
	}
}
