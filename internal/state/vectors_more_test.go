package state_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

func TestLaravel(t *testing.T) {
	t.Parallel()
	var tokens []token
	for _, v := range load(t, "laravel_8") {
		tk := token{name: v.s("kind") + "/" + v.s("cipher"), set: recipe.Laravel, text: v.s("token"), format: state.LaravelEncrypted, random: at(0, 16)}
		if v.s("kind") != "signed URL (UrlGenerator formula, computed with hash_hmac, not through the framework)" {
			tk.key = v.bytes(t, "key_hex")
		}
		if app, ok := strings.CutPrefix(v.s("app_key"), "base64:"); ok {
			tk.key = unb64(t, app)
		}
		if v.s("cipher") == "aes-256-gcm" {
			tk.params.Cipher, tk.random = "gcm", at(0, 12)
		}
		switch v.s("kind") {
		case "encryptString", "encryptString made with previous key":
			tk.payload = []byte(v.s("plaintext"))
		case "encrypt (php serialize)":
			tk.payload = []byte(v.s("plaintext_php_serialized"))
		case "EncryptCookies cookie":
			// Both ways: as the encrypter sees it, and as the middleware does.
			tk.payload = []byte(v.s("plaintext"))
			tokens = append(tokens, tk)
			tk.name, tk.params.Name = tk.name+" by name", v.s("cookie_name")
			_, value, _ := strings.Cut(v.s("plaintext"), "|")
			tk.payload = []byte(value)
		case `Laravel\SerializableClosure\Serializers\Signed`:
			tk.format, tk.params.Over, tk.payload, tk.want, tk.random = state.LaravelClosure, []byte(v.s("plaintext")), []byte{}, []byte{}, nil
		case "signed URL (UrlGenerator formula, computed with hash_hmac, not through the framework)":
			tk.format, tk.payload, tk.random = state.LaravelURL, []byte(v.s("plaintext")), nil
			tk.text = v.s("plaintext") + "&signature=" + tk.text
			tk.facts = func(f state.Facts) bool { return f.Expires.Unix() == 1900000000 }
		default:
			t.Fatalf("unknown kind %q", v.s("kind"))
		}
		tokens = append(tokens, tk)
	}
	run(t, tokens)
}

func TestExpress(t *testing.T) {
	t.Parallel()
	var tokens []token
	for _, v := range load(t, "express_cookie_signature") {
		tk := token{name: v.s("kind") + "/" + v.s("plaintext"), set: recipe.CookieSignature, key: []byte(v.s("key")), text: v.s("token"), format: state.ExpressCookie}
		switch v.s("kind") {
		case "cookie-signature.sign":
			tk.format, tk.payload = state.CookieSignature, []byte(v.s("plaintext"))
		case "express-session connect.sid":
			tk.payload = []byte(v.s("plaintext"))
		case "express-session made with OLD", "express res.cookie signed":
			tk.payload = []byte(strings.TrimPrefix(tk.text[:strings.LastIndex(tk.text, ".")], "s:"))
		default:
			t.Fatalf("unknown kind %q", v.s("kind"))
		}
		tokens = append(tokens, tk)
	}
	for _, v := range load(t, "cookie_session_keygrip") {
		tk := token{name: v.s("kind"), set: recipe.Keygrip, key: []byte(v.s("key")), text: v.s("token"), format: state.KeygripSignature,
			params: state.Params{Digest: recipe.Hash(v.s("algorithm")), Over: []byte(v.s("plaintext"))}, payload: []byte{}, want: []byte{}}
		switch v.s("kind") {
		case "Keygrip.sign default", "Keygrip old accepted":
		case "Keygrip.sign sha256 hex":
			tk.params.Encoding = "hex"
		case "cookie-session":
			cookies := v["cookies"].(map[string]any)
			tk.format, tk.params.Name, tk.params.Over = state.CookieSession, "session", nil
			tk.text = "session=" + cookies["session"].(string) + "; session.sig=" + cookies["session.sig"].(string)
			tk.payload, tk.want = unb64(t, cookies["session"].(string)), nil
			sameJSON(t, tk.payload, v["plaintext"])
		case "plug-point proof: cookie-session accepts a custom {sign,index,verify} object as keys":
			continue // no token of the framework's own
		default:
			t.Fatalf("unknown kind %q", v.s("kind"))
		}
		tokens = append(tokens, tk)
	}
	run(t, tokens)
}

func TestIron(t *testing.T) {
	t.Parallel()
	var tokens []token
	for _, v := range load(t, "iron") {
		tk := token{name: v.s("kind"), set: recipe.Iron, key: []byte(v.s("key")), text: v.s("token"), format: state.Iron,
			params: state.Params{KeyID: v.s("password_id")}}
		tk.random = func(_ *testing.T, it recipe.Item) []byte {
			n := len(it.Data)
			return append(bytes.Clone(it.Data[:48]), it.Data[n-64:n-32]...)
		}
		if strings.HasPrefix(v.s("kind"), "iron-session") {
			tk.format = state.IronSession
		}
		plain := v["plaintext"]
		tk.facts = func(f state.Facts) bool { return f.KeyID == v.s("password_id") }
		if strings.Contains(v.s("kind"), "ttl=1h") {
			end := time.UnixMilli(1795298093246).UTC()
			tk.making = func(p *state.Params) { p.Expires = end }
			tk.facts = func(f state.Facts) bool { return f.Expires.Equal(end) }
		}
		payload, _, err := state.Unprotect(t.Context(), &local{set: tk.set, key: tk.key}, tk.format, tk.params, []byte(tk.text))
		if err != nil {
			t.Fatal(err)
		}
		sameJSON(t, payload, plain)
		tokens = append(tokens, tk)
	}
	run(t, tokens)
}

func TestJOSE(t *testing.T) {
	t.Parallel()
	var tokens []token
	for _, file := range []string{"nextauth", "authjs_v5"} {
		for _, v := range load(t, file) {
			tk := token{name: file + "/" + v.s("kind") + v.s("salt"), set: recipe.AuthJS, key: []byte(v.s("key")), text: v.s("token"),
				format: state.NextAuth, params: state.Params{Salt: v.s("salt")}, random: at(0, 12)}
			if file == "authjs_v5" {
				kid := v["header"].(map[string]any)["kid"].(string)
				tk.format, tk.random = state.AuthJS, at(0, 16)
				tk.facts = func(f state.Facts) bool {
					return f.KeyID == kid && f.Issued.Unix() == 1795294493 && f.Expires.Unix() == 1952974493
				}
			}
			payload, _, err := state.Unprotect(t.Context(), &local{set: tk.set, key: tk.key}, tk.format, tk.params, []byte(tk.text))
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, payload, v["plaintext"])
			tokens = append(tokens, tk)
		}
	}
	for _, v := range load(t, "jwt_hs") {
		hash, ok := strings.CutPrefix(v.s("kind"), "jsonwebtoken HS")
		if !ok {
			continue // no token
		}
		tk := token{name: v.s("kind"), set: recipe.JWT, key: []byte(v.s("key")), text: v.s("token"), format: state.JWT,
			params: state.Params{Digest: recipe.Hash("sha" + hash)}}
		if hash == "512" {
			tk.making = func(p *state.Params) { p.KeyID = "k1" }
		}
		tk.facts = func(f state.Facts) bool { return f.Issued.Unix() == 1760000000 && f.Expires.Unix() == 1900000000 }
		body, err := base64.RawURLEncoding.DecodeString(strings.Split(tk.text, ".")[1])
		if err != nil {
			t.Fatal(err)
		}
		sameJSON(t, body, v["plaintext"])
		tk.payload = body
		tokens = append(tokens, tk)
	}
	run(t, tokens)
}

func TestPlug(t *testing.T) {
	t.Parallel()
	var tokens []token
	derived := 0
	for _, v := range load(t, "phoenix_plug_crypto") {
		tk := token{name: v.s("kind") + v.s("plaintext"), set: recipe.Plug, key: []byte(v.s("key")), text: v.s("token"),
			params: state.Params{Salt: v.s("salt"), KDF: recipe.Hash(v.s("digest"))}, payload: unb64(t, v.s("plaintext_erlang_b64"))}
		if n, ok := v["iterations"].(float64); ok {
			tk.params.Iterations, tk.params.Size = uint32(n), uint32(v["length"].(float64))
		}
		signed := func(f state.Facts) bool {
			return f.Issued.Unix() == 1760000000 && f.Expires.Sub(f.Issued) == 86400*time.Second
		}
		switch kind, _, _ := strings.Cut(v.s("kind"), " "); kind {
		case "Plug.Crypto.sign":
			tk.format, tk.facts = state.PlugToken, signed
			if len(tk.payload) == 0 { // the custom kdf: the term is the first vector's
				tk.payload = nil
			}
		case "Plug.Crypto.encrypt":
			tk.format, tk.facts = state.PlugEncryptedToken, signed
			tk.random = at(0, 24)
		case "MessageVerifier":
			tk.format = state.PlugVerifier
			r := recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.PBKDF2, Hash: recipe.SHA256, MAC: recipe.SHA256, Salt: v.s("salt"), Iterations: 1000, Size: 32}
			if key, err := r.Key(tk.key); err != nil || !bytes.Equal(key, v.bytes(t, "derived_key_hex")) {
				t.Errorf("derived %x", key)
			}
			derived++
		case "MessageEncryptor":
			tk.format = state.PlugEncrypted
			tk.random = at(0, 24)
		default:
			t.Fatalf("unknown kind %q", v.s("kind"))
		}
		tokens = append(tokens, tk)
	}
	if derived == 0 {
		t.Error("no derived key was compared")
	}
	run(t, tokens)
}

func TestSymfony(t *testing.T) {
	t.Parallel()
	expires := time.Unix(1900000000, 0).UTC()
	password := [][]byte{[]byte("$2y$13$hash")}
	var tokens []token
	for _, v := range load(t, "symfony_5_4") {
		tk := token{name: v.s("kind") + v.s("plaintext"), set: recipe.Symfony, key: []byte(v.s("key")), text: v.s("token"), payload: []byte(v.s("plaintext"))}
		switch v.s("kind") {
		case `Symfony\Component\HttpKernel\UriSigner::sign`:
			tk.format = state.SymfonyURI
			if strings.Contains(v.s("plaintext"), "b=2&a=1") {
				tk.want = []byte("https://app.test/f?a=1&b=2")
			}
		case `Symfony\Component\HttpKernel\UriSigner::sign, its hash`:
			tk.format, tk.params.Over, tk.payload, tk.want = state.SymfonyHash, []byte(v.s("plaintext")), []byte{}, []byte{}
			tokens = append(tokens, tk)
			// As 7.3 writes it, by its source.
			tk.name, tk.params.Encoding = tk.name+" for URLs", "base64url"
			tk.text = strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(tk.text)
		case "SignatureHasher (remember_me / login link)":
			tk.format, tk.payload, tk.want = state.SymfonySignature, []byte{}, []byte{}
			tk.params = state.Params{Properties: password, Expires: expires, Over: []byte(v.s("user_identifier"))}
			tokens = append(tokens, tk)
			// As it is checked before the user is known.
			tk.name += " with any properties"
			tk.params = state.Params{AnyPurpose: true, Expires: expires, Over: tk.params.Over}
			tk.making = func(p *state.Params) { p.AnyPurpose, p.Purpose = false, tk.text[44:] }
			tk.facts = func(f state.Facts) bool { return f.Purpose == tk.text[44:] }
		case "REMEMBERME cookie (RememberMeDetails::toString)":
			tk.format, tk.params = state.SymfonyRemember, state.Params{Properties: password, Class: `Symfony\Component\Security\Core\User\InMemoryUser`}
			tk.making = func(p *state.Params) { p.Expires = expires }
			tk.facts = func(f state.Facts) bool { return f.Expires.Equal(expires) }
		default:
			t.Fatalf("unknown kind %q", v.s("kind"))
		}
		tokens = append(tokens, tk)
	}
	run(t, tokens)
}

func TestASPNET(t *testing.T) {
	t.Parallel()
	var tokens []token
	for _, v := range load(t, "aspnet_45") {
		pair := recipe.Pair(v.bytes(t, "decryptionKey"), v.bytes(t, "validationKey"))
		hash := map[string]recipe.Hash{"SHA1": recipe.SHA1, "HMACSHA256": recipe.SHA256, "HMACSHA512": recipe.SHA512}[v.s("validation")]
		var purposes []string
		for _, p := range v["specific_purposes"].([]any) {
			purposes = append(purposes, p.(string))
		}
		tk := token{name: v.s("kind"), set: recipe.ASPNET, key: pair, text: v.s("token"), payload: v.bytes(t, "plaintext_hex"), random: at(0, 16),
			params: state.Params{Digest: hash, Purposes: purposes}, format: state.ASPNETProtect}
		r := recipe.Recipe{Scheme: recipe.MachineKey, Derivation: recipe.Counter, MAC: hash, Salt: v.s("primary_purpose"), Purposes: recipe.Purposes(purposes...)}
		want := recipe.Pair(v.bytes(t, "derived_encryption_key_hex"), v.bytes(t, "derived_validation_key_hex"))
		if got, err := r.Key(pair); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: derived %x, want %x", tk.name, got, want)
		}
		switch v.s("primary_purpose") {
		case "User.MachineKey.Protect":
		case "FormsAuthentication.Ticket":
			tk.format = state.ASPNETForms
			ticket, ok := state.ParseTicket(tk.payload)
			fields := v["ticket"].(map[string]any)
			if !ok || ticket.Name != fields["name"] || ticket.UserData != fields["userData"] || ticket.Path != fields["path"] ||
				ticket.Issued.Format(time.RFC3339) != fields["issued_utc"] || ticket.Expires.Format(time.RFC3339) != fields["expires_utc"] ||
				float64(ticket.Version) != fields["version"] || ticket.Persistent != fields["persistent"] {
				t.Errorf("ticket %+v, want %v", ticket, fields)
			}
			tk.facts = func(f state.Facts) bool { return f.Issued.Equal(ticket.Issued) && f.Expires.Equal(ticket.Expires) }
		case "WebForms.HiddenFieldPageStatePersister.ClientState":
			tk.format = state.ASPNETViewState
		default:
			t.Fatalf("unknown purpose %q", v.s("primary_purpose"))
		}
		tokens = append(tokens, tk)
	}
	run(t, tokens)
}

// TestDataProtectionHeader holds the beginning of a payload to the framework's
// own template of associated data.
func TestDataProtectionHeader(t *testing.T) {
	t.Parallel()
	for _, v := range load(t, "aspnetcore_dp") {
		if !strings.HasPrefix(v.s("kind"), "AAD template") {
			continue
		}
		var purposes []string
		for _, p := range v["purposes"].([]any) {
			purposes = append(purposes, p.(string))
		}
		const id = "00000000-0000-0000-0000-000000000000"
		guid, ok := state.ParseGUID(id)
		aad := append([]byte{0x09, 0xf0, 0xc9, 0xf0}, guid...)
		aad = append(binary.BigEndian.AppendUint32(aad, uint32(len(purposes))), recipe.Purposes(purposes...)...)
		if !ok || base64.RawURLEncoding.EncodeToString(aad) != v.s("token") {
			t.Errorf("template %s", base64.RawURLEncoding.EncodeToString(aad))
		}
		if got, ok := state.KeyIDOf([]byte(v.s("token"))); !ok || got != id {
			t.Errorf("key id %q", got)
		}
		return
	}
	t.Error("no such vector")
}

func TestDataProtection(t *testing.T) {
	t.Parallel()
	const id = "6f8cb2b5-9b80-4d2b-b7b0-09cd1f8ed6c3"
	guid, ok := state.ParseGUID(id)
	if !ok || hex.EncodeToString(guid) != "b5b28c6f809b2b4db7b009cd1f8ed6c3" {
		t.Errorf("guid %x", guid)
	}
	for _, p := range []state.Params{{Cipher: "cbc"}, {Cipher: "cbc", Digest: recipe.SHA512, Size: 16}, {Cipher: "gcm"}} {
		p.Purposes = []string{"/app", "Microsoft.AspNetCore.Authentication.Cookies.CookieAuthenticationMiddleware", "Cookies", "v2"}
		u := &local{set: recipe.DataProtection, key: recipe.Entry([16]byte(guid), bytes.Repeat([]byte("k"), 64))}
		tk, err := state.Protect(t.Context(), u, state.DataProtection, p, []byte("ticket"))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := state.KeyIDOf(tk); !ok || got != id || !bytes.HasPrefix(tk, []byte("CfDJ8")) {
			t.Errorf("%s names the key %q", tk, got)
		}
		n := 28
		if p.Cipher == "cbc" {
			n = 32
		}
		n += 16
		v := token{name: p.Cipher, format: state.DataProtection, set: recipe.DataProtection, key: u.key, params: p, payload: []byte("ticket"), text: string(tk), random: at(16, n)}
		v.check(t)
		p.Purposes[3] = "v3"
		if _, _, err := state.Unprotect(t.Context(), u, state.DataProtection, p, tk); err != state.ErrToken {
			t.Errorf("another purpose: %v", err)
		}
	}
}
