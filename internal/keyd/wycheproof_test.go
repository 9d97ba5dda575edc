package keyd

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"

	"filippo.io/mldsa"
	"github.com/c2sp/wycheproof"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
)

// The signatures of others are verified by package pubkey; what is tested here
// is what the key process computes with keys that it holds.

type octets []byte

func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.DecodeString(string(text))
	return err
}

// corpus reads a file of Wycheproof whose groups are G and refuses fields that
// it does not know.
func corpus[G any](t *testing.T, name string) []G {
	t.Helper()
	f, err := wycheproof.TestVectors.Open(name + "_test.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var file struct {
		Algorithm     string
		Schema        string
		NumberOfTests int
		Header, Notes json.RawMessage
		TestGroups    []G
	}
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if file.NumberOfTests == 0 || len(file.TestGroups) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return file.TestGroups
}

type vector struct {
	TcID                   int
	Comment, Result        string
	Flags                  []string
	Key, IV, AAD, Msg      octets
	CT, Tag, Sig, Ctx, Rnd octets
	Mu                     octets
}

// process returns one with nothing but an arena.
func process(t testing.TB) *Process {
	t.Helper()
	arena, err := hazmat.NewArena(hazmat.Config{Size: 1 << 20, Relaxed: true})
	if err != nil {
		t.Fatal(err)
	}
	return New(arena, nil)
}

// hold puts material into a slot, as loading does.
func (p *Process) hold(t testing.TB, a claviger.Algorithm, secret []byte) frames.Use {
	t.Helper()
	v := &slot{binding: frames.Binding{Algorithm: a}, fingerprint: claviger.Fingerprint{1}}
	var err error
	if signsWithPublic(a) {
		if v.public, err = publicHalf(a, secret); err != nil {
			t.Fatal(err)
		}
	}
	if v.secret, err = p.keep(secret); err != nil {
		t.Fatal(err)
	}
	return frames.Use{Slot: p.slots.add(v), Fingerprint: v.fingerprint}
}

func TestWycheproofGCM(t *testing.T) {
	t.Parallel()
	p, n := process(t), 0
	for _, g := range corpus[struct {
		IVSize, KeySize, TagSize int
		Type                     string
		Source                   json.RawMessage
		Tests                    []vector
	}](t, "aes_gcm") {
		if g.KeySize != 256 || g.IVSize != 96 || g.TagSize != 128 {
			continue // not offered
		}
		for _, v := range g.Tests {
			use := p.hold(t, claviger.AES256GCM, v.Key)
			resp, err := p.open(&frames.OpenRequest{Use: use, Items: []frames.Sealed{{
				Sealed: bytes.Join([][]byte{v.IV, v.CT, v.Tag}, nil), AssociatedData: v.AAD,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			got := resp.Opened[0]
			if got.OK != (v.Result == "valid") || got.OK && !bytes.Equal(got.Plaintext, v.Msg) {
				t.Errorf("test %d (%s): opened is %v, want %s", v.TcID, v.Comment, got.OK, v.Result)
			}
			n++
		}
	}
	if n < 50 {
		t.Errorf("%d vectors", n)
	}
}

func TestWycheproofHMAC(t *testing.T) {
	t.Parallel()
	for _, a := range []claviger.Algorithm{claviger.HMACSHA256, claviger.HMACSHA384, claviger.HMACSHA512} {
		p, valid := process(t), 0
		for _, g := range corpus[struct {
			KeySize, TagSize int
			Type             string
			Source           json.RawMessage
			Tests            []vector
		}](t, strings.ReplaceAll(string(a), "-", "_")) {
			for _, v := range g.Tests {
				resp, err := p.verifyMAC(&frames.VerifyMACRequest{Use: p.hold(t, a, v.Key), Inputs: [][]byte{v.Msg}, MACs: [][]byte{v.Tag}})
				if err != nil {
					t.Fatal(err)
				}
				want := v.Result == "valid" && g.TagSize == a.Hash().Size()*8 // a cut code is never accepted
				if resp.Valid[0] != want {
					t.Errorf("%s, test %d (%s): %v, want %v", a, v.TcID, v.Comment, resp.Valid[0], want)
				}
				if want {
					valid++
				}
			}
		}
		if valid < 20 {
			t.Errorf("%s: %d valid vectors", a, valid)
		}
	}
}

func TestWycheproofMLDSA(t *testing.T) {
	t.Parallel()
	p, n := process(t), 0
	for _, g := range corpus[struct {
		Type, PrivateKeyPkcs8  string
		PrivateSeed, PublicKey octets
		Source                 json.RawMessage
		Tests                  []vector
	}](t, "mldsa_65_sign_seed") {
		public, err := publicHalf(claviger.MLDSA65, g.PrivateSeed)
		if len(g.PrivateSeed) != 32 {
			if claviger.CodeOf(err) != claviger.Invalid {
				t.Errorf("a seed of %d bytes: %v", len(g.PrivateSeed), err)
			}
			continue
		}
		if err != nil || !bytes.Equal(public, g.PublicKey) {
			t.Errorf("public key of %x: %v, or another", g.PrivateSeed, err)
			continue
		}
		key, err := mldsa.NewPublicKey(mldsa.MLDSA65(), public)
		if err != nil {
			t.Fatal(err)
		}
		use := p.hold(t, claviger.MLDSA65, g.PrivateSeed)
		for _, v := range g.Tests {
			if len(v.Msg) == 0 && len(v.Mu) > 0 {
				continue // given by its digest alone
			}
			resp, err := p.sign(&frames.SignRequest{Use: use, Inputs: [][]byte{v.Msg}})
			if err != nil || mldsa.Verify(key, v.Msg, resp.Signatures[0], nil) != nil {
				t.Errorf("test %d (%s): %v, or the signature does not verify", v.TcID, v.Comment, err)
			}
			n++
		}
	}
	if n < 50 {
		t.Errorf("%d vectors", n)
	}
}

func TestWycheproofRSA(t *testing.T) {
	t.Parallel()
	p, n := process(t), 0
	hashes := map[string]string{"SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}
	for _, size := range []string{"2048", "3072", "4096"} {
		for _, g := range corpus[struct {
			Type, Sha, PrivateKeyPem, PrivateKeyPkcs8, KeyPem, KeyDer, KeyAsn string
			KeySize                                                           int
			PrivateKey, KeyJwk, PrivateKeyJwk, Source                         json.RawMessage
			Tests                                                             []vector
		}](t, "rsa_pkcs1_"+size+"_sig_gen") {
			if hashes[g.Sha] == "" {
				continue // not offered
			}
			a := claviger.Algorithm("rsa-" + size + "-pkcs1-" + hashes[g.Sha])
			block, _ := pem.Decode([]byte(g.PrivateKeyPem))
			if _, err := publicHalf(a, block.Bytes); err != nil {
				if claviger.CodeOf(err) != claviger.Invalid || !bytes.Contains(g.PrivateKey, []byte(`"publicExponent": "03"`)) {
					t.Errorf("%s: %v", a, err)
				}
				continue // an exponent below 65537 is refused
			}
			use := p.hold(t, a, block.Bytes)
			for _, v := range g.Tests {
				resp, err := p.sign(&frames.SignRequest{Use: use, Inputs: [][]byte{v.Msg}})
				if err != nil || !bytes.Equal(resp.Signatures[0], v.Sig) {
					t.Errorf("%s, test %d (%s): %v, or another signature", a, v.TcID, v.Comment, err)
				}
				n++
			}
		}
	}
	if n < 20 {
		t.Errorf("%d vectors", n)
	}
}
