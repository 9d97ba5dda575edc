package keeper

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/pubkey"
)

// endorse checks the keys that say which TPM it is, and notes the level that
// they allow. It is attested only under a configured root, and a software TPM
// only under one for tests.
func (p *pending) endorse(roots []TPMRoot, claim Claim, now time.Time) error {
	name, err := attest.AKName(claim.AKPublic)
	if err != nil {
		return err
	}
	if _, err := attest.EKName(claim.EKPublic); err != nil {
		return err
	}
	p.akPublic, p.ekPublic = claim.AKPublic, claim.EKPublic
	b := &p.binding
	ek := sha256.Sum256(claim.EKPublic)
	b.AKName, b.EKFingerprint = hex.EncodeToString(name), hex.EncodeToString(ek[:])
	b.Software = b.Software || softwareTPM(b.Device)
	if !b.Software {
		b.Level = claviger.Hardware // by its own word
	}
	for _, root := range roots {
		pool := x509.NewCertPool()
		for _, cert := range root.Certificates {
			pool.AddCert(cert)
		}
		chain, err := attest.Chain(claim.EKPublic, claim.EKCertificates, pool, now)
		if err != nil {
			continue // another root may vouch for it, or none does
		}
		b.Root, b.TestRoot = root.Name, root.Test
		b.Software = b.Software || attest.Software(chain[0])
		switch {
		case root.Test || !b.Software:
			b.Level = claviger.Attested
		default:
			b.Level = claviger.Isolated
		}
		return nil
	}
	return nil
}

// softwareTPM recognises swtpm by what libtpms calls itself.
func softwareTPM(device string) bool {
	return strings.HasPrefix(device, "IBM") || strings.Contains(device, "SW   TPM") || strings.Contains(device, "SW TPM")
}

// encrypt makes the challenge that the TPM alone opens that holds both keys.
func (p *pending) encrypt() (credential, encrypted []byte, err error) {
	return attest.Challenge(p.ekPublic, p.akPublic, p.secret)
}

// certified checks the attestation of the key by the attestation key, over this
// challenge's nonce.
func (p *pending) certified(proof Proof) (claviger.Clock, error) {
	a, err := attest.Verify(frames.AttestResponse{
		KeyPublic: proof.KeyPublic, Attest: proof.Attest, Signature: proof.AttestSignature,
		AKPublic: p.akPublic, EKPublic: p.ekPublic,
	}, p.Nonce)
	if err != nil {
		return claviger.Clock{}, err
	}
	half, err := pubkey.FromStd(claviger.ECDSAP256, p.key)
	if err != nil {
		return claviger.Clock{}, err
	}
	if a.Algorithm != claviger.ECDSAP256 || !slices.Equal(a.Public, half.Raw()) {
		return claviger.Clock{}, claviger.Errorf(claviger.Denied, "the attestation is of another key than the request's", "attest the key that is to be bound")
	}
	return claviger.Clock(a.Clock), nil
}
