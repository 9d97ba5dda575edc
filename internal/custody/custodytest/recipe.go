package custodytest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/recipe"
)

// MachineKey imports a machine key for a recipe set.
func MachineKey(t testing.TB, c *custody.Client, set recipe.Set, material []byte) (Key, error) {
	t.Helper()
	b := Binding(claviger.MachineKey, claviger.Imported)
	b.Recipe = string(set)
	sealed, id := sealTo(t, c, onetime.Import, b, material)
	made, err := c.Adopt(t.Context(), b, id, sealed[0])
	if err == nil && made.Level != claviger.Exposed {
		t.Errorf("level of an import is %s", made.Level)
	}
	return Key{custody.Material{Binding: b, Blob: made.Blob, Fingerprint: made.Fingerprint}, made.Public}, err
}

// RailsCookie is the recipe of Rails' signed cookies, as an example of PBKDF2.
func RailsCookie() recipe.Recipe {
	return recipe.Recipe{Scheme: recipe.RailsTag, Derivation: recipe.PBKDF2, Hash: recipe.SHA256, MAC: recipe.SHA1, Salt: "signed cookie", Iterations: 1000, Size: 64}
}

func testRecipe(t *testing.T, c *custody.Client) {
	secret := []byte("mk-test-django-secret-key-0001-not-a-real-secret")
	k, err := MachineKey(t, c, recipe.Django, secret)
	if err != nil {
		t.Fatal(err)
	}
	r := recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: recipe.SHA256, MAC: recipe.SHA256, Salt: "my.saltsigner"}
	derived := sha256.Sum256(append([]byte(r.Salt), secret...))
	h := hmac.New(sha256.New, derived[:])
	h.Write([]byte("user:42"))
	tag := h.Sum(nil)
	results, err := c.Recipe(t.Context(), k.Material, r, true, []recipe.Item{{Data: []byte("user:42")}, {Data: []byte("user:42"), Aside: []byte("x")}})
	if err != nil || !results[0].OK || !bytes.Equal(results[0].Output, tag) || results[1].OK || results[1].Output != nil {
		t.Errorf("made %+v, %v", results, err)
	}
	results, err = c.Recipe(t.Context(), k.Material, r, false, []recipe.Item{{Data: []byte("user:43"), Aside: tag}, {Data: []byte("user:42"), Aside: tag}})
	if err != nil || results[0].OK || !results[1].OK || results[1].Output != nil {
		t.Errorf("checked %+v, %v", results, err)
	}
	// More salts than are kept, twice, and then one that was given up.
	rails := generateMachineKey(t, c, recipe.Rails)
	first := RailsCookie()
	want := recipeOne(t, c, rails, first, true, recipe.Item{Data: []byte("m")})
	for i := range 150 {
		next := first
		next.Salt = fmt.Sprint("salt ", i%75)
		recipeOne(t, c, rails, next, true, recipe.Item{Data: []byte("m")})
	}
	if got := recipeOne(t, c, rails, first, true, recipe.Item{Data: []byte("m")}); !bytes.Equal(got, want) {
		t.Error("a derived key changed when it was derived again")
	}
	if err := c.Unload(t.Context(), rails.Material); err != nil {
		t.Error(err)
	}
	if got := recipeOne(t, c, rails, first, true, recipe.Item{Data: []byte("m")}); !bytes.Equal(got, want) {
		t.Error("a derived key changed when the slot was loaded again")
	}
	laravel := generateMachineKey(t, c, recipe.Laravel)
	for _, n := range []int{0, 1, 15, 16, 4000, frames.MaxInput} {
		plain := bytes.Repeat([]byte("p"), n)
		sealed := recipeOne(t, c, laravel, recipe.Recipe{Scheme: recipe.LaravelCBC}, true, recipe.Item{Data: plain})
		if n < frames.MaxInput && !bytes.Equal(recipeOne(t, c, laravel, recipe.Recipe{Scheme: recipe.LaravelCBC}, false, recipe.Item{Data: sealed}), plain) {
			t.Errorf("%d bytes do not open", n)
		}
	}
}

func generateMachineKey(t *testing.T, c *custody.Client, set recipe.Set) Key {
	t.Helper()
	b := Binding(claviger.MachineKey, claviger.Generated)
	b.Recipe = string(set)
	made, err := c.Generate(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return Key{custody.Material{Binding: b, Blob: made.Blob, Fingerprint: made.Fingerprint}, made.Public}
}

func recipeOne(t *testing.T, c *custody.Client, k Key, r recipe.Recipe, make bool, it recipe.Item) []byte {
	t.Helper()
	results, err := c.Recipe(t.Context(), k.Material, r, make, []recipe.Item{it})
	if err != nil || !results[0].OK {
		t.Fatalf("%+v: %v", r, err)
	}
	return results[0].Output
}

func testRecipeStrict(t *testing.T, c *custody.Client) {
	secret := []byte("mk-test-flask-secret-0001")
	k, err := MachineKey(t, c, recipe.Flask, secret)
	if err != nil {
		t.Fatal(err)
	}
	item := []recipe.Item{{Data: []byte("cookie-session")}}
	// What would compute the key of Flask's sessions, in every way of asking.
	if _, err := c.MAC(t.Context(), k.Material, [][]byte{[]byte("cookie-session")}); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("mac: %v", err)
	}
	if _, err := c.Seal(t.Context(), k.Material, []custody.Plain{{}}); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("seal: %v", err)
	}
	if _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("sign: %v", err)
	}
	for _, r := range []recipe.Recipe{{Scheme: recipe.Tag, MAC: recipe.SHA1}, {}, RailsCookie(), {Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: recipe.SHA1, MAC: recipe.SHA1}} {
		if _, err := c.Recipe(t.Context(), k.Material, r, true, item); claviger.CodeOf(err) != claviger.Denied {
			t.Errorf("%+v: %v", r, err)
		}
	}
	plain := Generate(t, c, claviger.HMACSHA256)
	if _, err := c.Recipe(t.Context(), plain.Material, recipe.Recipe{Scheme: recipe.Tag, MAC: recipe.SHA256}, true, item); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("recipe of a plain key: %v", err)
	}
	if _, err := c.Recipe(t.Context(), k.Material, RailsCookie(), true, nil); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("no items: %v", err)
	}
	// The set is in the binding: the blob of one opens as no other.
	moved := k.Material
	moved.Binding.Recipe = string(recipe.RailsVerifier)
	if _, err := c.Recipe(t.Context(), moved, recipe.Recipe{Scheme: recipe.Tag, MAC: recipe.SHA1}, true, item); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("the blob under another set: %v", err)
	}
	for _, b := range []frames.Binding{
		{Algorithm: claviger.MachineKey, Recipe: claviger.PlainRecipe}, {Algorithm: claviger.HMACSHA256, Recipe: string(recipe.Django)},
		{Algorithm: claviger.MachineKey, Recipe: "Django"},
	} {
		b.KeyID, b.Version, b.Origin = claviger.NewID(time.Now()), 1, claviger.Generated
		if _, err := c.Generate(t.Context(), b); claviger.CodeOf(err) != claviger.Unsupported {
			t.Errorf("%s for %s: %v", b.Algorithm, b.Recipe, err)
		}
	}
	for set, material := range map[recipe.Set][]byte{recipe.Laravel: make([]byte, 31), recipe.ASPNET: make([]byte, 64), recipe.Django: make([]byte, 1025)} {
		if _, err := MachineKey(t, c, set, material); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%d bytes for %s: %v", len(material), set, err)
		}
	}
	testFindMachineKey(t, c, k, secret)
}

// testFindMachineKey looks for machine keys as applications have them.
func testFindMachineKey(t *testing.T, c *custody.Client, k Key, secret []byte) {
	decryption, validation := bytes.Repeat([]byte("decrypt!"), 4), bytes.Repeat([]byte("validate"), 8)
	pair, err := MachineKey(t, c, recipe.ASPNET, recipe.Pair(decryption, validation))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		key      Key
		haystack string
		want     bool
	}{
		"settings":         {k, "SECRET_KEY = '" + string(secret) + "'", true},
		"all but one byte": {k, "SECRET_KEY = '" + string(secret[1:]) + "'", false},
		"web.config":       {pair, `<machineKey decryptionKey="` + hex.EncodeToString(decryption) + `"`, true},
		"web.config, V":    {pair, fmt.Sprintf(`validationKey="%X"`, validation), true},
		"other":            {pair, fmt.Sprintf(`validationKey="%X"`, decryption[:31]), false},
	} {
		found, err := c.Find(t.Context(), test.key.Material, []byte(test.haystack))
		if err != nil || found != test.want {
			t.Errorf("find %s: %v, %v", name, found, err)
		}
	}
}
