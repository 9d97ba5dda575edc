package pubkey_test

import (
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"testing"

	"claviger.dev"
	"claviger.dev/pubkey"
	"github.com/c2sp/wycheproof"
)

// vectors are the Wycheproof files, with what the package does with them.
var vectors = []struct {
	file string
	alg  claviger.Algorithm
	enc  pubkey.Encoding
}{
	{"ed25519_test.json", claviger.Ed25519, pubkey.ASN1},
	{"ecdsa_secp256r1_sha256_test.json", claviger.ECDSAP256, pubkey.ASN1},
	{"ecdsa_secp256r1_sha256_p1363_test.json", claviger.ECDSAP256, pubkey.P1363},
	{"ecdsa_secp384r1_sha384_test.json", claviger.ECDSAP384, pubkey.ASN1},
	{"ecdsa_secp384r1_sha384_p1363_test.json", claviger.ECDSAP384, pubkey.P1363},
	{"mldsa_65_verify_test.json", claviger.MLDSA65, pubkey.ASN1},
	{"rsa_signature_2048_sha256_test.json", "rsa-2048-pkcs1-sha256", pubkey.ASN1},
	{"rsa_signature_2048_sha384_test.json", "rsa-2048-pkcs1-sha384", pubkey.ASN1},
	{"rsa_signature_2048_sha512_test.json", "rsa-2048-pkcs1-sha512", pubkey.ASN1},
	{"rsa_signature_3072_sha256_test.json", "rsa-3072-pkcs1-sha256", pubkey.ASN1},
	{"rsa_signature_3072_sha384_test.json", "rsa-3072-pkcs1-sha384", pubkey.ASN1},
	{"rsa_signature_3072_sha512_test.json", "rsa-3072-pkcs1-sha512", pubkey.ASN1},
	{"rsa_signature_4096_sha256_test.json", "rsa-4096-pkcs1-sha256", pubkey.ASN1},
	{"rsa_signature_4096_sha384_test.json", "rsa-4096-pkcs1-sha384", pubkey.ASN1},
	{"rsa_signature_4096_sha512_test.json", "rsa-4096-pkcs1-sha512", pubkey.ASN1},
	{"rsa_pss_2048_sha256_mgf1_32_test.json", "rsa-2048-pss-sha256", pubkey.ASN1},
	{"rsa_pss_2048_sha384_mgf1_48_test.json", "rsa-2048-pss-sha384", pubkey.ASN1},
	{"rsa_pss_misc_test.json", "rsa-2048-pss-sha512", pubkey.ASN1},
	{"rsa_pss_2048_sha256_mgf1_0_test.json", "rsa-2048-pss-sha256", pubkey.ASN1},      // another salt length
	{"rsa_pss_2048_sha256_mgf1sha1_20_test.json", "rsa-2048-pss-sha256", pubkey.ASN1}, // another mask hash
	{"rsa_pss_3072_sha256_mgf1_32_test.json", "rsa-3072-pss-sha256", pubkey.ASN1},
	{"rsa_pss_4096_sha256_mgf1_32_test.json", "rsa-4096-pss-sha256", pubkey.ASN1},
	{"rsa_pss_4096_sha384_mgf1_48_test.json", "rsa-4096-pss-sha384", pubkey.ASN1},
	{"rsa_pss_4096_sha512_mgf1_64_test.json", "rsa-4096-pss-sha512", pubkey.ASN1},
	{"rsa_pss_4096_sha512_mgf1_32_test.json", "rsa-4096-pss-sha512", pubkey.ASN1}, // another salt length
}

// without have no vectors of their own; they share every line of code with
// algorithms that do, and are tested against openssl.
var without = map[claviger.Algorithm]bool{"rsa-3072-pss-sha384": true, "rsa-3072-pss-sha512": true}

type group struct {
	PublicKey    json.RawMessage `json:"publicKey"`
	PublicKeyDer string          `json:"publicKeyDer"`
	SHA          string          `json:"sha"`
	MGF          string          `json:"mgfSha"`
	Salt         int             `json:"sLen"`
	Tests        []vector        `json:"tests"`
}

type vector struct {
	ID      int    `json:"tcId"`
	Comment string `json:"comment"`
	Msg     string `json:"msg"`
	Sig     string `json:"sig"`
	Ctx     string `json:"ctx"`
	Result  string `json:"result"`
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ours reports whether the group's parameters are the algorithm's: exponent,
// hash, mask hash and salt as long as the hash.
func (g group) ours(alg claviger.Algorithm) bool {
	p, ok := alg.RSA()
	var public struct{ PublicExponent string }
	return !ok || json.Unmarshal(g.PublicKey, &public) == nil && public.PublicExponent == "010001" &&
		g.SHA == p.Hash.String() && (!p.PSS || g.MGF == p.Hash.String() && g.Salt == p.Hash.Size())
}

func TestWycheproof(t *testing.T) {
	t.Parallel()
	covered := make(map[claviger.Algorithm]int)
	for _, v := range vectors {
		b, err := fs.ReadFile(wycheproof.TestVectors, v.file)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Count  int     `json:"numberOfTests"`
			Groups []group `json:"testGroups"`
		}
		if err := json.Unmarshal(b, &file); err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, g := range file.Groups {
			seen += len(g.Tests)
			covered[v.alg] += g.check(t, v.file, v.alg, v.enc)
		}
		if seen != file.Count || seen == 0 {
			t.Errorf("%s: %d tests, and says that it has %d", v.file, seen, file.Count)
		}
	}
	for _, alg := range claviger.Algorithms() {
		if alg.Asymmetric() && !without[alg] && covered[alg] == 0 {
			t.Errorf("%s: no valid vector was verified", alg)
		}
	}
}

// check runs a group and returns how many valid signatures verified.
func (g group) check(t *testing.T, file string, alg claviger.Algorithm, enc pubkey.Encoding) (valid int) {
	t.Helper()
	var key pubkey.Key
	var err error
	if alg == claviger.MLDSA65 {
		var raw string
		if err := json.Unmarshal(g.PublicKey, &raw); err != nil {
			t.Fatal(err)
		}
		key, err = pubkey.Parse(alg, unhex(t, raw))
	} else {
		key, err = pubkey.FromSPKI(alg, unhex(t, g.PublicKeyDer))
	}
	for _, tc := range g.Tests {
		if tc.Ctx != "" {
			continue // Claviger signs with the empty context alone
		}
		var want bool
		switch tc.Result {
		case "valid":
			want = g.ours(alg)
		case "invalid", "acceptable": // acceptable: forms that strict readers refuse
			if !g.ours(alg) {
				continue // invalid by the group's parameters says nothing about ours
			}
		default:
			t.Fatalf("%s: unknown result %q", file, tc.Result)
		}
		if err != nil {
			if want {
				t.Errorf("%s %d (%s): the key is refused: %v", file, tc.ID, tc.Comment, err)
			}
			continue
		}
		got := key.Verify(unhex(t, tc.Msg), unhex(t, tc.Sig), enc)
		if got != want {
			t.Errorf("%s %d (%s): verified %v; want %v", file, tc.ID, tc.Comment, got, want)
		}
		if got {
			valid++
		}
	}
	return valid
}
