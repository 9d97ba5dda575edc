package recipe_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	claviger "claviger.dev"
	"claviger.dev/internal/recipe"
)

// examples has recipes of each set, one for each of its schemes at least.
func examples() map[recipe.Set][]recipe.Recipe {
	pbkdf2 := func(r recipe.Recipe) recipe.Recipe {
		r.Derivation, r.Hash, r.Salt, r.Iterations = recipe.PBKDF2, recipe.SHA256, "salt", 1000
		return r
	}
	concat := recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: recipe.SHA1, MAC: recipe.SHA1, Salt: "s"}
	label, half := concat, concat
	label.Derivation, half.Scheme = recipe.Label, recipe.HalfTag
	mac := func(h recipe.Hash) recipe.Recipe { return recipe.Recipe{Scheme: recipe.Tag, MAC: h} }
	return map[recipe.Set][]recipe.Recipe{
		recipe.Django: {concat, half}, recipe.Itsdangerous: {concat, label}, recipe.Flask: {concat, label},
		recipe.Rails: {pbkdf2(recipe.Recipe{Scheme: recipe.RailsTag, MAC: recipe.SHA1, Size: 64}), pbkdf2(recipe.Recipe{Scheme: recipe.RailsGCM, Size: 32}),
			pbkdf2(recipe.Recipe{Scheme: recipe.RailsCBC, MAC: recipe.SHA1, Salt2: "other"})},
		recipe.RailsVerifier: {mac(recipe.SHA1)}, recipe.Keygrip: {mac(recipe.SHA512)}, recipe.CookieSignature: {mac(recipe.SHA256)}, recipe.JWT: {mac(recipe.SHA384)},
		recipe.Laravel: {{Scheme: recipe.LaravelCBC, Salt: "cookie"}, {Scheme: recipe.LaravelGCM}, {Scheme: recipe.LaravelURL}, {Scheme: recipe.LaravelURL, Salt: recipe.LaravelPrefix}, {Scheme: recipe.LaravelClosure}},
		recipe.Iron:    {{Scheme: recipe.IronSeal}},
		recipe.AuthJS:  {{Scheme: recipe.JWEGCM, Derivation: recipe.HKDF}, {Scheme: recipe.JWECBC, Derivation: recipe.HKDF, Salt: "c"}},
		recipe.Plug: {pbkdf2(recipe.Recipe{Scheme: recipe.Tag, MAC: recipe.SHA256, Size: 32}), pbkdf2(recipe.Recipe{Scheme: recipe.PlugXChaCha, Size: 32}),
			pbkdf2(recipe.Recipe{Scheme: recipe.PlugGCM, Size: 64, Salt2: "sign"}), pbkdf2(recipe.Recipe{Scheme: recipe.PlugGCM, Size: 32})},
		recipe.Symfony: {{Scheme: recipe.SymfonyURI}, {Scheme: recipe.SymfonyUser}},
		recipe.ASPNET: {{Scheme: recipe.MachineKey, Derivation: recipe.Counter, MAC: recipe.SHA256, Salt: "User.MachineKey.Protect", Purposes: recipe.Purposes("a", "b")},
			{Scheme: recipe.MachineKeyTold, Derivation: recipe.Counter, MAC: recipe.SHA1, Salt: "x"}},
		recipe.ASPNETLegacy:   {{Scheme: recipe.LegacyMAC, MAC: recipe.MD5}, {Scheme: recipe.LegacyAES, MAC: recipe.SHA1}, {Scheme: recipe.Legacy3DES, MAC: recipe.SHA256}},
		recipe.DataProtection: {{Scheme: recipe.RingCBC, Derivation: recipe.Counter, MAC: recipe.SHA256, Size: 32}, {Scheme: recipe.RingGCM, Derivation: recipe.Counter, Purposes: recipe.Purposes("p"), Size: 16}},
	}
}

func material(t testing.TB, s recipe.Set) []byte {
	t.Helper()
	if s == recipe.ASPNETLegacy {
		return recipe.Pair(bytes.Repeat([]byte("d"), 24), bytes.Repeat([]byte("v"), 64))
	}
	m, err := s.Fresh(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// input is an item that the scheme takes.
func input(r recipe.Recipe) recipe.Item {
	switch r.Scheme {
	case recipe.LaravelURL, recipe.SymfonyURI:
		return recipe.Item{Data: []byte("https://app.test/x?user=5")}
	case recipe.LaravelClosure:
		return recipe.Item{Data: []byte(`O:1:"A":0:{}`)}
	case recipe.SymfonyUser:
		return recipe.Item{Data: []byte(strings.Repeat("a", 43) + "~:1900000000:alice")}
	case recipe.IronSeal:
		return recipe.Item{Data: []byte("{}"), Aside: []byte("id*123")}
	}
	return recipe.Item{Data: []byte("eyJhIjoxfQ==")}
}

// TestRoundTrip makes and checks with every recipe; another key and another
// recipe of the set are refused.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for set, all := range examples() {
		master := material(t, set)
		for i, r := range all {
			if !set.Admits(r) {
				t.Errorf("%s does not admit %+v", set, r)
				continue
			}
			if set == recipe.ASPNETLegacy {
				if _, ok := r.Make(nil, master, rand.Reader, input(r)); ok {
					t.Errorf("%s: %s was made", set, r.Scheme)
				}
				continue
			}
			key, err := r.Key(master)
			if err != nil {
				t.Fatal(err)
			}
			it := input(r)
			made, ok := r.Make([]byte("before"), key, rand.Reader, it)
			if !ok || !bytes.HasPrefix(made, []byte("before")) || len(made) > 6+len(it.Data)+recipe.Overhead {
				t.Errorf("%s: %s was not made", set, r.Scheme)
				continue
			}
			back := made[6:]
			check := recipe.Item{Data: back, Aside: it.Aside}
			switch {
			case r.Tags():
				check = recipe.Item{Data: it.Data, Aside: back}
			case r.Scheme == recipe.JWEGCM:
				check.Aside = recipe.JWEHeader(nil)
			case r.Scheme == recipe.JWECBC:
				check = recipe.Item{Data: back[64:], Aside: recipe.JWEHeader(back[:64])}
			}
			out, ok := r.Check(nil, key, check)
			if !ok || !r.Tags() && !bytes.Equal(out, it.Data) {
				t.Errorf("%s: %s gave back %q, %v", set, r.Scheme, out, ok)
			}
			for name, wrong := range map[string]recipe.Item{
				"cut": {Data: cut(check.Data), Aside: check.Aside}, "longer": {Data: append(bytes.Clone(check.Data), 0), Aside: check.Aside},
				"other aside": {Data: check.Data, Aside: append(bytes.Clone(check.Aside), 'x')}, "nothing": {},
			} {
				if out, ok := r.Check(nil, key, wrong); ok {
					t.Errorf("%s: %s accepts %s: %q", set, r.Scheme, name, out)
				}
			}
			other, err := r.Key(material(t, set))
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := r.Check(nil, other, check); ok {
				t.Errorf("%s: %s accepts under another key", set, r.Scheme)
			}
			for j, r2 := range all {
				key2, err := r2.Key(master)
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := r2.Check(nil, key2, check); ok && i != j {
					t.Errorf("%s: what %+v made passes for %+v", set, r, r2)
				}
			}
		}
	}
}

func cut(b []byte) []byte { return b[:max(0, len(b)-1)] }

// TestSetsAdmitNothingElse gives each set every recipe of the others, and each
// of its own with one field changed.
func TestSetsAdmitNothingElse(t *testing.T) {
	t.Parallel()
	all := examples()
	if len(all) != len(recipe.Sets()) {
		t.Fatalf("%d of %d sets have examples", len(all), len(recipe.Sets()))
	}
	admitted := func(set recipe.Set, r recipe.Recipe) bool {
		for _, own := range all[set] {
			if own.Scheme == r.Scheme && own.Derivation == r.Derivation {
				return true
			}
		}
		return false
	}
	for set := range all {
		for from, list := range all {
			for _, r := range list {
				if set.Admits(r) && !admitted(set, r) {
					t.Errorf("%s admits %+v of %s", set, r, from)
				}
			}
		}
		for _, r := range all[set] {
			for name, change := range map[string]func(*recipe.Recipe){
				"scheme": func(r *recipe.Recipe) { r.Scheme += "x" }, "derivation": func(r *recipe.Recipe) { r.Derivation += "x" },
				"no derivation": func(r *recipe.Recipe) {
					if r.Derivation == "" {
						r.Derivation = recipe.Label
					} else {
						r.Derivation = ""
					}
				},
				"hash": func(r *recipe.Recipe) { r.Hash += "x" }, "mac": func(r *recipe.Recipe) { r.MAC += "x" },
				"size 1": func(r *recipe.Recipe) { r.Size = 1 }, "size 31": func(r *recipe.Recipe) { r.Size = 31 },
				"one iteration more": func(r *recipe.Recipe) { r.Iterations += recipe.MaxIterations },
				"salt":               func(r *recipe.Recipe) { r.Salt = strings.Repeat("s", recipe.MaxSalt+1) },
				"purposes":           func(r *recipe.Recipe) { r.Purposes = "\x05abc" },
				"purposes long form": func(r *recipe.Recipe) { r.Purposes = "\x81\x00a" },
			} {
				if changed := r; true {
					if change(&changed); set.Admits(changed) {
						t.Errorf("%s admits %s with another %s: %+v", set, r.Scheme, name, changed)
					}
				}
			}
		}
		if set.Admits(recipe.Recipe{}) {
			t.Errorf("%s admits nothing at all", set)
		}
	}
}

// TestWhatComputesSubkeys asks each set for the recipes that would hand out a
// key that another recipe of the set derives; DESIGN.md explains each.
func TestWhatComputesSubkeys(t *testing.T) {
	t.Parallel()
	plain := recipe.Recipe{Scheme: recipe.Tag, MAC: recipe.SHA1}
	for set := range examples() {
		switch set {
		case recipe.RailsVerifier, recipe.Keygrip, recipe.CookieSignature, recipe.JWT:
			continue // nothing is derived
		}
		for _, h := range []recipe.Hash{recipe.MD5, recipe.SHA1, recipe.SHA256, recipe.SHA384, recipe.SHA512} {
			if plain.MAC = h; set.Admits(plain) {
				t.Errorf("%s computes HMAC-%s of any message", set, h)
			}
		}
	}
	empty := recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: recipe.SHA1, MAC: recipe.SHA1}
	for _, set := range []recipe.Set{recipe.Flask, recipe.Itsdangerous, recipe.Django} {
		if set.Admits(empty) {
			t.Errorf("%s tags under the hash of the master, which is HMAC of a long one", set)
		}
	}
}

// TestMessagesDoNotPass tags messages that another scheme under the same key
// would take for its own.
func TestMessagesDoNotPass(t *testing.T) {
	t.Parallel()
	b64 := base64.StdEncoding.EncodeToString
	inner := b64(make([]byte, 32)) + "--" + b64(make([]byte, 16))
	url := strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(b64([]byte(inner)))
	for name, test := range map[string]struct {
		scheme recipe.Scheme
		text   string
		ok     bool
	}{
		"a master's tag of a step of PBKDF2":     {recipe.Tag, "signed cookie\x00\x00\x00\x01", false},
		"a master's tag of bytes":                {recipe.Tag, "\xff\xfe", false},
		"a master's tag of text":                 {recipe.Tag, "user=42;é", true},
		"rails, an encrypted message":            {recipe.RailsTag, b64([]byte(inner)), false},
		"rails, one for URLs":                    {recipe.RailsTag, url, false},
		"rails, JSON":                            {recipe.RailsTag, b64([]byte(`{"a":"--"}`)), true},
		"laravel, IV and ciphertext":             {recipe.LaravelURL, b64(make([]byte, 16)) + b64(make([]byte, 16)), false},
		"laravel, without padding":               {recipe.LaravelURL, strings.TrimRight(b64(make([]byte, 16)), "=") + strings.TrimRight(b64(make([]byte, 16)), "="), false},
		"laravel, a path like base64":            {recipe.LaravelURL, "/" + strings.Repeat("a", 60), false},
		"laravel, a path":                        {recipe.LaravelURL, "/unsubscribe/5", true},
		"laravel, a URL":                         {recipe.LaravelURL, "https://app.test/" + strings.Repeat("a", 60), true},
		"laravel, an object for a URL":           {recipe.LaravelURL, `O:1:"A":0:{}`, false},
		"laravel, a URL for an object":           {recipe.LaravelClosure, `https://app.test/?a=O:1:"A":0:{}`, false},
		"laravel, an array for an object":        {recipe.LaravelClosure, `a:1:{i:0;O:1:"A":0:{}}`, false},
		"laravel, an object":                     {recipe.LaravelClosure, "O:1:\"A\":1:{s:4:\"\x00*\x00b\";N;}", true},
		"symfony, a login for a URI":             {recipe.SymfonyURI, strings.Repeat("a", 43) + "~:1900000000:alice", false},
		"symfony, a login with a URI":            {recipe.SymfonyURI, strings.Repeat("a", 43) + "~:1900000000:http://x", false},
		"symfony, a URI for a login":             {recipe.SymfonyUser, "https://app.test/" + strings.Repeat("a", 43) + "~:1:x", false},
		"symfony, a login":                       {recipe.SymfonyUser, strings.Repeat("a", 43) + "~:1900000000:", true},
		"symfony, a path":                        {recipe.SymfonyURI, "/" + strings.Repeat("a", 42) + "~:1900000000:alice", true},
		"symfony, a login that starts as a path": {recipe.SymfonyUser, "/" + strings.Repeat("a", 42) + "~:1900000000:alice", false},
	} {
		r := recipe.Recipe{Scheme: test.scheme}
		if out, ok := r.Make(nil, make([]byte, 32), rand.Reader, recipe.Item{Data: []byte(test.text)}); ok != test.ok || ok != (len(out) > 0) {
			t.Errorf("%s: %v", name, ok)
		}
	}
}

func TestMaterial(t *testing.T) {
	t.Parallel()
	for _, set := range recipe.Sets() {
		if got, err := recipe.ParseSet(string(set)); got != set || err != nil {
			t.Errorf("%s: %v", set, err)
		}
		for _, n := range []int{0, recipe.MaxMaterial + 1} {
			if claviger.CodeOf(set.Check(make([]byte, n))) != claviger.Invalid {
				t.Errorf("%s takes %d bytes", set, n)
			}
		}
	}
	if _, err := recipe.ParseSet("plain"); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("plain: %v", err)
	}
	pair := recipe.Pair(bytes.Repeat([]byte("d"), 32), bytes.Repeat([]byte("v"), 64))
	if err := recipe.ASPNET.Check(pair); err != nil {
		t.Error(err)
	}
	if parts := recipe.ASPNET.Parts(pair); len(parts) != 2 || string(parts[0]) != strings.Repeat("d", 32) || string(parts[1]) != strings.Repeat("v", 64) {
		t.Errorf("parts %q", parts)
	}
	if parts := recipe.Django.Parts(pair); len(parts) != 1 || !bytes.Equal(parts[0], pair) {
		t.Errorf("parts %q", parts)
	}
	for _, wrong := range [][]byte{{0}, {0, 200, 1}, recipe.Pair(make([]byte, 5), make([]byte, 64)), recipe.Pair(make([]byte, 32), nil), make([]byte, 31)} {
		if recipe.ASPNET.Check(wrong) == nil || recipe.Laravel.Check(wrong) == nil {
			t.Errorf("%x is taken", wrong)
		}
	}
}

// TestLegacy makes old view state as the framework's source describes it, and
// opens it. There are no tokens of a framework for it.
func TestLegacy(t *testing.T) {
	t.Parallel()
	decryption, validation := []byte("0123456789abcdefghijklmn"), bytes.Repeat([]byte("v"), 64)
	pair, data, modifier := recipe.Pair(decryption, validation), []byte("\xff\x01view state"), []byte{1, 2, 3, 4}
	encrypted := func(block cipher.Block) []byte {
		plain := bytes.Join([][]byte{make([]byte, len(decryption)), data, modifier}, nil)
		pad := block.BlockSize() - len(plain)%block.BlockSize()
		plain = append(plain, bytes.Repeat([]byte{byte(pad)}, pad)...)
		cipher.NewCBCEncrypter(block, make([]byte, block.BlockSize())).CryptBlocks(plain, plain)
		return plain
	}
	h := func(parts ...[]byte) []byte {
		m := hmac.New(sha1.New, validation)
		m.Write(bytes.Join(parts, nil))
		return m.Sum(nil)
	}
	block, err := aes.NewCipher(decryption)
	if err != nil {
		t.Fatal(err)
	}
	triple, err := des.NewTripleDESCipher(decryption)
	if err != nil {
		t.Fatal(err)
	}
	old := md5.Sum(bytes.Join([][]byte{data, validation, make([]byte, len(modifier))}, nil))
	for _, test := range []struct {
		r     recipe.Recipe
		token []byte
	}{
		{recipe.Recipe{Scheme: recipe.LegacyMAC, MAC: recipe.SHA1}, append(bytes.Clone(data), h(data, modifier)...)},
		{recipe.Recipe{Scheme: recipe.LegacyMAC, MAC: recipe.MD5}, append(bytes.Clone(data), old[:]...)},
		{recipe.Recipe{Scheme: recipe.LegacyAES, MAC: recipe.SHA1}, append(encrypted(block), h(encrypted(block))...)},
		{recipe.Recipe{Scheme: recipe.Legacy3DES, MAC: recipe.SHA1}, append(encrypted(triple), h(encrypted(triple))...)},
	} {
		if !recipe.ASPNETLegacy.Admits(test.r) {
			t.Fatalf("%+v is not admitted", test.r)
		}
		out, ok := test.r.Check(nil, pair, recipe.Item{Data: test.token, Aside: modifier})
		if !ok || !bytes.Equal(out, data) {
			t.Errorf("%+v: %q, %v", test.r, out, ok)
		}
		for i := range test.token {
			wrong := bytes.Clone(test.token)
			wrong[i] ^= 1
			if _, ok := test.r.Check(nil, pair, recipe.Item{Data: wrong, Aside: modifier}); ok {
				t.Errorf("%+v: accepted with byte %d changed", test.r, i)
			}
		}
		if _, ok := test.r.Check(nil, pair, recipe.Item{Data: test.token, Aside: []byte{1, 2, 3, 5}}); ok && test.r.MAC != recipe.MD5 {
			t.Errorf("%+v: another page is accepted", test.r)
		}
	}
}

// TestDataProtectionVectors holds the arithmetic to the framework's own tests.
func TestDataProtectionVectors(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../state/testdata/aspnetcore_dp.json")
	if err != nil {
		t.Fatal(err)
	}
	type vector struct {
		Kind, Source, Token, Alg, Mac, Kdk, Label, ContextHeader, Context string
		MasterKey                                                         string `json:"master_key_utf8"`
		AAD                                                               string `json:"aad_hex"`
		Plaintext                                                         string `json:"plaintext_hex"`
		Raw                                                               string `json:"raw_with_buffers"`
		KeyBytes                                                          uint32 `json:"key_bytes"`
		Pre, Post, Bytes                                                  int
		Purposes                                                          []string
	}
	var doc struct {
		Framework, Version string
		Vectors            []vector
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, v := range doc.Vectors {
		switch {
		case strings.HasPrefix(v.Kind, "SP800-108"):
			tested++
			got := recipe.CounterMode([]byte(v.Kdk), []byte(v.Label), []byte(v.ContextHeader+v.Context), v.Bytes)
			if base64.StdEncoding.EncodeToString(got) != v.Token {
				t.Errorf("%s: %x", v.Kind, got)
			}
		case v.Alg != "":
			tested++
			aad, _ := hex.DecodeString(v.AAD)
			plain, _ := hex.DecodeString(v.Plaintext)
			sealed, err := base64.StdEncoding.DecodeString(v.Token + v.Raw)
			if err != nil {
				t.Fatal(err)
			}
			sealed = sealed[v.Pre : len(sealed)-v.Post]
			r, random := recipe.Recipe{Scheme: recipe.RingCBC, MAC: recipe.SHA256, Size: v.KeyBytes}, 32
			if v.Alg == "GCM" {
				r, random = recipe.Recipe{Scheme: recipe.RingGCM, Size: v.KeyBytes}, 28
			}
			if out, ok := r.OpenRing([]byte(v.MasterKey), sealed, aad); !ok || !bytes.Equal(out, plain) {
				t.Errorf("%s: opened %x, %v", v.Kind, out, ok)
			}
			if _, ok := r.OpenRing([]byte("master kez"), sealed, aad); ok {
				t.Errorf("%s: opened under another key", v.Kind)
			}
			if made, ok := r.SealRing([]byte(v.MasterKey), bytes.NewReader(sealed[:random]), plain, aad); !ok || !bytes.Equal(made, sealed) {
				t.Errorf("%s: made %x", v.Kind, made)
			}
		}
	}
	if tested != 4 {
		t.Errorf("%d vectors were tested", tested)
	}
}

// TestLaravelPrefix compares the prefix of a cookie with the formula.
func TestLaravelPrefix(t *testing.T) {
	t.Parallel()
	key := make([]byte, 32)
	named, bare := recipe.Recipe{Scheme: recipe.LaravelCBC, Salt: "name"}, recipe.Recipe{Scheme: recipe.LaravelCBC}
	made, ok := named.Make(nil, key, rand.Reader, recipe.Item{Data: []byte("v")})
	plain, opened := bare.Check(nil, key, recipe.Item{Data: made})
	m := hmac.New(sha1.New, key)
	m.Write([]byte("namev2"))
	if want := hex.EncodeToString(m.Sum(nil)) + "|v"; !ok || !opened || string(plain) != want {
		t.Errorf("cookie %q, want %q", plain, want)
	}
	other := recipe.Recipe{Scheme: recipe.LaravelCBC, Salt: "other"}
	if _, ok := other.Check(nil, key, recipe.Item{Data: made}); ok {
		t.Error("a cookie passes for another")
	}
}

// FuzzRecipe gives each scheme hostile items: it must neither panic nor accept.
func FuzzRecipe(f *testing.F) {
	type one struct {
		r   recipe.Recipe
		key []byte
	}
	var all []one
	for _, set := range recipe.Sets() {
		for _, r := range examples()[set] {
			key, err := r.Key(material(f, set))
			if err != nil {
				f.Fatal(err)
			}
			all = append(all, one{r, key})
		}
	}
	for i := range all {
		f.Add(uint8(i), make([]byte, 200), []byte("id*1"))
		f.Add(uint8(i), []byte{}, []byte{})
	}
	f.Fuzz(func(t *testing.T, which uint8, data, aside []byte) {
		o := all[int(which)%len(all)]
		if out, ok := o.r.Check(nil, o.key, recipe.Item{Data: data, Aside: aside}); ok {
			t.Errorf("%+v accepts %x: %q", o.r, data, out)
		}
		if made, ok := o.r.Make(nil, o.key, rand.Reader, recipe.Item{Data: data, Aside: aside}); ok && len(made) > len(data)+recipe.Overhead {
			t.Errorf("%+v makes %d bytes of %d", o.r, len(made), len(data))
		}
	})
}
