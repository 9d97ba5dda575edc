package keeper_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/keeper"
	"claviger.dev/pubkey"
)

func TestSignAndVerify(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Sign, claviger.Verify)
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, claviger.MLDSA65, "rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha512"} {
		for _, enc := range []pubkey.Encoding{pubkey.ASN1, pubkey.P1363} {
			name := fmt.Sprintf("prod/%s/enc-%d", alg, enc)
			view := w.key(name, alg)
			inputs := [][]byte{[]byte("one"), []byte(""), bytes.Repeat([]byte("x"), 5000)}
			signed, err := w.Sign(t.Context(), by, keeper.SignRequest{Key: name, Inputs: inputs, Encoding: enc})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			public, err := pubkey.Parse(alg, view.Versions[0].Public)
			if err != nil {
				t.Fatal(err)
			}
			if signed.Version != 1 || signed.KID != public.Thumbprint() {
				t.Errorf("%s: version %d, kid %q", name, signed.Version, signed.KID)
			}
			var items []keeper.Item
			for i, in := range inputs {
				if !public.Verify(in, signed.Signatures[i], enc) {
					t.Errorf("%s: signature %d does not verify", name, i)
				}
				items = append(items, keeper.Item{Input: in, Signature: signed.Signatures[i]}, keeper.Item{Input: []byte("other"), Signature: signed.Signatures[i]})
			}
			verdicts, err := w.Verify(t.Context(), by, keeper.VerifyRequest{Key: name, Items: items, Encoding: enc})
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range verdicts {
				if want := i%2 == 0; v.Valid != want || (v.Version == 1) != want {
					t.Errorf("%s: verdict %d is %+v", name, i, v)
				}
			}
		}
	}
}

func TestPrehashed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Sign, claviger.Verify)
	w.key("prod/app/ec", claviger.ECDSAP256)
	w.key("prod/app/ed", claviger.Ed25519)
	digest := sha256.Sum256([]byte("message"))
	signed, err := w.Sign(t.Context(), by, keeper.SignRequest{Key: "prod/app/ec", Inputs: [][]byte{digest[:]}, Prehashed: true})
	if err != nil {
		t.Fatal(err)
	}
	verdicts, err := w.Verify(t.Context(), by, keeper.VerifyRequest{Key: "prod/app/ec", Items: []keeper.Item{{Input: []byte("message"), Signature: signed.Signatures[0]}}})
	if err != nil || !verdicts[0].Valid {
		t.Errorf("verify the message of a signed digest: %v, %v", verdicts, err)
	}
	_, err = w.Sign(t.Context(), by, keeper.SignRequest{Key: "prod/app/ec", Inputs: [][]byte{digest[:31]}, Prehashed: true})
	wantCode(t, "short digest", err, claviger.Invalid)
	_, err = w.Sign(t.Context(), by, keeper.SignRequest{Key: "prod/app/ed", Inputs: [][]byte{digest[:]}, Prehashed: true})
	wantCode(t, "digest for Ed25519", err, claviger.Invalid)
}

func TestMACAndSealAcrossVersions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.MAC, claviger.VerifyMAC, claviger.Seal, claviger.Open)
	w.key("prod/app/mac", claviger.HMACSHA256)
	w.key("prod/app/box", claviger.AES256GCM)
	var macs []keeper.Item
	var boxes []keeper.SealedItem
	for range 2 {
		m, err := w.MAC(t.Context(), by, keeper.MACRequest{Key: "prod/app/mac", Inputs: [][]byte{[]byte("in")}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := w.Seal(t.Context(), by, keeper.SealRequest{Key: "prod/app/box", Items: []keeper.Plain{{Plaintext: []byte("secret"), AssociatedData: []byte("ad")}}})
		if err != nil {
			t.Fatal(err)
		}
		macs = append(macs, keeper.Item{Input: []byte("in"), Signature: m.MACs[0]})
		boxes = append(boxes, keeper.SealedItem{Sealed: s.Sealed[0], AssociatedData: []byte("ad")})
		for _, key := range []string{"prod/app/mac", "prod/app/box"} {
			if _, err := w.Rotate(t.Context(), w.op, key, "test", 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	macs = append(macs, keeper.Item{Input: []byte("in"), Signature: macs[0].Signature, Version: 2}, keeper.Item{Input: []byte("no"), Signature: macs[0].Signature})
	verdicts, err := w.VerifyMAC(t.Context(), by, keeper.VerifyMACRequest{Key: "prod/app/mac", Items: macs})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint32{1, 2, 0, 0} {
		if verdicts[i].Version != want || verdicts[i].Valid != (want > 0) {
			t.Errorf("MAC %d: %+v, want version %d", i, verdicts[i], want)
		}
	}
	boxes = append(boxes, keeper.SealedItem{Sealed: boxes[0].Sealed, AssociatedData: []byte("other")}, keeper.SealedItem{Sealed: []byte{1}}, keeper.SealedItem{})
	opened, err := w.Keeper.Open(t.Context(), by, keeper.OpenRequest{Key: "prod/app/box", Items: boxes})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint32{1, 2, 0, 0, 0} {
		if opened[i].Version != want || opened[i].OK != (want > 0) || (want > 0) != (string(opened[i].Plaintext) == "secret") {
			t.Errorf("box %d: %+v, want version %d", i, opened[i], want)
		}
	}
}

func TestLimitsOfARequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tc := range map[string]struct {
		inputs [][]byte
		want   claviger.Code
	}{
		"none":      {nil, claviger.Invalid},
		"too many":  {make([][]byte, keeper.MaxItems+1), claviger.TooLarge},
		"too large": {[][]byte{make([]byte, keeper.MaxInput+1)}, claviger.TooLarge},
		"together":  {[][]byte{make([]byte, 1<<20), make([]byte, 1<<20), make([]byte, 1<<20), make([]byte, 1<<20), {1}}, claviger.TooLarge},
	} {
		_, err := w.Sign(t.Context(), w.op, keeper.SignRequest{Key: "prod/a/b", Inputs: tc.inputs})
		wantCode(t, name, err, tc.want)
	}
}

func TestCountsAreExactAfterAStop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := openWorld(t, dir)
	by := w.caller(7)
	g := w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Sign, claviger.Verify)
	w.key("prod/app/key", claviger.Ed25519)
	for range 5 {
		if err := sign(w, by, "prod/app/key"); err != nil {
			t.Fatal(err)
		}
	}
	check := func(w *world) {
		t.Helper()
		view, err := w.Key(t.Context(), w.op, "prod/app/key")
		if err != nil {
			t.Fatal(err)
		}
		grant, err := w.Grant(t.Context(), w.op, string(g.ID))
		if err != nil {
			t.Fatal(err)
		}
		if view.Use.Count != 5 || view.VersionUse[1].Count != 5 || grant.Use.Count != 5 || view.Use.Last.IsZero() {
			t.Errorf("key %+v, version %+v, grant %+v, want 5 of each", view.Use, view.VersionUse, grant.Use)
		}
	}
	check(w)
	w.close()
	check(openWorld(t, dir))
}

// What is as large as a request may be, sealed, opens again.
func TestLargestSealOpens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.key("prod/app/box", claviger.AES256GCM)
	w.grant(by, "prod/app/box", claviger.Conditions{}, claviger.Seal, claviger.Open)
	items := make([]keeper.Plain, keeper.MaxTotal/keeper.MaxInput)
	for i := range items {
		items[i].Plaintext = bytes.Repeat([]byte{byte(i)}, keeper.MaxInput)
	}
	sealed, err := w.Seal(t.Context(), by, keeper.SealRequest{Key: "prod/app/box", Items: items})
	if err != nil {
		t.Fatal(err)
	}
	back := make([]keeper.SealedItem, len(sealed.Sealed))
	for i, s := range sealed.Sealed {
		back[i].Sealed = s
	}
	opened, err := w.Keeper.Open(t.Context(), by, keeper.OpenRequest{Key: "prod/app/box", Items: back})
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range opened {
		if !o.OK || !bytes.Equal(o.Plaintext, items[i].Plaintext) {
			t.Errorf("item %d did not open", i)
		}
	}
	back[0].Sealed = append(back[0].Sealed, 0)
	_, err = w.Keeper.Open(t.Context(), by, keeper.OpenRequest{Key: "prod/app/box", Items: back})
	wantCode(t, "one byte more", err, claviger.TooLarge)
}
