//go:build cgo

package p11d

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
)

// attacker tries to take keys out of the token with a session of its own,
// logged in as the user. What it makes are session objects, gone with the
// session.
type attacker struct {
	*device
	link *link
	s    session

	victims map[string]object // deliberately weak keys by kind and weakness
	tools   map[uint]object   // its wrapping keys by CKK_
	private map[uint]object   // their private halves
	wide    []claviger.Attempt
	guesses map[int]map[[32]byte]bool
}

func (d *device) attacker(l *link) (*attacker, error) {
	s, err := d.module.OpenSession(l.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	return &attacker{
		device: d, link: l, s: s, victims: map[string]object{}, tools: map[uint]object{}, private: map[uint]object{},
		guesses: map[int]map[[32]byte]bool{},
	}, nil
}

// close ends the session, and with it every object that the attacker made.
func (a *attacker) close() { _ = a.module.CloseSession(a.s) }

// weakness is what a victim lacks.
type weakness string

const (
	readable weakness = "readable and extractable"
	loose    weakness = "modifiable and copyable"
)

// victim returns a key of the same kind that is deliberately weak.
func (a *attacker) victim(sch scheme, w weakness) (object, error) {
	kind := fmt.Sprintf("%d %x %s", sch.keyType, sch.curve, w)
	if o, ok := a.victims[kind]; ok {
		return o, nil
	}
	open := w == readable
	t := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_PRIVATE, true), attribute(pkcs11.CKA_SENSITIVE, !open),
		attribute(pkcs11.CKA_EXTRACTABLE, open), attribute(pkcs11.CKA_MODIFIABLE, true), attribute(pkcs11.CKA_COPYABLE, true),
		attribute(pkcs11.CKA_DERIVE, open), attribute(pkcs11.CKA_SIGN, true), attribute(pkcs11.CKA_DECRYPT, open),
		attribute(pkcs11.CKA_UNWRAP, open),
	}
	if sch.class == pkcs11.CKO_SECRET_KEY {
		t = append(t, attribute(pkcs11.CKA_VALUE_LEN, sch.size), attribute(pkcs11.CKA_ENCRYPT, true), attribute(pkcs11.CKA_WRAP, open))
	}
	public := []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_VERIFY, true)}
	if sch.bits != 0 { // the size does not matter to the attempts, the time that it takes does
		public = append(public, attribute(pkcs11.CKA_MODULUS_BITS, 2048), attribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	} else {
		public = append(public, attribute(pkcs11.CKA_EC_PARAMS, sch.curve))
	}
	o, err := a.create(a.s, sch, t, public)
	if err == nil {
		a.victims[kind] = o
	}
	return o, err
}

// tool returns the attacker's own wrapping key: AES-256, or an RSA public key.
func (a *attacker) tool(kind uint) (object, error) {
	if o, ok := a.tools[kind]; ok {
		return o, nil
	}
	defer a.watch("C_GenerateKey", makeLimit)()
	on := func(kinds ...uint) (t []*pkcs11.Attribute) {
		t = append(t, attribute(pkcs11.CKA_TOKEN, false))
		for _, k := range kinds {
			t = append(t, attribute(k, true))
		}
		return t
	}
	var o, half object
	var err error
	switch kind {
	case pkcs11.CKK_RSA:
		public := append(on(pkcs11.CKA_WRAP, pkcs11.CKA_ENCRYPT), attribute(pkcs11.CKA_MODULUS_BITS, 2048), attribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
		o, half, err = a.module.GenerateKeyPair(a.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}, public, on(pkcs11.CKA_UNWRAP, pkcs11.CKA_DECRYPT))
		a.private[kind] = half
	default:
		o, err = a.module.GenerateKey(a.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
			append(on(pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT), attribute(pkcs11.CKA_VALUE_LEN, 32)))
	}
	if err != nil {
		return 0, fmt.Errorf("make the attacker's key: %w", err)
	}
	a.tools[kind] = o
	return o, nil
}

// outcome is what an attempt gave.
type outcome struct {
	leaked bool
	result string
	absent bool // the token cannot do this to any key
}

func denied(err error) outcome {
	unable := code(err) == pkcs11.CKR_FUNCTION_NOT_SUPPORTED || code(err) == pkcs11.CKR_MECHANISM_INVALID
	return outcome{result: "denied, " + name(err), absent: unable}
}

func leak(format string, args ...any) outcome {
	return outcome{leaked: true, result: fmt.Sprintf(format, args...)}
}

// attempt is one way to take a key.
type attempt struct {
	probe, tried string
	weak         weakness // of the control
	// unfit says why a key of the scheme is not attempted; nil: all are.
	unfit func(scheme) string
	try   func(a *attacker, o object, sch scheme) outcome
}

// run makes the attempt on a weak key, then on the key.
func (a *attacker) run(t attempt, o object, sch scheme) claviger.Attempt {
	got := claviger.Attempt{Probe: t.probe, Tried: t.tried}
	if t.unfit != nil {
		if why := t.unfit(sch); why != "" {
			got.Verdict, got.Reason = claviger.NotAttempted, why
			return got
		}
	}
	defer a.watch(t.probe, makeLimit)()
	var control outcome
	weak, err := a.victim(sch, t.weak)
	if err != nil {
		control = outcome{result: "no weak key could be made: " + name(err)}
	} else {
		control = t.try(a, weak, sch)
	}
	target := t.try(a, o, sch)
	got.Result, got.Control = target.result, "a key that is "+string(t.weak)+": "+control.result
	if control.absent && !target.leaked {
		got.Verdict, got.Reason = claviger.NotAttempted, "the token does this to no key ("+control.result+")"
		return got
	}
	got.Settle(target.leaked, control.leaked)
	return got
}

// verdict is the level that attempts show, and the worst finding.
func (l *link) verdict(attempts []claviger.Attempt) (claviger.Level, string) {
	level, finding := l.levelOf(nil), ""
	for _, t := range attempts {
		switch t.Verdict {
		case claviger.Leaked:
			return claviger.Exposed, t.Probe + " leaked: " + t.Result
		case claviger.Broken:
			if finding == "" {
				finding = t.Probe + " is broken: " + t.Reason
			}
			if level == claviger.Hardware {
				level = claviger.Isolated
			}
		}
	}
	return level, finding
}

// all makes every attempt on a key, and those on the whole token once.
func (a *attacker) all(o object, sch scheme) []claviger.Attempt {
	var out []claviger.Attempt
	for _, t := range attempts {
		out = append(out, a.run(t, o, sch))
	}
	out = append(out, a.wraps(o, sch)...)
	if a.wide == nil {
		a.wide = append(a.wide, a.scans()...)
		a.wide = append(a.wide, a.forgeries()...)
		a.wide = append(a.wide, a.files())
	}
	return append(out, a.wide...)
}

// wraps tries every wrapping mechanism that the token lists.
func (a *attacker) wraps(o object, sch scheme) []claviger.Attempt {
	var out []claviger.Attempt
	for _, w := range wrappings {
		if about, listed := a.link.mechanisms[w.mechanism]; !listed || about.Flags&pkcs11.CKF_WRAP == 0 {
			continue
		}
		got := a.run(attempt{
			probe: "p11.wrap-" + w.name, weak: readable,
			tried: "C_WrapKey by CKM_" + strings.ToUpper(strings.ReplaceAll(w.name, "-", "_")) + " under a key of the attacker",
			try:   func(a *attacker, o object, _ scheme) outcome { return a.wrapOut(w, o) },
		}, o, sch)
		if got.Verdict == claviger.Broken { // it wraps other kinds of keys
			got.Verdict, got.Reason = claviger.NotAttempted, "the token wraps no such key by it, not even the weak one"
		}
		out = append(out, got)
	}
	if len(out) == 0 {
		out = append(out, claviger.Attempt{Probe: "p11.wrap", Tried: "C_WrapKey", Verdict: claviger.NotAttempted, Reason: "the token lists no mechanism that wraps"})
	}
	return out
}
