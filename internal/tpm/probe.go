package tpm

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	claviger "claviger.dev"
	"claviger.dev/internal/tpm/attest"
)

// prober attacks one key with all the authority that there is over it.
type prober struct {
	*session
	key *Key
}

// trial is one attempt on the key and the same on a throw-away object that is
// weak on purpose. Each returns what it got and no error if it succeeded.
type trial struct {
	probe, tried     string
	attempt, control func() (string, error) // attempt is nil where there is none,
	not              string                 // for this reason
}

// errRefused is the error of an attempt that the verifier, not the TPM, denied.
var errRefused = errors.New("the verifier refuses it")

// Probe attacks the key with all the authority that there is over it: by every
// command that could give it away, by lies about it, and by forged statements
// about it. Each attempt is made on a throw-away object as well, where it must
// succeed. With loud it also tries what counts against the TPM's lockout.
func (d *Device) Probe(k *Key, loud bool) ([]claviger.Attempt, error) {
	var attempts []claviger.Attempt
	err := d.do(func(s *session) error {
		s.evict(0)
		p := &prober{session: s, key: k}
		trials := []trial{
			p.attestation(), p.duplicate(), p.duplicateFixed(), p.unseal(), p.agree(), p.altered(),
			p.imported(), p.external(), p.wrongAuthorisation(), p.forged(), p.restricted(), p.replayed(), p.renamed(),
		}
		attempts = nil
		for _, t := range trials {
			a, err := p.run(t)
			if err != nil {
				return err
			}
			attempts = append(attempts, a)
		}
		lockout, err := p.lockout(loud)
		attempts = append(attempts, lockout, claviger.Attempt{
			Probe: "tpm.other-tpm", Tried: "load the blob in another TPM", Verdict: claviger.NotAttempted,
			Reason: "there is no second TPM here; the blob is encrypted to this one",
		})
		return err
	})
	return attempts, err
}

// run makes a trial. An error means that the device is lost.
func (p *prober) run(t trial) (claviger.Attempt, error) {
	a := claviger.Attempt{Probe: t.probe, Tried: t.tried}
	if t.attempt == nil {
		a.Verdict, a.Reason = claviger.NotAttempted, t.not
		return a, nil
	}
	got, err := t.attempt()
	p.evict(0)
	if errors.Is(err, errLost) {
		return a, err
	}
	a.Result = outcome(got, err)
	control, controlErr := t.control()
	p.evict(0)
	if errors.Is(controlErr, errLost) {
		return a, controlErr
	}
	a.Control = outcome(control, controlErr)
	a.Settle(err == nil, controlErr == nil)
	if err != nil && !isRefusal(err) {
		a.Verdict, a.Reason = claviger.Broken, "the TPM could not try"
	}
	return a, nil
}

// outcome says what came back of an attempt; an answer of the TPM in its words.
func outcome(got string, err error) string {
	var rc tpm2.TPMRC
	switch {
	case err == nil:
		return got
	case errors.As(err, &rc):
		return "refused: " + rc.Error()
	}
	return "refused: " + err.Error()
}

// isRefusal reports whether the TPM or the verifier said no, and not that it
// could not: for lack of room, time or the command.
func isRefusal(err error) bool {
	var rc tpm2.TPMRC
	var known *claviger.Error
	switch {
	case errors.As(err, &rc):
		return !rc.IsWarning() && rc != tpm2.TPMRCCommandCode && rc != tpm2.TPMRCFailure
	case errors.As(err, &known):
		return known.Code == claviger.Invalid
	}
	return errors.Is(err, errRefused)
}

// forDuplication is an object's handle with the one session that could authorise a
// duplication, its policy "this command only".
func (p *prober) forDuplication(h tpm2.NamedHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, duplicationPolicy)}
}

func duplicationPolicy(t transport.TPM, handle tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicyCommandCode{PolicySession: handle, Code: tpm2.TPMCCDuplicate}.Execute(t)
	return err
}

// duplicable is the policy digest of duplicationPolicy, as the TPM computes it.
func (p *prober) duplicable() ([]byte, error) {
	trial, end, err := tpm2.PolicySession(p.link, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		return nil, err
	}
	if err := duplicationPolicy(p.link, trial.Handle(), tpm2.TPM2BNonce{}); err != nil {
		return nil, errors.Join(err, end())
	}
	r, err := tpm2.PolicyGetDigest{PolicySession: trial.Handle()}.Execute(p.link)
	if err = errors.Join(err, end()); err != nil {
		return nil, err
	}
	return r.PolicyDigest.Buffer, nil
}

// throwaway is a loaded object that is flushed when f returns.
func (p *prober) throwaway(area tpm2.TPMTPublic, sealed []byte, f func(h tpm2.NamedHandle, area *tpm2.TPMTPublic) (string, error)) (string, error) {
	sensitive := tpm2.TPMSSensitiveCreate{}
	if sealed != nil {
		sensitive.Data = tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: sealed})
	}
	made, err := tpm2.Create{
		ParentHandle: p.parent(), InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &sensitive}, InPublic: tpm2.New2B(area),
	}.Execute(p.link)
	if err != nil {
		return "", fmt.Errorf("make throw-away object: %w", err)
	}
	r, err := tpm2.Load{ParentHandle: p.parent(), InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(p.link)
	if err != nil {
		return "", fmt.Errorf("load throw-away object: %w", err)
	}
	public, err := made.OutPublic.Contents()
	if err != nil {
		return "", errors.Join(err, p.flush(r.ObjectHandle))
	}
	got, err := f(tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, public)
	return got, errors.Join(err, p.flush(r.ObjectHandle))
}

// weakArea is that of a P-256 key which may leave, as nobody should make one.
func weakArea(change func(*tpm2.TPMAObject)) tpm2.TPMTPublic {
	area := tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes()}
	area.ObjectAttributes.FixedTPM, area.ObjectAttributes.FixedParent = false, false
	if change != nil {
		change(&area.ObjectAttributes)
	}
	area.Type, area.Parameters, area.Unique = eccArea(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, nil)
	return area
}

// attestation has the key certified and the verifier judge it: here success
// means that the verifier finds the key weak.
func (p *prober) attestation() trial {
	found := func(err error) (string, error) {
		if err == nil {
			return "", fmt.Errorf("%w: every rule holds", errRefused)
		}
		return err.Error(), nil
	}
	return trial{
		probe: "tpm.attestation", tried: "certify the key by the restricted attestation key, and look for a rule that it breaks",
		attempt: func() (string, error) {
			a, nonce, err := p.certify(p.key)
			if err != nil {
				return "", err
			}
			v, err := attest.Verify(a, nonce)
			if err == nil && v.Fingerprint != p.key.Fingerprint {
				return "the certified key is another", nil
			}
			return found(err)
		},
		control: func() (string, error) {
			return p.throwaway(weakArea(nil), nil, func(_ tpm2.NamedHandle, area *tpm2.TPMTPublic) (string, error) {
				return found(attest.CheckKey(tpm2.Marshal(area)))
			})
		},
	}
}

// duplicate asks the TPM for the key under no parent, which is in clear.
func (p *prober) duplicate() trial {
	return trial{
		probe: "tpm.duplicate-policy", tried: "TPM2_Duplicate to no parent, by the key's authorisation and by a policy session for it",
		attempt: func() (string, error) {
			h, err := p.use(p.key)
			if err != nil {
				return "", err
			}
			if got, err := p.export(h, p.key.area); err == nil || !isRefusal(err) {
				return got, err
			}
			return p.export(p.forDuplication(tpm2.NamedHandle{Handle: h.Handle, Name: h.Name}), p.key.area)
		},
		control: func() (string, error) { return p.weakDuplicate(nil) },
	}
}

// duplicateFixed shows that this TPM respects fixedTPM where the policy would
// allow the duplication.
func (p *prober) duplicateFixed() trial {
	return trial{
		probe: "tpm.duplicate-fixed", tried: "TPM2_Duplicate of a throw-away key with this key's attributes and a policy that allows it",
		attempt: func() (string, error) {
			return p.weakDuplicate(func(a *tpm2.TPMAObject) { *a = p.key.area.ObjectAttributes })
		},
		control: func() (string, error) { return p.weakDuplicate(nil) },
	}
}

// weakDuplicate makes a key with a policy that allows its duplication, and
// duplicates it.
func (p *prober) weakDuplicate(change func(*tpm2.TPMAObject)) (string, error) {
	area := weakArea(change)
	policy, err := p.duplicable()
	if err != nil {
		return "", err
	}
	area.AuthPolicy.Buffer = policy
	return p.throwaway(area, nil, func(h tpm2.NamedHandle, area *tpm2.TPMTPublic) (string, error) {
		return p.export(p.forDuplication(h), area)
	})
}

// export duplicates an object to no parent and checks what came out.
func (p *prober) export(h tpm2.AuthHandle, area *tpm2.TPMTPublic) (string, error) {
	r, err := tpm2.Duplicate{
		ObjectHandle: h, NewParentHandle: tpm2.TPMRHNull, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(p.link)
	if err != nil {
		return "", err
	}
	defer clear(r.Duplicate.Buffer)
	sensitive, err := tpm2.Unmarshal[tpm2.TPM2BSensitive](r.Duplicate.Buffer)
	if err != nil {
		return fmt.Sprintf("a blob of %d bytes", len(r.Duplicate.Buffer)), nil
	}
	if inner, err := sensitive.Contents(); err != nil || inner.SensitiveType != area.Type {
		return fmt.Sprintf("a blob of %d bytes", len(r.Duplicate.Buffer)), nil
	}
	return "the private area in clear", nil
}

// random returns 32 random bytes.
func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return b
}
