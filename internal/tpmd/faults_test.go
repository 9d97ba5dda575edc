package tpmd_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/internal/tpm/tpmtest"
)

var nonce = bytes.Repeat([]byte{9}, 32)

// TestUnplugged takes the TPM away under a server that goes on, and brings it
// back: no process has to start again.
func TestUnplugged(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	c, child := start(t, s)
	k := custodytest.Generate(t, c, claviger.ECDSAP256)
	pid := child.PID()
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { // signs until it fails
		for {
			if _, err := c.Sign(t.Context(), k.Material, make([][]byte, 20), false); err != nil {
				ended <- err
				return
			}
			select {
			case stop <- struct{}{}:
			default:
			}
		}
	}()
	<-stop // in the middle of signing
	s.Kill()
	err := <-ended
	var known *claviger.Error
	if claviger.CodeOf(err) != claviger.Unavailable || !errors.As(err, &known) || known.Hint == "" {
		t.Errorf("%v", err)
	}
	if _, err := c.Identity(t.Context()); err != nil {
		t.Errorf("the process itself: %v", err)
	}
	s.Restart(t)
	sigs, err := c.Sign(t.Context(), k.Material, make([][]byte, 20), false)
	if err != nil || !custodytest.Verify(claviger.ECDSAP256, k.Public, nil, sigs[19]) {
		t.Errorf("after it came back: %v", err)
	}
	if child.PID() != pid {
		t.Error("the process was replaced")
	}
}

// TestProve attests, activates and probes a key through the server's client.
func TestProve(t *testing.T) {
	t.Parallel()
	c, _ := start(t, tpmtest.Start(t))
	k := custodytest.Generate(t, c, claviger.ECDSAP256)
	a, err := c.Attest(t.Context(), k.Material, nonce)
	if err != nil {
		t.Fatal(err)
	}
	said, err := attest.Verify(a, nonce)
	if err != nil || said.Fingerprint != k.Fingerprint || !bytes.Equal(said.Public, k.Public) {
		t.Errorf("%+v, %v", said, err)
	}
	e, err := c.Endorse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	secret := [32]byte{7}
	credential, encrypted, err := attest.Challenge(e.EKPublic, e.AKPublic, secret)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Activate(t.Context(), credential, encrypted); err != nil || !bytes.Equal(got, secret[:]) {
		t.Errorf("%x, %v", got, err)
	}
	credential[len(credential)-1] ^= 1
	if got, err := c.Activate(t.Context(), credential, encrypted); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("another's challenge: %x, %v", got, err)
	}
	other, _ := start(t, tpmtest.Start(t))
	credential[len(credential)-1] ^= 1
	if got, err := other.Activate(t.Context(), credential, encrypted); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("another TPM: %x, %v", got, err)
	}
	if _, err := other.Sign(t.Context(), k.Material, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("the blob in another TPM: %v", err)
	}
	p, err := c.Probe(t.Context(), k.Material, false)
	if err != nil {
		t.Fatal(err)
	}
	if p.Level != claviger.Isolated || p.Finding != "" || len(p.Attempts) < 13 {
		t.Errorf("%s, %q, %d attempts", p.Level, p.Finding, len(p.Attempts))
	}
	for _, at := range p.Attempts {
		if at.Verdict == claviger.Leaked || at.Verdict == claviger.Broken {
			t.Errorf("%+v", at)
		}
	}
}

// TestWeak gives the process a blob whose public area lets the key leave: it
// is not used, and a TPM does not take it either.
func TestWeak(t *testing.T) {
	t.Parallel()
	c, _ := start(t, tpmtest.Start(t))
	k := custodytest.Generate(t, c, claviger.ECDSAP256)
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](k.Blob)
	if err != nil {
		t.Fatal(err)
	}
	area, err := public.Contents()
	if err != nil {
		t.Fatal(err)
	}
	rest := k.Blob[len(tpm2.Marshal(public)):]
	area.ObjectAttributes.FixedTPM = false
	weak := k.Material
	weak.Blob = append(tpm2.Marshal(tpm2.New2B(*area)), rest...)
	if sigs, err := c.Sign(t.Context(), weak, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Invalid || sigs != nil {
		t.Errorf("%d signatures, %v", len(sigs), err)
	}
	if _, err := c.Attest(t.Context(), weak, nonce); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("attested: %v", err)
	}
}
