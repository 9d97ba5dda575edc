package evidence_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"claviger.dev"
	"claviger.dev/internal/evidence"
)

// What a hostile run says of itself comes back in no error at length.
func TestErrorsAreShort(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	text, err := w.run.Encode()
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("A", 1<<20)
	for name, change := range map[string][2]string{
		"a time":      {`"started":"`, `"started":"` + long},
		"a verdict":   {`"verdict":"held"`, `"verdict":"` + long + `"`},
		"a custodian": {`"kind":"soft"`, `"kind":"\u009b31m` + long + `"`},
		"a name":      {`"name":"prod/app/k0"`, `"name":"` + long + `"`},
		"a number":    {`"version":1`, `"version":1` + strings.Repeat("0", 1<<20)},
		"no number":   {`"version":1`, `"version":NaN`},
		"a negative":  {`"version":1`, `"version":-1`},
		"a member":    {`"version":1`, `"version":1,"version":2`},
	} {
		hostile := bytes.Replace(text, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(hostile, text) {
			t.Fatalf("%s: nothing was changed", name)
		}
		_, err := evidence.ParseRun(hostile)
		if err == nil || claviger.CodeOf(err) != claviger.Invalid || len(err.Error()) > evidence.MaxText {
			t.Errorf("%s: %.100v (%d bytes), want a short claviger.Invalid", name, err, len(err.Error()))
		}
	}
}

// A text that a terminal would obey is in no statement.
func TestTextsPrint(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"escape": "\x1b[2J", "8-bit escape": "\u009b2J", "right to left": "\u202egnp.exe", "a new line": "a\nb", "deleted": "\x7f", "no UTF-8": "\xff",
		"of no width": "a\u200bb",
	} {
		w := newWorld(t)
		w.run.Host.Name = text
		if _, err := w.run.Encode(); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		w.run.Host.Name, w.run.Groups = "host", nil
		for i := range w.run.Results {
			w.run.Results[i].Groups = []int{}
		}
		w.run.Collect().Add("the store", []claviger.Attempt{{Probe: "x", Tried: text, Result: text, Verdict: claviger.Held, Control: text}}, 0)
		if _, err := w.run.Encode(); err != nil {
			t.Errorf("%s, collected: %v", name, err)
		}
	}
	w := newWorld(t)
	w.run.Host.Name = "Schlüssel-Rechner 鍵"
	if _, err := w.run.Encode(); err != nil {
		t.Errorf("a text that prints: %v", err)
	}
}

// A server signs no run whose end would make its statement stay fresh, or let
// what has expired be valid.
func TestTimely(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		age  time.Duration
		want claviger.Code
	}{
		"now": {0, ""}, "a slow one": {50 * time.Minute, ""}, "a clock ahead": {-4 * time.Minute, ""},
		"next year": {-365 * 24 * time.Hour, claviger.Invalid}, "yesterday": {24 * time.Hour, claviger.Invalid}, "soon": {-6 * time.Minute, claviger.Invalid},
	} {
		run := evidence.Run{Finished: now.Add(-test.age)}
		if err := run.Timely(now); claviger.CodeOf(err) != test.want {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// A software TPM that calls itself hardware is known by its certificate.
func TestSoftwareCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	name := must(asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 1, Bytes: []byte("id:00001014")}}))
	template := &x509.Certificate{SerialNumber: big.NewInt(4), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageKeyAgreement,
		BasicConstraintsValid: true, ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: name}}}
	w.run.Report(claviger.TPM).EKCertificates = [][]byte{w.maker.issue(template, must(tpm2.Pub(w.chip.ekArea)))}
	for test, want := range map[bool]claviger.Level{false: claviger.Isolated, true: claviger.Attested} {
		w.judge(test)
		if r := w.run.Results[3]; r.Level != want || !test && !strings.Contains(r.Finding, "software") || test && !strings.Contains(r.Finding, "test root") {
			t.Errorf("under a root that is for tests: %v: %s, %q, want %s", test, r.Level, r.Finding, want)
		}
	}
}
