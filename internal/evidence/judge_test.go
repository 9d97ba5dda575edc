package evidence_test

import (
	"testing"

	"claviger.dev"
	"claviger.dev/internal/evidence"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	attempt := func(v claviger.Verdict) [][]claviger.Attempt {
		return [][]claviger.Attempt{{{Probe: "x.first", Verdict: claviger.Held, Control: "leaked"}, {Probe: "x.try", Verdict: v, Result: "what came", Control: "leaked", Reason: "why"}}}
	}
	proven := evidence.Proof{Certified: true, Bound: true, Root: "Maker"}
	tests := []struct {
		name     string
		at       claviger.Custodian
		imported bool
		software bool
		reported claviger.Level
		proof    evidence.Proof
		attempts [][]claviger.Attempt
		level    claviger.Level
		finding  string
	}{
		{name: "soft held", at: claviger.Soft, reported: claviger.Isolated, attempts: attempt(claviger.Held), level: claviger.Isolated},
		{name: "soft says more than it can be", at: claviger.Soft, reported: claviger.Attested, level: claviger.Isolated},
		{name: "soft without hardening", at: claviger.Soft, reported: claviger.Exposed, level: claviger.Exposed, finding: "the custodian reports exposed"},
		{name: "soft leaked", at: claviger.Soft, reported: claviger.Isolated, attempts: attempt(claviger.Leaked), level: claviger.Exposed, finding: "x.try leaked: what came"},
		{name: "soft broken", at: claviger.Soft, reported: claviger.Isolated, attempts: attempt(claviger.Broken), level: claviger.Isolated, finding: "x.try is broken: why"},
		{name: "held without a control", at: claviger.P11, reported: claviger.Hardware, attempts: [][]claviger.Attempt{{{Probe: "x.try", Verdict: claviger.Held}}}, level: claviger.Isolated, finding: "x.try is broken: it held without a control"},
		{name: "a verdict nobody knows", at: claviger.P11, reported: claviger.Hardware, attempts: attempt("fine"), level: claviger.Isolated, finding: "x.try is broken: why"},
		{name: "soft not attempted", at: claviger.Soft, reported: claviger.Isolated, attempts: attempt(claviger.NotAttempted), level: claviger.Isolated},
		{name: "soft imported", at: claviger.Soft, imported: true, reported: claviger.Isolated, level: claviger.Exposed, finding: "imported: the material has been outside"},
		{name: "imported is worse than broken", at: claviger.TPM, imported: true, proof: proven, attempts: attempt(claviger.Broken), level: claviger.Exposed, finding: "imported: the material has been outside"},
		{name: "nothing reported", at: claviger.Soft, level: claviger.Exposed, finding: "the custodian reports exposed"},
		{name: "p11 held", at: claviger.P11, reported: claviger.Hardware, attempts: attempt(claviger.Held), level: claviger.Hardware},
		{name: "p11 says attested", at: claviger.P11, reported: claviger.Attested, proof: proven, level: claviger.Hardware},
		{name: "p11 broken", at: claviger.P11, reported: claviger.Hardware, attempts: attempt(claviger.Broken), level: claviger.Isolated, finding: "x.try is broken: why"},
		{name: "p11 software", at: claviger.P11, software: true, reported: claviger.Hardware, attempts: attempt(claviger.Held), level: claviger.Isolated, finding: "the device is software: Maker Model"},
		{name: "p11 attributes wrong", at: claviger.P11, reported: claviger.Exposed, attempts: attempt(claviger.Held), level: claviger.Exposed, finding: "the custodian reports exposed"},
		{name: "tpm without attestation", at: claviger.TPM, reported: claviger.Hardware, level: claviger.Isolated, finding: "there is no attestation"},
		{name: "tpm attestation refused", at: claviger.TPM, reported: claviger.Hardware, proof: evidence.Proof{Finding: "the nonce is another"}, level: claviger.Isolated, finding: "the attestation is refused: the nonce is another"},
		{name: "tpm certified", at: claviger.TPM, reported: claviger.Hardware, proof: evidence.Proof{Certified: true}, level: claviger.Hardware},
		{name: "tpm certified, root without binding", at: claviger.TPM, reported: claviger.Hardware, proof: evidence.Proof{Certified: true, Root: "Maker"}, level: claviger.Hardware},
		{name: "tpm attested", at: claviger.TPM, reported: claviger.Hardware, proof: proven, level: claviger.Attested},
		{name: "tpm attested but leaked", at: claviger.TPM, reported: claviger.Hardware, proof: proven, attempts: attempt(claviger.Leaked), level: claviger.Exposed, finding: "x.try leaked: what came"},
		{name: "tpm attested but broken", at: claviger.TPM, reported: claviger.Hardware, proof: proven, attempts: attempt(claviger.Broken), level: claviger.Isolated, finding: "x.try is broken: why"},
		{name: "tpm software", at: claviger.TPM, software: true, reported: claviger.Hardware, proof: proven, level: claviger.Isolated, finding: "the device is software: Maker Model"},
		{name: "tpm software, test root", at: claviger.TPM, software: true, reported: claviger.Isolated, proof: evidence.Proof{Certified: true, Bound: true, Root: "Test CA", Test: true}, level: claviger.Attested, finding: "attested by a test root, which vouches for no hardware: Test CA"},
		{name: "tpm cloned", at: claviger.TPM, reported: claviger.Hardware, proof: evidence.Proof{Certified: true, Bound: true, Root: "Maker", Exposes: true, Finding: "the reset count went back"}, level: claviger.Exposed, finding: "the reset count went back"},
		{name: "no such custodian", at: "cloud", reported: claviger.Attested, level: claviger.Exposed, finding: `custodian "cloud" is not known`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := evidence.Case{Reported: tt.reported, Proof: tt.proof, Attempts: tt.attempts,
				Device:  claviger.Device{Kind: tt.at, Manufacturer: "Maker", Model: "Model", Software: tt.software},
				Subject: evidence.Subject{Custodian: tt.at, Origin: claviger.Generated}}
			if tt.imported {
				c.Subject.Origin = claviger.Imported
			}
			if level, finding := evidence.Judge(c); level != tt.level || finding != tt.finding {
				t.Errorf("Judge = %s, %q, want %s, %q", level, finding, tt.level, tt.finding)
			}
		})
	}
}
