package evidence

import (
	"crypto/x509"
	"encoding/hex"
	"errors"

	"claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/tpm/attest"
)

// Prove checks the attestation of a result against the report of its TPM, with
// the run's nonce: who certified what, the attributes of both keys, that the
// key is the one that the result speaks of, and how far the endorsement
// certificate leads. The roots are asked as of the end of the run.
func (r *Result) Prove(run *Run, rep *Report, roots DeviceRoots) Proof {
	a := r.Attestation
	said, err := attest.Verify(frames.AttestResponse{
		KeyPublic: a.KeyPublic, Attest: a.Attest, Signature: a.Signature,
		AKPublic: rep.AKPublic, EKPublic: rep.EKPublic, EKCertificates: rep.EKCertificates,
	}, Challenge(run.Nonce, r.KeyID, r.Version))
	switch {
	case err != nil:
		// Whoever certified it, a public area that allows a copy is no better.
		return Proof{Finding: words(err), Exposes: attest.CheckKey(a.KeyPublic) != nil}
	case said.Fingerprint.String() != r.Fingerprint || said.Algorithm != r.Algorithm:
		return Proof{Finding: "it is of another key"}
	case r.Reference != "" && r.Reference != hex.EncodeToString(said.Name):
		return Proof{Finding: "it is of another object of the TPM"}
	}
	p := Proof{Certified: true, Bound: rep.Bound && len(said.EKName) > 0}
	if len(roots) == 0 || len(rep.EKCertificates) == 0 {
		return p
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root.Certificate)
	}
	chain, err := attest.Chain(rep.EKPublic, rep.EKCertificates, pool, run.Finished)
	if err != nil {
		return p
	}
	p.Software = attest.Software(chain[0])
	for _, root := range roots {
		if root.Certificate.Equal(chain[len(chain)-1]) {
			p.Root, p.Test = root.named(), p.Test || root.Test
		}
	}
	return p
}

// words returns the safe text of an error.
func words(err error) string {
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		return e.Msg
	}
	return "it cannot be checked"
}
