package servertest_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/server/servertest"
)

// runOf is a run on the active version of keys, with one attempt.
func runOf(attempt claviger.Attempt, keys ...*clavigerv1.Key) *evidence.Run {
	now := time.Now().UTC()
	run := &evidence.Run{
		ID: claviger.NewID(now), Nonce: bytes.Repeat([]byte{7}, evidence.NonceSize), Started: now.Add(-time.Second), Finished: now,
		Host: evidence.Host{Name: "host", Kernel: "6", Arch: "amd64"},
	}
	for _, k := range keys {
		v := k.Versions[0]
		result := evidence.Result{Subject: evidence.Subject{
			Name: claviger.Name(k.Name), KeyID: claviger.ID(k.Id), Version: v.Number, Algorithm: claviger.Algorithm(k.Algorithm),
			Custodian: claviger.Custodian(k.Custodian), Origin: claviger.Origin(v.Origin), Fingerprint: v.Fingerprint,
		}}
		run.Results = append(run.Results, result)
	}
	// What a run says of itself is overwritten.
	run.Results[0].Level, run.Results[0].Reported = claviger.Attested, claviger.Attested
	c := run.Collect()
	all := make([]int, len(keys))
	for i := range all {
		all[i] = i
	}
	c.Add("the key process", []claviger.Attempt{attempt}, all...)
	return run
}

// A run is submitted, judged beside what the custodians report, signed, and
// checked offline.
func TestEvidenceIsSubmitted(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	a, b := s.Key(t, "dev/app/a", claviger.Ed25519), s.Key(t, "dev/app/b", claviger.HMACSHA256)
	operator := s.Local(t)
	submit := func(c *servertest.Client, run *evidence.Run) ([]byte, error) {
		t.Helper()
		text, err := run.Encode()
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.SubmitEvidence(t.Context(), connect.NewRequest(&clavigerv1.SubmitEvidenceRequest{Run: text}))
		if err != nil {
			return nil, err
		}
		return r.Msg.Envelope, nil
	}
	held := claviger.Attempt{Probe: "soft.environ", Tried: "read the environment", Verdict: claviger.Held, Control: "leaked"}
	run := runOf(held, a, b)
	envelope, err := submit(operator, run)
	if err != nil {
		t.Fatal(err)
	}
	options := evidence.Options{Roots: s.Roots, Nonce: run.Nonce, Now: time.Now()}
	verified, err := evidence.Verify(envelope, options)
	if err != nil {
		t.Fatalf("the statement does not verify: %v", err)
	}
	custodians, err := operator.ListCustodians(t.Context(), connect.NewRequest(&clavigerv1.ListCustodiansRequest{}))
	if err != nil || len(custodians.Msg.Custodians) != 1 || custodians.Msg.ServerPid == 0 || custodians.Msg.Custodians[0].Pid == 0 {
		t.Fatalf("custodians: %v, %v", custodians, err)
	}
	for _, r := range verified.Run.Results {
		if string(r.Level) != custodians.Msg.Custodians[0].Level {
			t.Errorf("%s is %s, and the key process reports %s", r, r.Level, custodians.Msg.Custodians[0].Level)
		}
	}
	if by := verified.Run.By; by == "" || len(verified.Run.Reports) != 1 {
		t.Errorf("the statement is by %q with %d reports", by, len(verified.Run.Reports))
	}
	got, err := operator.GetStatement(t.Context(), connect.NewRequest(&clavigerv1.GetStatementRequest{}))
	if err != nil || got.Msg.Run != string(run.ID) || !bytes.Equal(got.Msg.Envelope, envelope) {
		t.Errorf("the statement is not kept: %v", err)
	}
	other := evidence.Options{Roots: servertest.Start(t, servertest.Options{}).Roots, Now: time.Now()}
	if _, err := evidence.Verify(envelope, other); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("under the roots of another server: %v", err)
	}

	_, err = submit(operator, run)
	wantCode(t, err, claviger.Conflict)
	altered := runOf(held, a)
	altered.Results[0].Fingerprint = strings.Repeat("0", 64)
	_, err = submit(operator, altered)
	wantCode(t, err, claviger.Conflict)
	_, err = operator.SubmitEvidence(t.Context(), connect.NewRequest(&clavigerv1.SubmitEvidenceRequest{Run: []byte("{}")}))
	wantCode(t, err, claviger.Invalid)
	certificate, _ := s.Enrol(t, "web")
	_, err = submit(s.Remote(t, certificate), runOf(held, a))
	wantCode(t, err, claviger.Denied)

	leaked := claviger.Attempt{Probe: "soft.core", Tried: "dump the core", Verdict: claviger.Leaked, Control: "leaked", Result: "at 4711"}
	envelope, err = submit(operator, runOf(leaked, a))
	if err != nil {
		t.Fatal(err)
	}
	if verified, err = evidence.Verify(envelope, evidence.Options{Roots: s.Roots, Now: time.Now()}); err != nil || verified.Run.Results[0].Level != claviger.Exposed {
		t.Errorf("a leak: %v", err)
	}
	key, err := operator.GetKey(t.Context(), connect.NewRequest(&clavigerv1.GetKeyRequest{Key: "dev/app/a"}))
	if err != nil || key.Msg.Level != string(claviger.Exposed) || key.Msg.Finding == "" || key.Msg.Shown == nil {
		t.Errorf("the key after a leak: %v, %v", key.Msg, err)
	}
}
