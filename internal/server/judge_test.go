package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"math/big"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"claviger.dev"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/keeper"
)

// signerOf is a server's key for statements, and the pool with its CA.
func signerOf(t *testing.T) (keeper.Signer, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(root)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.CreateCertificate(rand.Reader, evidence.SignerTemplate(big.NewInt(2), ca.NotBefore, ca.NotAfter), parsed, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return keeper.Signer{Chain: [][]byte{leaf, root}, Sign: func(message []byte) ([]byte, error) {
		digest := sha256.Sum256(message)
		return ecdsa.SignASN1(rand.Reader, key, digest[:])
	}}, pool
}

// A custodian that did not answer shows nothing: its versions are not exposed
// by that, which would be for good; what leaked, or was exposed, is.
func TestJudgeRunOfWhatIsAway(t *testing.T) {
	t.Parallel()
	signer, roots := signerOf(t)
	here := keeper.CustodianReport{Device: claviger.Device{Kind: claviger.Soft, Software: true}, Level: claviger.Isolated}
	away := here
	away.Trouble = "no answer"
	for name, test := range map[string]struct {
		custodian keeper.CustodianReport
		own       claviger.Level
		verdict   claviger.Verdict
		want      claviger.Level
	}{
		"there":                     {here, claviger.Isolated, claviger.Held, claviger.Isolated},
		"away for a moment":         {away, claviger.Isolated, claviger.Held, claviger.Lapsed},
		"not examined":              {here, claviger.Lapsed, claviger.Held, claviger.Lapsed},
		"away, and leaked":          {away, claviger.Isolated, claviger.Leaked, claviger.Exposed},
		"not examined, and leaked":  {here, claviger.Lapsed, claviger.Leaked, claviger.Exposed},
		"away, and exposed before":  {away, claviger.Exposed, claviger.Held, claviger.Exposed},
		"there, and exposed before": {here, claviger.Exposed, claviger.Held, claviger.Exposed},
	} {
		now := time.Now().UTC()
		id := claviger.NewID(now)
		version := claviger.Version{Number: 1, Origin: claviger.Generated, State: claviger.Active}
		key := &claviger.Key{ID: id, Name: "prod/app/key", Algorithm: claviger.Ed25519, Custodian: claviger.Soft, Versions: []claviger.Version{version}}
		run := &evidence.Run{
			ID: claviger.NewID(now), Nonce: bytes.Repeat([]byte{7}, evidence.NonceSize), Started: now.Add(-time.Second), Finished: now,
			Results: []evidence.Result{{Subject: subjectOf(key, &version)}},
		}
		run.Collect().Add("the key process", []claviger.Attempt{{Probe: "soft.core", Verdict: test.verdict, Control: "leaked"}}, 0)
		shown, envelope, err := judgeRun(run, keeper.Facts{
			Keys: map[claviger.ID]*claviger.Key{id: key}, Own: []keeper.Shown{{Key: id, Version: 1, Level: test.own, Finding: "own"}},
			Custodians: []keeper.CustodianReport{test.custodian},
		}, signer, nil)
		if err != nil || shown[0].Level != test.want || test.want != claviger.Isolated && strings.TrimSpace(shown[0].Finding) == "" {
			t.Errorf("%s: %+v, %v, want %s", name, shown, err, test.want)
			continue
		}
		verified, err := evidence.Verify(envelope, evidence.Options{Roots: roots, Now: time.Now()})
		if err != nil || verified.Run.Results[0].Level != test.want {
			t.Errorf("%s: the statement does not verify: %v", name, err)
		}
	}
}
