//go:build cgo

package p11d_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/p11"
	"claviger.dev/internal/p11d/p11dtest"
)

// attack runs claviger-p11d -probe on keys.
func attack(t testing.TB, k *p11dtest.Token, args []string, targets ...p11.Target) (results []p11.Result, said string) {
	t.Helper()
	var in, out, stderr bytes.Buffer
	for _, target := range targets {
		must(t, json.NewEncoder(&in).Encode(target))
	}
	cmd := exec.CommandContext(t.Context(), program, append(append(k.Args(""), "-probe"), args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	for d := json.NewDecoder(&out); d.More(); {
		var r p11.Result
		must(t, d.Decode(&r))
		results = append(results, r)
	}
	if len(results) != len(targets) {
		t.Fatalf("%d results for %d targets", len(results), len(targets))
	}
	return results, stderr.String()
}

func targetOf(m custody.Material, made custody.Made) p11.Target {
	return p11.Target{
		Key: "test/app/key", KeyID: m.Binding.KeyID, Version: m.Binding.Version, Algorithm: m.Binding.Algorithm, Recipe: m.Binding.Recipe,
		Origin: m.Binding.Origin, Reference: made.Reference, Public: made.Public, Fingerprint: made.Fingerprint.String(),
	}
}

func by(attempts []claviger.Attempt, v claviger.Verdict) (probes []string) {
	for _, a := range attempts {
		if a.Verdict == v {
			probes = append(probes, a.Probe)
		}
	}
	return probes
}

// TestCleanToken: no false alarm, from within and from without, and nothing
// left behind.
func TestCleanToken(t *testing.T) {
	t.Parallel()
	c, k := start(t)
	var targets []p11.Target
	for _, a := range []claviger.Algorithm{claviger.ECDSAP256, claviger.ECDSAP384, claviger.Ed25519, claviger.HMACSHA256, claviger.AES256GCM, "rsa-2048-pss-sha256"} {
		m, made := generate(t, c, a)
		targets = append(targets, targetOf(m, made))
		p, err := c.Probe(t.Context(), m, false)
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		check(t, "within "+string(a), p.Level, p.Finding, p.Attempts)
	}
	for range 194 {
		m, made := generate(t, c, claviger.ECDSAP256)
		targets = append(targets, targetOf(m, made))
	}
	before := 0
	library(t, k, func(m *pkcs11.Ctx, s pkcs11.SessionHandle) { before = count(t, m, s) })
	results, _ := attack(t, k, nil, targets...)
	for i, r := range results {
		if r.Error != "" {
			t.Fatalf("%s: %s", targets[i].Algorithm, r.Error)
		}
		check(t, "without "+string(targets[i].Algorithm), r.Level, r.Finding, r.Attempts)
		if held := by(r.Attempts, claviger.Held); !slices.Contains(held, "p11.no-login") {
			t.Errorf("%s: use without a login was not tried", targets[i].Algorithm)
		}
	}
	library(t, k, func(m *pkcs11.Ctx, s pkcs11.SessionHandle) {
		if after := count(t, m, s); after != before {
			t.Errorf("%d objects before, %d after", before, after)
		}
	})
}

func check(t *testing.T, where string, level claviger.Level, finding string, attempts []claviger.Attempt) {
	t.Helper()
	if level != claviger.Isolated || finding != "" || len(by(attempts, claviger.Held)) < 9 {
		t.Errorf("%s: level %s, finding %q, %d held", where, level, finding, len(by(attempts, claviger.Held)))
	}
	for _, a := range attempts {
		if a.Verdict != claviger.Held && a.Verdict != claviger.NotAttempted || a.Verdict == claviger.Held && a.Control == "" {
			t.Errorf("%s: %+v", where, a)
		}
	}
}

// imported makes a P-256 key outside and puts it into the token.
func imported(t *testing.T, m *pkcs11.Ctx, s pkcs11.SessionHandle, named template) {
	t.Helper()
	half := template{pkcs11.CKA_TOKEN: false, pkcs11.CKA_EC_PARAMS: p256}
	public, private, err := m.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
		half.with(nil), template{pkcs11.CKA_TOKEN: false, pkcs11.CKA_SENSITIVE: false, pkcs11.CKA_EXTRACTABLE: true}.with(nil))
	must(t, err)
	value, err := m.GetAttributeValue(s, private, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)})
	must(t, err)
	point, err := m.GetAttributeValue(s, public, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, nil)})
	must(t, err)
	key := template{pkcs11.CKA_CLASS: pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_KEY_TYPE: pkcs11.CKK_EC, pkcs11.CKA_EC_PARAMS: p256, pkcs11.CKA_VALUE: value[0].Value}
	for k, v := range named {
		key[k] = v
	}
	_, err = m.CreateObject(s, good.with(key))
	must(t, err)
	_, err = m.CreateObject(s, named.with(template{pkcs11.CKA_CLASS: pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_KEY_TYPE: pkcs11.CKK_EC,
		pkcs11.CKA_EC_PARAMS: p256, pkcs11.CKA_EC_POINT: point[0].Value, pkcs11.CKA_TOKEN: true}))
	must(t, err)
}

// TestMisconfigured builds each misapplication on purpose.
func TestMisconfigured(t *testing.T) {
	t.Parallel()
	pair := func(change template) func(*testing.T, *pkcs11.Ctx, pkcs11.SessionHandle, template) {
		return func(t *testing.T, m *pkcs11.Ctx, s pkcs11.SessionHandle, named template) {
			makePair(t, m, s, named[pkcs11.CKA_LABEL].(string), named[pkcs11.CKA_ID].([]byte), change)
		}
	}
	for name, test := range map[string]struct {
		build func(*testing.T, *pkcs11.Ctx, pkcs11.SessionHandle, template)
		leaks []string // exactly these
	}{
		"good": {build: pair(nil)},
		"sensitive but extractable": {pair(template{pkcs11.CKA_EXTRACTABLE: true}),
			[]string{"p11.attributes", "p11.rewrap", "p11.wrap-aes-key-wrap", "p11.wrap-aes-key-wrap-pad"}},
		"locked later": {func(t *testing.T, m *pkcs11.Ctx, s pkcs11.SessionHandle, named template) {
			_, o := makePair(t, m, s, named[pkcs11.CKA_LABEL].(string), named[pkcs11.CKA_ID].([]byte), template{pkcs11.CKA_EXTRACTABLE: true, pkcs11.CKA_MODIFIABLE: true})
			must(t, m.SetAttributeValue(s, o, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false)}))
		}, []string{"p11.attributes", "p11.set-attributes"}},
		"imported":    {imported, []string{"p11.attributes"}},
		"private off": {pair(template{pkcs11.CKA_PRIVATE: false}), []string{"p11.attributes", "p11.no-login", "p11.token-private-off"}},
		"modifiable":  {pair(template{pkcs11.CKA_MODIFIABLE: true}), []string{"p11.attributes", "p11.set-attributes"}},
		"copyable":    {pair(template{pkcs11.CKA_COPYABLE: true}), []string{"p11.attributes"}},
		"may derive":  {pair(template{pkcs11.CKA_DERIVE: true}), []string{"p11.attributes", "p11.derive"}},
		"default template": {func(t *testing.T, m *pkcs11.Ctx, s pkcs11.SessionHandle, named template) {
			_, _, err := m.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
				named.with(template{pkcs11.CKA_TOKEN: true, pkcs11.CKA_EC_PARAMS: p256}), named.with(template{pkcs11.CKA_TOKEN: true}))
			must(t, err)
		}, []string{"p11.attributes", "p11.copy", "p11.set-attributes"}},
		"readable": {pair(template{pkcs11.CKA_SENSITIVE: false, pkcs11.CKA_EXTRACTABLE: true}),
			[]string{"p11.attributes", "p11.rewrap", "p11.value", "p11.wrap-aes-key-wrap", "p11.wrap-aes-key-wrap-pad"}},
		"wrap and decrypt elsewhere in the token": {func(t *testing.T, m *pkcs11.Ctx, s pkcs11.SessionHandle, named template) {
			pair(nil)(t, m, s, named)
			_, err := m.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template{
				pkcs11.CKA_TOKEN: true, pkcs11.CKA_LABEL: "clulow", pkcs11.CKA_WRAP: true, pkcs11.CKA_DECRYPT: true, pkcs11.CKA_UNWRAP: false, pkcs11.CKA_ENCRYPT: false,
				pkcs11.CKA_VALUE_LEN: 32}.with(nil))
			must(t, err)
		}, []string{"p11.token-wrap-decrypt", "p11.token-wrap-untrusted"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := p11dtest.NewToken(t)
			library(t, k, func(m *pkcs11.Ctx, s pkcs11.SessionHandle) {
				test.build(t, m, s, template{pkcs11.CKA_LABEL: "built on purpose", pkcs11.CKA_ID: []byte{1, 2, 3}})
			})
			c, _ := p11dtest.Client(t, program, k.Args("")...)
			b := custodytest.Binding(claviger.ECDSAP256, claviger.Generated)
			made, err := c.Bind(t.Context(), b, "pkcs11:object=built%20on%20purpose;type=private")
			must(t, err)
			m := custody.Material{Binding: b, Blob: made.Blob, Fingerprint: made.Fingerprint}
			sigs, err := c.Sign(t.Context(), m, [][]byte{[]byte("m")}, false)
			if err != nil || !custodytest.Verify(b.Algorithm, made.Public, []byte("m"), sigs[0]) {
				t.Errorf("a bound key does not sign: %v", err)
			}
			want := map[bool]claviger.Level{true: claviger.Exposed, false: claviger.Isolated}[len(test.leaks) > 0]
			within, err := c.Probe(t.Context(), m, false)
			must(t, err)
			results, _ := attack(t, k, nil, targetOf(m, made))
			without := results[0]
			if within.Level != want || without.Level != want || (within.Finding != "") != (want == claviger.Exposed) {
				t.Errorf("level %s (%s) from within, %s (%s) from without; want %s", within.Level, within.Finding, without.Level, without.Finding, want)
			}
			leaks := by(without.Attempts, claviger.Leaked)
			slices.Sort(leaks)
			if diff := cmp.Diff(test.leaks, leaks); diff != "" {
				t.Errorf("leaks (-want +got):\n%s", diff)
			}
			if broken := by(without.Attempts, claviger.Broken); len(broken) > 0 {
				t.Errorf("broken: %v", broken)
			}
			atBinding := want
			if name == "wrap and decrypt elsewhere in the token" {
				atBinding = claviger.Isolated // of the token, not of the key
			}
			if made.Level != atBinding {
				t.Errorf("bound at level %s, want %s", made.Level, atBinding)
			}
		})
	}
}

// TestOpenFiles: what other users may read is told.
func TestOpenFiles(t *testing.T) {
	t.Parallel()
	c, k := start(t)
	m, made := generate(t, c, claviger.ECDSAP256)
	must(t, exec.Command("chmod", "-R", "a+rX", k.Files()).Run())
	results, _ := attack(t, k, nil, targetOf(m, made))
	if leaks := by(results[0].Attempts, claviger.Leaked); !slices.Equal(leaks, []string{"p11.token-files"}) || results[0].Level != claviger.Exposed {
		t.Errorf("%v, %s", leaks, results[0].Level)
	}
}

// TestLoud: the attempts on PINs are made on the throw-away token alone, are
// announced, and leave the token as it was.
func TestLoud(t *testing.T) {
	t.Parallel()
	c, k := start(t)
	m, made := generate(t, c, claviger.ECDSAP256)
	officer := filepath.Join(k.Dir, "so-pin")
	must(t, exec.Command("sh", "-c", fmt.Sprintf("umask 077; echo %s > %s", p11dtest.OfficerPIN, officer)).Run())
	k.Tool(t, "softhsm2-util", "--init-token", "--free", "--label", "throw-away", "--so-pin", p11dtest.OfficerPIN, "--pin", p11dtest.PIN)
	args := []string{"-loud", "-so-pin-file", officer, "-throw-away", "pkcs11:token=throw-away?pin-source=file:" + k.PINFile}
	for range 2 {
		results, said := attack(t, k, args, targetOf(m, made))
		if !strings.Contains(said, "LOUD") {
			t.Errorf("not announced: %q", said)
		}
		r := results[0]
		if !slices.Contains(by(r.Attempts, claviger.Held), "p11.so-takeover") || !slices.Equal(by(r.Attempts, claviger.Leaked), []string{"p11.pin-lockout"}) {
			t.Errorf("%+v", r)
		}
	}
	out, err := exec.Command(program, append(append(k.Args(""), "-probe"), "-loud", "-so-pin-file", officer,
		"-throw-away", "pkcs11:token=claviger%20test?pin-source=file:"+k.PINFile)...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is the one that is probed") {
		t.Errorf("the token itself thrown away: %v\n%s", err, out)
	}
	if _, err := c.Sign(t.Context(), m, [][]byte{nil}, false); err != nil {
		t.Error(err)
	}
}

// TestProbeRefusesOthers: a target whose key is another's is no key of ours.
func TestProbeRefusesOthers(t *testing.T) {
	t.Parallel()
	c, k := start(t)
	m, made := generate(t, c, claviger.ECDSAP256)
	_, other := generate(t, c, claviger.ECDSAP256)
	swapped, wrong, gone := targetOf(m, made), targetOf(m, made), targetOf(m, made)
	swapped.Reference = other.Reference
	wrong.Fingerprint = other.Fingerprint.String()
	gone.Reference = "pkcs11:id=%77"
	results, _ := attack(t, k, nil, swapped, wrong, gone)
	for i, r := range results {
		if r.Error == "" || r.Level != "" || len(r.Attempts) > 0 {
			t.Errorf("%d: %+v", i, r)
		}
	}
}
