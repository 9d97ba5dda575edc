package keeper

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/store"
	"claviger.dev/internal/tpm/attest"
)

// observers asks the custodians what they report now, each key process or
// device once for what holds for all of its keys.
type observers struct {
	k       *Keeper
	soft    *custody.Evidence
	devices map[claviger.Custodian]*CustodianReport
	away    map[claviger.Custodian]error // why one gives no answer
}

func (k *Keeper) newObservers() *observers {
	return &observers{k: k, devices: map[claviger.Custodian]*CustodianReport{}, away: map[claviger.Custodian]error{}}
}

// observeDeadline bounds what one version takes: a device makes throw-away
// objects for its controls.
const observeDeadline = time.Minute

// observe returns what its custodian shows of a version now. A custodian that
// was away is not asked again.
func (o *observers) observe(ctx context.Context, key *claviger.Key, v *claviger.Version) (Shown, error) {
	if err := o.away[key.Custodian]; err != nil {
		return Shown{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, observeDeadline)
	defer cancel()
	judged, err := o.judge(ctx, key, v)
	if err != nil {
		if errors.Is(err, claviger.Unavailable) || errors.Is(err, claviger.Deadline) {
			o.away[key.Custodian] = err
		}
		return Shown{}, err
	}
	if v.Origin == claviger.Imported {
		judged.Level = claviger.Exposed
	}
	return Shown{Key: key.ID, Version: v.Number, Level: judged.Level, Finding: clipText(judged.Finding)}, nil
}

func (o *observers) judge(ctx context.Context, key *claviger.Key, v *claviger.Version) (Judged, error) {
	if key.Custodian == claviger.Soft {
		return o.judgeSoft(ctx)
	}
	d, err := o.k.device(key.Custodian)
	if err != nil {
		return Judged{}, err
	}
	what, err := o.report(ctx, key.Custodian, d)
	if err != nil {
		return Judged{}, err
	}
	m, err := o.k.stored(ctx, key, v)
	if err != nil {
		return Judged{}, err
	}
	probed, err := d.Probe(ctx, m, false)
	if err != nil {
		return Judged{}, err
	}
	seen := Observed{
		Key: key, Version: v, Device: what.Device, Level: probed.Level, Finding: probed.Finding, Attempts: probed.Attempts, TPM: what.TPM,
	}
	if what.TPM == nil {
		return o.k.judged(seen)
	}
	return o.k.attested(ctx, d, m, seen)
}

// report asks a device what it is: once in a round.
func (o *observers) report(ctx context.Context, kind claviger.Custodian, d Device) (*CustodianReport, error) {
	if r := o.devices[kind]; r != nil {
		return r, nil
	}
	what, err := d.Device(ctx)
	if err != nil {
		return nil, err
	}
	r := &CustodianReport{Device: toldBy(what)}
	if r.Kind = kind; kind == claviger.TPM {
		if r.TPM, err = endorsed(ctx, d); err != nil {
			return nil, err
		}
	}
	o.devices[kind] = r
	return r, nil
}

// endorsed asks a TPM for the keys that say which one it is, and has it prove
// that it has both.
func endorsed(ctx context.Context, d Device) (*TPM, error) {
	said, err := d.Endorse(ctx)
	if err != nil {
		return nil, err
	}
	tpm := &TPM{AKPublic: said.AKPublic, EKPublic: said.EKPublic, EKCertificates: said.EKCertificates}
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // crypto/rand.Read never fails
	credential, encrypted, err := attest.Challenge(said.EKPublic, said.AKPublic, secret)
	if err != nil {
		return tpm, nil //nolint:nilerr // keys that no challenge can be made for are bound by none
	}
	answer, err := d.Activate(ctx, credential, encrypted)
	if errors.Is(err, claviger.Unavailable) || errors.Is(err, claviger.Deadline) {
		return nil, err
	}
	tpm.Bound = err == nil && subtle.ConstantTimeCompare(answer, secret[:]) == 1
	return tpm, nil
}

// judgeSoft is what the key process reports of itself, which holds for all it has.
func (o *observers) judgeSoft(ctx context.Context) (Judged, error) {
	if o.soft == nil {
		e, err := o.k.cfg.Custodian.Evidence(ctx)
		if err != nil {
			return Judged{}, err
		}
		o.soft = &e
	}
	judged := Judged{Level: worse(o.soft.Level, claviger.Isolated)}
	if judged.Level == claviger.Isolated {
		return judged, nil
	}
	var missing []string
	for _, m := range o.soft.Measures {
		if m.State != on {
			missing = append(missing, m.Name)
		}
	}
	judged.Level = claviger.Exposed
	judged.Finding = "the key process ran without: " + strings.Join(missing, ", ")
	return judged, nil
}

// judged makes a level of what was observed.
func (k *Keeper) judged(seen Observed) (Judged, error) {
	if k.cfg.Judge != nil {
		return k.cfg.Judge(seen)
	}
	for _, a := range seen.Attempts {
		if a.Verdict == claviger.Leaked {
			return Judged{Level: claviger.Exposed, Finding: a.Probe + ": " + a.Result}, nil
		}
	}
	most := claviger.Hardware
	if seen.Device.Software {
		most = claviger.Isolated
	}
	return Judged{Level: worse(seen.Level, most), Finding: seen.Finding}, nil
}

// attested judges a version of a TPM, which may be asked for an attestation.
// What a TPM counts only ever moves forward, so one attestation is judged
// before the next is asked for.
func (k *Keeper) attested(ctx context.Context, d Device, m custody.Material, seen Observed) (Judged, error) {
	if err := k.judging.take(ctx); err != nil {
		return Judged{}, err
	}
	defer k.judging.give()
	back := false
	seen.Attest = func(nonce []byte) (custody.Attestation, error) {
		a, err := d.Attest(ctx, m, nonce)
		if err != nil {
			return a, err
		}
		if said, err := attest.Verify(a, nonce); err == nil {
			follows, err := k.follows(ctx, said)
			back = back || err == nil && !follows
			return a, err
		}
		return a, nil // what does not verify is for the judge to name
	}
	judged, err := k.judged(seen)
	if err == nil && back {
		judged = Judged{Level: claviger.Exposed, Finding: "the TPM's clock or one of its counts went back: its state was copied or rolled back"}
	}
	return judged, err
}

// follows compares what a TPM counts with what it counted before, and remembers
// that.
func (k *Keeper) follows(ctx context.Context, said attest.Attested) (follows bool, err error) {
	name := "clock/" + hex.EncodeToString(said.AKName)
	err = k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		follows = true
		text, err := tx.Meta(name)
		if err == nil {
			var last attest.Clock
			if err = json.Unmarshal(text, &last); err != nil {
				return err
			}
			if follows = said.Clock.Follows(last); !follows {
				return nil
			}
		} else if !errors.Is(err, claviger.NotFound) {
			return err
		}
		if text, err = json.Marshal(said.Clock); err != nil {
			return err
		}
		return tx.PutMeta(name, text)
	})
	return follows, err
}

// worse returns the worse of two levels; what is no level is exposed.
func worse(a, b claviger.Level) claviger.Level {
	for _, l := range []claviger.Level{a, b} {
		if !l.AtLeast(claviger.Exposed) || l == "" {
			return claviger.Exposed
		}
	}
	if a.AtLeast(b) {
		return b
	}
	return a
}

// clipText makes a text of a custodian or a run fit to be kept: one line of at
// most claviger.MaxTextLength bytes.
func clipText(s string) string {
	if s = printable(s); len(s) > claviger.MaxTextLength {
		s = strings.ToValidUTF8(s[:claviger.MaxTextLength-3], "") + "..."
	}
	return s
}
