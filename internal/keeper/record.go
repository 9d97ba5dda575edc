package keeper

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/policy"
)

// digestOf is the SHA-256 over inputs, each with its length before it (8
// bytes, big-endian), in hex.
func digestOf(inputs ...[]byte) string {
	var sum [sha256.Size]byte
	size := 0
	for _, in := range inputs {
		size += 8 + len(in)
	}
	if size <= smallInput { // it is made for every use, and most are small
		text := make([]byte, 0, smallInput)
		for _, in := range inputs {
			text = append(binary.BigEndian.AppendUint64(text, uint64(len(in))), in...)
		}
		sum = sha256.Sum256(text)
	} else {
		h, length := sha256.New(), make([]byte, 8)
		for _, in := range inputs {
			binary.BigEndian.PutUint64(length, uint64(len(in)))
			h.Write(length)
			h.Write(in)
		}
		h.Sum(sum[:0])
	}
	text := make([]byte, hex.EncodedLen(len(sum)))
	hex.Encode(text, sum[:])
	return string(text)
}

// smallInput is how many bytes are put together before they are hashed.
const smallInput = 1 << 10

// newRecord starts a record about a caller.
func (k *Keeper) newRecord(by claviger.Principal, action string) *audit.Record {
	r := k.recordOf(&by, action)
	return &r
}

func (k *Keeper) recordOf(by *claviger.Principal, action string) audit.Record {
	r := audit.Record{
		Time: k.cfg.Now(), Action: action, Outcome: audit.Allowed,
		Principal: by.ID, PrincipalName: by.Name, PrincipalKind: string(by.Kind),
		Method: by.Facts.Method, Executable: by.Facts.Executable, Unit: by.Facts.Unit,
		UID: by.Facts.UID, RequestID: by.Facts.RequestID,
	}
	if by.Facts.Source.IsValid() {
		r.Source = by.Facts.Source.String()
	}
	return r
}

// useRecord starts a record about a use.
func (k *Keeper) useRecord(by *claviger.Principal, a *ask, key *claviger.Key) audit.Record {
	r := k.recordOf(by, "use."+string(a.op))
	r.Count, r.Digest = a.count, a.digest
	if key != nil {
		r.Key, r.KeyID, r.Algorithm = key.Name, key.ID, key.Algorithm
	}
	addDetailText(&r, "audience", a.context.Audience)
	addDetailText(&r, "purpose", a.context.Purpose)
	if a.structured != nil {
		addDetailText(&r, "structure", structureOf(a.structured))
	}
	return r
}

func structureOf(s *policy.Structured) string {
	switch {
	case s.JWT != nil:
		return "jwt"
	case s.X509TBS != nil:
		return "x509"
	}
	return "ssh"
}

// permitRecord starts the record of what a permit allows.
func (k *Keeper) permitRecord(p *permit) audit.Record {
	if p.ask.session != nil {
		return *k.sessionRecord(p.by, p.ask, p.on, p.allowed)
	}
	r := k.useRecord(&p.by, &p.ask, p.state.key)
	r.Grant = p.allowed.Grant.ID
	return r
}

// recorded is where the record of a use stands, so that another can refer to it.
type recorded struct {
	version     uint32
	fingerprint claviger.Fingerprint
	place       string // in the log; "" of one that is gathered
}

func recordedAt(r *audit.Record) recorded {
	at := recorded{version: r.Version, fingerprint: r.Fingerprint}
	if r.Seq > 0 {
		at.place = r.Writer + "/" + strconv.FormatUint(r.Seq, 10)
	}
	return at
}

// record makes the record of a use, or of its failure, durable. Verifications
// that succeeded are gathered; see aggregate.go.
func (k *Keeper) record(ctx context.Context, p permit, failure error) (recorded, error) {
	r := k.permitRecord(&p)
	if failure != nil {
		r.Outcome, r.Code, r.Reason = audit.Failed, claviger.CodeOf(failure), safeText(failure)
	}
	if p.ask.session == nil {
		var v *claviger.Version
		switch versions := p.tally.versions; {
		case p.ask.op.Protects():
			v = p.version()
		case len(versions) == 1:
			v = p.state.key.Version(versions[0].version)
		case len(versions) > 1:
			addDetailText(&r, "versions", joinVersions(versions))
		}
		if v != nil {
			r.Version, r.Fingerprint = v.Number, v.Fingerprint
		}
		addDetail(&r, "invalid", p.tally.invalid)
		if failure == nil && (p.ask.op == claviger.Verify || p.ask.op == claviger.VerifyMAC || p.ask.op == claviger.Unprotect) {
			return recorded{version: r.Version, fingerprint: r.Fingerprint}, k.verified.add(ctx, r)
		}
	}
	kept := r // on the heap, where what is gathered need not be
	err := k.append(ctx, &kept)
	return recordedAt(&kept), err
}

// refuse records a refusal and returns what the caller sees.
func (k *Keeper) refuse(ctx context.Context, by claviger.Principal, a ask, s snapshot, d policy.Decision) error {
	var key *claviger.Key
	if s.key != nil {
		key = s.key.key
	}
	r := k.useRecord(&by, &a, key)
	if key == nil {
		addDetailText(&r, "asked", a.key)
	}
	return k.deny(ctx, &r, d)
}

// deny makes the record of a refusal durable.
func (k *Keeper) deny(ctx context.Context, r *audit.Record, d policy.Decision) error {
	r.Outcome, r.Code, r.Reason = audit.Denied, d.Code, d.Reason
	if d.Grant != nil {
		r.Grant = d.Grant.ID
	}
	addDetailText(r, "mismatch", d.Detail)
	if err := k.append(ctx, r); err != nil {
		return err
	}
	return refusal(d)
}

// drop records that a result which was recorded already is not released. The
// result is dropped whether or not that can be written.
func (k *Keeper) drop(ctx context.Context, p permit, of recorded, cause error) error {
	r := k.permitRecord(&p)
	r.Outcome, r.Code, r.Reason = audit.Failed, claviger.CodeOf(cause), "dropped-before-release"
	r.Version, r.Fingerprint = of.version, of.fingerprint
	addDetailText(&r, "of", of.place)
	if err := k.append(ctx, &r); err != nil {
		return err
	}
	return cause
}

// append makes records durable. What fails is claviger.Unavailable.
func (k *Keeper) append(ctx context.Context, records ...*audit.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordDeadline)
	defer cancel()
	if err := k.cfg.Audit.Append(ctx, records...); err != nil {
		return unrecorded(err)
	}
	return nil
}

func unrecorded(err error) error {
	return claviger.Errorf(claviger.Unavailable, "the request could not be recorded, so nothing was released", "try again; the operator sees the cause with 'claviger doctor'").Wrap(err)
}

// safeText is what may be recorded of an error: never its cause.
func safeText(err error) string {
	if e, ok := asError(err); ok {
		return e.Msg
	}
	return string(claviger.CodeOf(err))
}

func joinVersions(versions []used) string {
	texts := make([]string, len(versions))
	for i, u := range versions {
		texts[i] = strconv.FormatUint(uint64(u.version), 10)
	}
	return strings.Join(texts, ",")
}
