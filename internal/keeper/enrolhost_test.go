package keeper_test

import (
	"crypto"
	"crypto/sha256"
	"io"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/tpm"
	"claviger.dev/pubkey"
)

// host is a machine with a TPM and an identity key in it.
type host struct {
	testing.TB
	device *tpm.Device
	key    *tpm.Key
}

func newHost(t testing.TB, device string) *host {
	t.Helper()
	h := &host{TB: t}
	var err error
	if h.device, err = tpm.Open(device); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.device.Close() })
	if h.key, err = h.device.Create(claviger.ECDSAP256, sha256.Sum256([]byte("auth"))); err != nil {
		t.Fatal(err)
	}
	return h
}

// on is the same key on another machine: the disk was copied.
func (h *host) on(device string) *host {
	h.Helper()
	d, err := tpm.Open(device)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { d.Close() })
	return &host{h.TB, d, h.key}
}

func (h *host) Public() crypto.PublicKey {
	half, err := pubkey.Parse(h.key.Algorithm, h.key.Public)
	if err != nil {
		h.Fatal(err)
	}
	return half.Std()
}

func (h *host) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	out, err := h.device.Sign(h.key, [][]byte{digest})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

func (h *host) claim() keeper.Claim {
	h.Helper()
	info, err := h.device.Info()
	if err != nil {
		h.Fatal(err)
	}
	e, err := h.device.Endorse()
	if err != nil {
		h.Fatal(err)
	}
	return keeper.Claim{Device: info, Level: claviger.Isolated, AKPublic: e.AKPublic, EKPublic: e.EKPublic, EKCertificates: e.EKCertificates}
}

func (h *host) attest(nonce []byte) frames.AttestResponse {
	h.Helper()
	a, err := h.device.Attest(h.key, nonce)
	if err != nil {
		h.Fatal(err)
	}
	return a
}

func (h *host) answer(c keeper.Challenge) keeper.Proof {
	h.Helper()
	digest := sha256.Sum256(c.ProofText())
	p := keeper.Proof{ID: c.ID}
	var err error
	if p.Signature, err = h.Sign(nil, digest[:], nil); err != nil {
		h.Fatal(err)
	}
	if p.Activated, err = h.device.Activate(c.Credential, c.Encrypted); err != nil {
		h.Fatal(err)
	}
	a := h.attest(c.Nonce)
	p.KeyPublic, p.Attest, p.AttestSignature = a.KeyPublic, a.Attest, a.Signature
	return p
}

var nobody = claviger.Facts{UID: -1, GID: -1}

func (w *world) enrolHost(name string, h *host) keeper.Certificate {
	w.Helper()
	c, err := w.BeginEnroll(w.Context(), w.code(name), request(w, h), h.claim(), nobody)
	if err != nil {
		w.Fatal(err)
	}
	out, err := w.FinishEnroll(w.Context(), h.answer(c), nobody)
	if err != nil {
		w.Fatal(err)
	}
	return out
}

func (w *world) renewHost(last []byte, h *host) (keeper.Certificate, error) {
	w.Helper()
	c, err := w.BeginRenew(w.Context(), last, request(w, h), h.claim(), nobody)
	if err != nil {
		return keeper.Certificate{}, err
	}
	return w.FinishRenew(w.Context(), h.answer(c), nobody)
}
