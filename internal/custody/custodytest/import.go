package custodytest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"testing"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
)

// Material returns fresh material of an algorithm in the encoding of imports.
func Material(t testing.TB, a claviger.Algorithm) []byte {
	t.Helper()
	switch a {
	case claviger.ECDSAP256, claviger.ECDSAP384:
		curve := elliptic.P256()
		if a == claviger.ECDSAP384 {
			curve = elliptic.P384()
		}
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	if p, ok := a.RSA(); ok {
		k, err := rsa.GenerateKey(rand.Reader, p.Bits)
		if err != nil {
			t.Fatal(err)
		}
		return x509.MarshalPKCS1PrivateKey(k)
	}
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	return raw
}

func testImport(t *testing.T, c *custody.Client) {
	for _, a := range Algorithms() {
		material := Material(t, a)
		k, err := Import(t, c, a, material)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		if a == claviger.Ed25519 && !bytes.Equal(k.Public, ed25519.NewKeyFromSeed(material)[32:]) {
			t.Error("wrong public key")
		}
		if !a.Asymmetric() {
			continue
		}
		sigs, err := c.Sign(t.Context(), k.Material, [][]byte{[]byte("m")}, false)
		if err != nil || !Verify(a, k.Public, []byte("m"), sigs[0]) {
			t.Errorf("%s: sign with an import: %v", a, err)
		}
		again, err := Import(t, c, a, material)
		if err != nil || again.Fingerprint != k.Fingerprint {
			t.Errorf("%s: the same material again: %v, or another fingerprint", a, err)
		}
	}
}

func testImportStrict(t *testing.T, c *custody.Client) {
	n := elliptic.P256().Params().N
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := func(change func(*rsa.PrivateKey)) []byte {
		k := *key
		k.Primes = append([]*big.Int(nil), key.Primes...)
		change(&k)
		return x509.MarshalPKCS1PrivateKey(&k)
	}
	const rsa2048 = claviger.Algorithm("rsa-2048-pss-sha256")
	for name, test := range map[string]struct {
		algorithm claviger.Algorithm
		material  []byte
	}{
		"ed25519 short":        {claviger.Ed25519, make([]byte, 31)},
		"ed25519 with public":  {claviger.Ed25519, make([]byte, 64)},
		"p256 zero":            {claviger.ECDSAP256, make([]byte, 32)},
		"p256 order":           {claviger.ECDSAP256, n.FillBytes(make([]byte, 32))},
		"p256 short":           {claviger.ECDSAP256, bytes.Repeat([]byte{1}, 31)},
		"p384 of p256":         {claviger.ECDSAP384, bytes.Repeat([]byte{1}, 32)},
		"ml-dsa expanded":      {claviger.MLDSA65, make([]byte, 4032)},
		"hmac short":           {claviger.HMACSHA256, make([]byte, 15)},
		"hmac long":            {claviger.HMACSHA256, make([]byte, 257)},
		"aes-128":              {claviger.AES256GCM, make([]byte, 16)},
		"nothing":              {claviger.AES256GCM, nil},
		"rsa no DER":           {rsa2048, []byte("-----BEGIN RSA PRIVATE KEY-----")},
		"rsa other size":       {"rsa-3072-pss-sha256", der(func(*rsa.PrivateKey) {})},
		"rsa trailing byte":    {rsa2048, append(der(func(*rsa.PrivateKey) {}), 0)},
		"rsa small exponent":   {rsa2048, der(func(k *rsa.PrivateKey) { k.E = 3 })},
		"rsa primes swapped":   {rsa2048, swapped(der(func(*rsa.PrivateKey) {}), key)},
		"rsa other modulus":    {rsa2048, der(func(k *rsa.PrivateKey) { k.N = new(big.Int).Add(k.N, big.NewInt(2)) })},
		"rsa other d":          {rsa2048, der(func(k *rsa.PrivateKey) { k.D = new(big.Int).Add(k.D, big.NewInt(2)) })},
		"rsa of equal numbers": {rsa2048, der(func(k *rsa.PrivateKey) { k.Primes[1] = k.Primes[0]; k.N = new(big.Int).Mul(k.Primes[0], k.Primes[0]) })},
	} {
		if _, err := Import(t, c, test.algorithm, test.material); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// swapped exchanges p for other bytes of the same length.
func swapped(der []byte, k *rsa.PrivateKey) []byte {
	return bytes.Replace(der, k.Primes[0].Bytes(), k.Primes[1].Bytes(), 1)
}

func testOneTime(t *testing.T, c *custody.Client) {
	b := Binding(claviger.AES256GCM, claviger.Imported)
	material := Material(t, b.Algorithm)
	sealed, id := sealTo(t, c, onetime.Import, b, material)
	if _, err := c.Adopt(t.Context(), b, id, sealed[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Adopt(t.Context(), b, id, sealed[0]); claviger.CodeOf(err) != claviger.NotFound {
		t.Errorf("used twice: %v", err)
	}
	sealed, _ = sealTo(t, c, onetime.Import, b, material)
	_, other := sealTo(t, c, onetime.Import, b, material)
	if _, err := c.Adopt(t.Context(), b, other, sealed[0]); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("redirected to another one-time key: %v", err)
	}
	sealed, id = sealTo(t, c, onetime.Import, b, material)
	if _, err := c.Adopt(t.Context(), Binding(b.Algorithm, claviger.Imported), id, sealed[0]); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("redirected to another key: %v", err)
	}
	sealed, id = sealTo(t, c, onetime.Share, frames.Binding{}, material)
	if _, err := c.Adopt(t.Context(), b, id, sealed[0]); claviger.CodeOf(err) != claviger.NotFound {
		t.Errorf("import through a key for shares: %v", err)
	}
	for name, ask := range map[string]struct {
		purpose string
		binding frames.Binding
	}{
		"of no purpose":           {"", b},
		"of unknown purpose":      {"export", b},
		"share with binding":      {onetime.Share, b},
		"import without binding":  {onetime.Import, frames.Binding{}},
		"import called generated": {onetime.Import, Binding(claviger.Ed25519, claviger.Generated)},
	} {
		if _, err := c.OneTimeKey(t.Context(), ask.purpose, ask.binding); err == nil {
			t.Errorf("one-time key %s was made", name)
		}
	}
	for {
		_, err := c.OneTimeKey(t.Context(), onetime.Import, b)
		if err == nil {
			continue
		}
		if claviger.CodeOf(err) != claviger.Exhausted {
			t.Errorf("too many outstanding: %v", err)
		}
		break
	}
}

func testFind(t *testing.T, c *custody.Client) {
	for _, a := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.AES256GCM, "rsa-2048-pkcs1-sha256"} {
		secret := Material(t, a)
		k, err := Import(t, c, a, secret)
		if err != nil {
			t.Fatal(err)
		}
		part, pemType := secret, "PRIVATE KEY"
		if _, ok := a.RSA(); ok {
			parsed, err := x509.ParsePKCS1PrivateKey(secret)
			if err != nil {
				t.Fatal(err)
			}
			part, pemType = parsed.Primes[1].Bytes(), "RSA PRIVATE KEY"
		}
		wrong := bytes.Clone(part)
		wrong[len(wrong)-1] ^= 1
		noise := bytes.Repeat([]byte("some text, "), 500)
		in := func(b []byte) []byte { return append(append(bytes.Clone(noise), b...), noise...) }
		for name, test := range map[string]struct {
			haystack []byte
			want     bool
		}{
			"raw":               {in(part), true},
			"alone":             {part, true},
			"hex":               {in([]byte(hex.EncodeToString(part))), true},
			"upper hex":         {in(bytes.ToUpper([]byte(hex.EncodeToString(part)))), true},
			"base64":            {in([]byte(base64.StdEncoding.EncodeToString(part))), true},
			"base64 url":        {in([]byte(base64.RawURLEncoding.EncodeToString(part))), true},
			"base64 shifted":    {[]byte(base64.StdEncoding.EncodeToString(append([]byte("x"), part...))), true},
			"base64 shifted 2":  {[]byte(base64.URLEncoding.EncodeToString(append(append([]byte("xy"), part...), "more"...))), true},
			"PEM":               {pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: append([]byte("1234567890"), part...)}), true},
			"nothing":           {nil, false},
			"noise":             {noise, false},
			"all but a byte":    {in(part[1:]), false},
			"one bit off":       {in(wrong), false},
			"hex one bit off":   {in([]byte(hex.EncodeToString(wrong))), false},
			"all but a hex":     {in([]byte(hex.EncodeToString(part)[1:])), false},
			"split by noise":    {append(append(bytes.Clone(part[:16]), noise...), part[16:]...), false},
			"beyond a boundary": {append(make([]byte, 1<<20-len(part)), part...), true},
		} {
			got, err := c.Find(t.Context(), k.Material, test.haystack)
			if err != nil || got != test.want {
				t.Errorf("%s, %s: found is %v, want %v (%v)", a, name, got, test.want, err)
			}
		}
	}
}
