package keeper_test

import (
	"bytes"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/state"
)

// TestStateAcrossVersions makes tokens before and after a rotation: both open,
// each under its version, and tampered ones do not.
func TestStateAcrossVersions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Protect, claviger.Unprotect)
	const name = "prod/shop/secret-key-base"
	if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: name, Algorithm: "machine-key", Recipe: "rails", Owner: "tests"}); err != nil {
		t.Fatal(err)
	}
	params := state.Params{Name: "cart"}
	payloads := [][]byte{[]byte("one"), []byte("two")}
	protect := func(version uint32) [][]byte {
		t.Helper()
		out, err := w.Protect(t.Context(), by, keeper.ProtectRequest{Key: name, Format: state.RailsEncryptedCookie, Params: params, Payloads: payloads})
		if err != nil || out.Version != version || len(out.Tokens) != 2 {
			t.Fatalf("%+v, %v", out, err)
		}
		return out.Tokens
	}
	tokens := protect(1)
	if _, err := w.Rotate(t.Context(), w.op, name, "", 0); err != nil {
		t.Fatal(err)
	}
	tokens = append(tokens, protect(2)...)
	tokens = append(tokens, []byte("nonsense"), append([]byte("A"), tokens[0]...))
	out, err := w.Unprotect(t.Context(), by, keeper.UnprotectRequest{Key: name, Format: state.RailsEncryptedCookie, Params: params, Tokens: tokens})
	if err != nil {
		t.Fatal(err)
	}
	for i, version := range []uint32{1, 1, 2, 2, 0, 0} {
		if u := out[i]; u.Version != version || u.Renew != (version == 1) || u.OK != (version > 0) || u.OK && (!bytes.Equal(u.Payload, payloads[i%2]) || u.Facts.Purpose != "cookie.cart") {
			t.Errorf("token %d: %+v", i, u)
		}
	}
	// Another cookie's, and nothing of what computes the key's subkeys.
	params.Name = "session"
	out, err = w.Unprotect(t.Context(), by, keeper.UnprotectRequest{Key: name, Format: state.RailsEncryptedCookie, Params: params, Tokens: tokens[:1]})
	if err != nil || out[0].OK {
		t.Errorf("another cookie: %+v, %v", out, err)
	}
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.MAC)
	if _, err := w.MAC(t.Context(), by, keeper.MACRequest{Key: name, Inputs: [][]byte{nil}}); err == nil {
		t.Error("a machine key answers mac")
	}
	for _, f := range []state.Format{state.PlugToken, state.JWT, "none"} {
		if _, err := w.Protect(t.Context(), by, keeper.ProtectRequest{Key: name, Format: f, Payloads: payloads}); claviger.CodeOf(err) != claviger.Unsupported {
			t.Errorf("%s: %v", f, err)
		}
	}
	// What the set has, without its salt.
	if _, err := w.Protect(t.Context(), by, keeper.ProtectRequest{Key: name, Format: state.RailsVerifier, Payloads: payloads}); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("the secret itself as a verifier's: %v", err)
	}
}

func TestStateExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Protect, claviger.Unprotect)
	const name = "prod/shop/iron"
	if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: name, Algorithm: "machine-key", Recipe: "iron", Owner: "tests"}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		ends    time.Duration
		expired bool
		want    bool
	}{{time.Hour, false, true}, {-time.Hour, false, false}, {-time.Hour, true, true}} {
		made, err := w.Protect(t.Context(), by, keeper.ProtectRequest{Key: name, Format: state.Iron, Params: state.Params{Expires: time.Now().Add(test.ends)}, Payloads: [][]byte{[]byte("{}")}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := w.Unprotect(t.Context(), by, keeper.UnprotectRequest{Key: name, Format: state.Iron, Tokens: made.Tokens, Expired: test.expired})
		if err != nil || out[0].OK != test.want {
			t.Errorf("%+v: %+v, %v", test, out, err)
		}
	}
}

func TestCreateMachineKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, test := range map[string]struct {
		req  keeper.CreateKey
		want claviger.Code
	}{
		"no set":          {keeper.CreateKey{Algorithm: "machine-key"}, claviger.Unsupported},
		"no such set":     {keeper.CreateKey{Algorithm: "machine-key", Recipe: "plain"}, claviger.Unsupported},
		"a set elsewhere": {keeper.CreateKey{Algorithm: "hmac-sha256", Recipe: "django"}, claviger.Invalid},
		"in a device":     {keeper.CreateKey{Algorithm: "machine-key", Recipe: "django", Custodian: claviger.TPM}, claviger.Unsupported},
		"imported only":   {keeper.CreateKey{Algorithm: "machine-key", Recipe: "aspnet-legacy"}, claviger.Unsupported},
	} {
		test.req.Name, test.req.Owner = "prod/app/key", "tests"
		if _, err := w.CreateKey(t.Context(), w.op, test.req); claviger.CodeOf(err) != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
