package server

import (
	"crypto/rand"
	"time"

	"claviger.dev"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/keeper"
)

// DeviceRoots reads the roots that vouch for TPMs.
func (t TPM) DeviceRoots() (evidence.DeviceRoots, error) {
	var roots evidence.DeviceRoots
	for _, r := range t.Roots {
		certificates, err := r.Certificates()
		if err != nil {
			return nil, err
		}
		for _, c := range certificates {
			roots = append(roots, evidence.Root{Certificate: c, Name: r.Name, Test: r.Test})
		}
	}
	return roots, nil
}

// Judge returns what makes a level of what a custodian reports of a version.
// Of a TPM it asks for an attestation.
func Judge(roots evidence.DeviceRoots) func(keeper.Observed) (keeper.Judged, error) {
	return func(seen keeper.Observed) (keeper.Judged, error) {
		subject := subjectOf(seen.Key, seen.Version)
		c := evidence.Case{Subject: subject, Device: seen.Device, Reported: seen.Level}
		if len(seen.Attempts) > 0 {
			c.Attempts = [][]claviger.Attempt{seen.Attempts}
		}
		if seen.TPM != nil {
			nonce := make([]byte, evidence.NonceSize)
			_, _ = rand.Read(nonce) // crypto/rand.Read never fails
			a, err := seen.Attest(evidence.Challenge(nonce, subject.KeyID, subject.Version))
			if err != nil {
				return keeper.Judged{}, err
			}
			run := &evidence.Run{Nonce: nonce, Finished: time.Now()}
			report := reportOf(keeper.CustodianReport{Device: seen.Device, TPM: seen.TPM})
			result := &evidence.Result{Subject: subject, Attestation: &evidence.Attestation{KeyPublic: a.KeyPublic, Attest: a.Attest, Signature: a.Signature}}
			c.Proof = result.Prove(run, &report, roots)
		}
		level, finding := evidence.Judge(c)
		if finding == "" {
			finding = seen.Finding
		}
		return keeper.Judged{Level: level, Finding: finding}, nil
	}
}

// judgeRun sets in a run what the server itself knows, judges it, and signs the
// statement. Nothing that the run says of itself makes a level better than the
// custodians report.
func judgeRun(run *evidence.Run, facts keeper.Facts, signer keeper.Signer, roots evidence.DeviceRoots) ([]keeper.Shown, []byte, error) {
	run.Reports = nil
	for _, c := range facts.Custodians {
		if c.Trouble == "" {
			run.Reports = append(run.Reports, reportOf(c))
		}
	}
	for i := range run.Results {
		r, own := &run.Results[i], facts.Own[i]
		key := facts.Keys[own.Key]
		if subject := subjectOf(key, key.Version(own.Version)); r.Subject != subject {
			return nil, nil, claviger.Errorf(claviger.Conflict, "the run describes "+r.String()+" in another way than the server", "the key changed meanwhile: run evidence again")
		}
		r.Reported = own.Level
	}
	run.Judge(func(r *evidence.Result, rep *evidence.Report) evidence.Proof { return r.Prove(run, rep, roots) })
	shown := make([]keeper.Shown, len(run.Results))
	for i := range run.Results {
		r, own := &run.Results[i], facts.Own[i]
		if own.Level == claviger.Exposed || r.Level != claviger.Exposed && !own.Level.AtLeast(r.Level) {
			r.Level = own.Level
		}
		if r.Finding == "" || r.Level == own.Level && !own.Level.AtLeast(claviger.Isolated) && own.Finding != "" {
			r.Finding = own.Finding
		}
		shown[i] = keeper.Shown{Key: own.Key, Version: own.Version, Level: r.Level, Finding: r.Finding}
	}
	payload, err := run.Statement()
	if err != nil {
		return nil, nil, err
	}
	signature, err := signer.Sign(evidence.PAE(payload))
	if err != nil {
		return nil, nil, err
	}
	envelope, err := evidence.Envelop(payload, signature, signer.Chain[0])
	return shown, envelope, err
}

func subjectOf(key *claviger.Key, v *claviger.Version) evidence.Subject {
	return evidence.Subject{
		Name: key.Name, KeyID: key.ID, Version: v.Number, Algorithm: key.Algorithm, Custodian: key.Custodian,
		Origin: v.Origin, Fingerprint: v.Fingerprint.String(), Reference: v.Reference,
	}
}

func reportOf(c keeper.CustodianReport) evidence.Report {
	r := evidence.Report{Device: c.Device, Level: c.Level}
	if c.TPM != nil {
		r.AKPublic, r.EKPublic, r.EKCertificates, r.Bound = c.TPM.AKPublic, c.TPM.EKPublic, c.TPM.EKCertificates, c.TPM.Bound
	}
	return r
}
