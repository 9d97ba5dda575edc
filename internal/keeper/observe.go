package keeper

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/store"
)

// observers asks the custodians what they report now, each key process or
// device once for what holds for all of its keys.
type observers struct {
	k       *Keeper
	soft    *custody.Evidence
	devices map[claviger.Custodian]claviger.Device
	away    map[claviger.Custodian]error // why one gives no answer
}

func (k *Keeper) newObservers() *observers {
	return &observers{k: k, devices: map[claviger.Custodian]claviger.Device{}, away: map[claviger.Custodian]error{}}
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
	what, known := o.devices[key.Custodian]
	if !known {
		if what, err = d.Device(ctx); err != nil {
			return Judged{}, err
		}
		o.devices[key.Custodian] = what
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
		Key: *key, Version: v.Number, Device: what, Level: probed.Level, Finding: probed.Finding, Attempts: probed.Attempts,
	}
	if key.Custodian != claviger.TPM {
		return o.k.judged(seen), nil
	}
	return o.k.attested(ctx, d, m, seen)
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
func (k *Keeper) judged(seen Observed) Judged {
	if k.cfg.Judge != nil {
		return k.cfg.Judge(seen)
	}
	most := claviger.Hardware
	if seen.Device.Software {
		most = claviger.Isolated
	}
	out := Judged{Level: worse(seen.Level, most), Finding: seen.Finding}
	for _, a := range seen.Attempts {
		if a.Verdict == claviger.Leaked {
			return Judged{Level: claviger.Exposed, Finding: a.Probe + ": " + a.Result}
		}
	}
	return out
}

// attested judges a version of a TPM together with a fresh attestation. What is
// remembered of the TPM, such as its clock, only ever moves forward, so one is
// judged before the next is asked for.
func (k *Keeper) attested(ctx context.Context, d Device, m custody.Material, seen Observed) (Judged, error) {
	if err := k.judging.take(ctx); err != nil {
		return Judged{}, err
	}
	defer k.judging.give()
	seen.Nonce = make([]byte, 32)
	_, _ = rand.Read(seen.Nonce) // crypto/rand.Read never fails
	attestation, err := d.Attest(ctx, m, seen.Nonce)
	if err != nil {
		return Judged{}, err
	}
	seen.Attestation = &attestation
	ak := sha256.Sum256(attestation.AKPublic)
	name := "judged/" + string(seen.Key.Custodian) + "/" + hex.EncodeToString(ak[:8])
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		if seen.Memory, err = tx.Meta(name); errors.Is(err, claviger.NotFound) {
			err = nil
		}
		return err
	})
	if err != nil {
		return Judged{}, err
	}
	judged := k.judged(seen)
	if len(judged.Memory) > 0 && len(judged.Memory) <= maxMemory {
		err = k.cfg.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutMeta(name, judged.Memory) })
	}
	return judged, err
}

// maxMemory bounds what is remembered of one device, in bytes.
const maxMemory = 4 << 10

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
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	if len(s) > claviger.MaxTextLength {
		s = strings.ToValidUTF8(s[:claviger.MaxTextLength-3], "") + "..."
	}
	return s
}
