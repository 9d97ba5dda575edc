//go:build cgo

package p11d

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/p11"
)

// restAfter is how long an attacker keeps its weak keys for the next probe.
const restAfter = 30 * time.Second

// probing is the attacker of a custodian. Making its weak keys takes longer
// than the attempts, so it is kept from one probe to the next, for a while.
type probing struct {
	mu       sync.Mutex
	attacker *attacker // nil: none
	rest     *time.Timer
}

// probe attacks a key with the custodian's own authority.
func (c *custodian) probe(req *frames.ProbeRequest) (*frames.ProbeResponse, error) {
	p := &c.probing
	p.mu.Lock()
	defer p.mu.Unlock()
	l, err := c.reach()
	if err != nil {
		return nil, err
	}
	if p.rest != nil {
		p.rest.Stop()
	}
	if p.attacker == nil || p.attacker.link != l {
		if p.attacker, err = c.device.attacker(l); err != nil {
			return nil, err
		}
	}
	p.attacker.wide = nil // the token changes between probes
	defer func() { p.rest = time.AfterFunc(restAfter, p.end) }()
	k, err := c.look(l, p.attacker.s, req.Binding, req.Blob)
	if err != nil {
		p.attacker.close()
		p.attacker = nil
		return nil, err
	}
	attempts := append(p.attacker.all(k.object, k.scheme), noLogin(nil, nil, 0, scheme{}), unspoken(lockout), unspoken(takeover))
	if req.Loud {
		for i := range attempts[len(attempts)-2:] {
			attempts[len(attempts)-2+i].Reason = "the custodian has no throw-away token; run claviger-p11d -probe -loud with one"
		}
	}
	level, finding := l.verdict(attempts)
	if req.Binding.Origin != claviger.Generated && level != claviger.Exposed {
		level, finding = claviger.Exposed, "imported: the material has been outside"
	}
	return &frames.ProbeResponse{Level: level, Finding: finding, Attempts: attempts}, nil
}

func (p *probing) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attacker != nil {
		p.attacker.close()
		p.attacker = nil
	}
}

// noLogin looks for a key, and signs with it, in a session that nobody has
// logged in. Of a nil attacker it says that it was not tried.
func noLogin(a *attacker, u *p11.URI, weak object, sch scheme) claviger.Attempt {
	got := claviger.Attempt{Probe: "p11.no-login", Tried: "find the key and use it without a login"}
	if a == nil {
		got.Verdict, got.Reason = claviger.NotAttempted, "this process is logged in; 'claviger evidence run' tries it from its own"
		return got
	}
	try := func(o object) outcome {
		k := &key{scheme: sch, object: o}
		if sch.use == pkcs11.CKM_AES_GCM {
			if _, _, err := a.encrypt(a.s, o, make([]byte, nonceSize), nil, []byte(checkLabel)); err != nil {
				return denied(err)
			}
			return leak("it encrypted")
		}
		input := challenge()
		if h := sch.algorithm.Hash(); h != 0 && sch.class == pkcs11.CKO_PRIVATE_KEY {
			d, err := digests(h, [][]byte{input}, false)
			if err != nil {
				return outcome{result: err.Error()}
			}
			input = sch.input(d[0])
		}
		if _, err := a.signOne(a.s, k, input); err != nil {
			return denied(err)
		}
		return leak("it signed")
	}
	control := outcome{result: "no such key could be made"}
	if weak != 0 {
		control = try(weak)
	}
	target := outcome{result: "not to be seen"}
	if o, err := a.only(a.link, a.s, sch.class, u); err == nil {
		target = try(o)
	}
	got.Result, got.Control = target.result, "a key with CKA_PRIVATE=0: "+control.result
	got.Settle(target.leaked, control.leaked)
	return got
}

// public returns a key of the scheme that needs no login, or 0.
func (a *attacker) public(sch scheme) object {
	keep := []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_PRIVATE, false), attribute(pkcs11.CKA_SIGN, true)}
	if sch.class == pkcs11.CKO_SECRET_KEY {
		keep = append(keep, attribute(pkcs11.CKA_VALUE_LEN, sch.size), attribute(pkcs11.CKA_ENCRYPT, true))
	}
	half := []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_PRIVATE, false)}
	if sch.bits != 0 {
		half = append(half, attribute(pkcs11.CKA_MODULUS_BITS, 2048), attribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	} else {
		half = append(half, attribute(pkcs11.CKA_EC_PARAMS, sch.curve))
	}
	kind := fmt.Sprintf("%d %x without a login", sch.keyType, sch.curve)
	if o, ok := a.victims[kind]; ok {
		return o
	}
	o, err := a.create(a.s, sch, keep, half)
	if err != nil {
		o = 0
	}
	a.victims[kind] = o
	return o
}

// attack is the work of -probe: it reads all targets, attacks each, and says
// what came of it.
func attack(d *device, o Options, in io.Reader, out io.Writer) error {
	targets, err := readTargets(in)
	if err != nil {
		return err
	}
	loud := []claviger.Attempt{unspoken(lockout), unspoken(takeover)}
	if o.Loud {
		if loud, err = d.loud(o); err != nil {
			return err
		}
	}
	results := make([]p11.Result, len(targets))
	if err := d.unlogged(func(a *attacker) {
		for i, t := range targets {
			results[i] = p11.Result{Key: t.Key, Version: t.Version, Device: a.link.about}
			sch, u, err := t.parse(a.link)
			if err != nil {
				results[i].Error = err.Error()
				continue
			}
			results[i].Attempts = append(results[i].Attempts, noLogin(a, u, a.public(sch), sch))
		}
	}); err != nil {
		return tell(err)
	}
	l, err := d.reach()
	if err != nil {
		return err
	}
	a, err := d.attacker(l)
	if err != nil {
		return tell(err)
	}
	defer a.close()
	writer := bufio.NewWriter(out)
	encoder := json.NewEncoder(writer)
	for i, t := range targets {
		a.result(t, &results[i], loud)
		if err := encoder.Encode(results[i]); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
		if err := writer.Flush(); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	return nil
}

// target is a line of input.
type target struct{ p11.Target }

func readTargets(in io.Reader) ([]target, error) {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<10)
	var all []target
	for lines.Scan() {
		var t target
		if err := json.Unmarshal(lines.Bytes(), &t.Target); err != nil || len(all) == p11.MaxTargets {
			return nil, claviger.Errorf(claviger.Invalid, fmt.Sprintf("line %d names no key, or there are more than %d", len(all)+1, p11.MaxTargets), "'claviger evidence run' writes these lines").Wrap(err)
		}
		all = append(all, t)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read targets: %w", err)
	}
	return all, nil
}

// parse returns how the target's algorithm is done and where the key is.
func (t target) parse(l *link) (scheme, *p11.URI, error) {
	sch, err := l.offered(t.Algorithm)
	if err != nil {
		return sch, nil, err
	}
	u, err := p11.ParseURI(t.Reference)
	if err == nil && (u.ModulePath != "" || u.PINFile != "" || u.Object == "" && len(u.ID) == 0) {
		err = errBlob
	}
	return sch, u, err
}

// result attacks one target, after proof that it is the key that is meant.
func (a *attacker) result(t target, r *p11.Result, loud []claviger.Attempt) {
	if r.Error != "" {
		return
	}
	if err := a.attackTarget(t, r, loud); err != nil {
		r.Attempts, r.Error = nil, told(err)
	}
}

func (a *attacker) attackTarget(t target, r *p11.Result, loud []claviger.Attempt) error {
	sch, u, err := t.parse(a.link)
	if err != nil {
		return err
	}
	k := &key{scheme: sch, binding: frames.Binding{KeyID: t.KeyID, Version: t.Version, Algorithm: t.Algorithm, Recipe: t.Recipe, Origin: t.Origin}}
	if k.public, err = sch.recorded(t.Public); err != nil {
		return err
	}
	if k.object, err = a.only(a.link, a.s, sch.class, u); err != nil {
		return err
	}
	f, err := a.prove(a.s, k)
	if err != nil {
		return err
	}
	if hex.EncodeToString(f[:]) != t.Fingerprint {
		return errOther
	}
	r.Attempts = append(append(r.Attempts, a.all(k.object, sch)...), loud...)
	r.Level, r.Finding = a.link.verdict(r.Attempts)
	if t.Origin != claviger.Generated && r.Level != claviger.Exposed {
		r.Level, r.Finding = claviger.Exposed, "imported: the material has been outside"
	}
	return nil
}

// told is an error as a result shows it.
func told(err error) string {
	if e, ok := errors.AsType[*claviger.Error](tell(err)); ok {
		return e.Msg
	}
	return "the attack failed: " + name(err)
}

// unlogged runs f with an attacker that has not logged in.
func (d *device) unlogged(f func(*attacker)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	slot, info, err := d.find()
	if err != nil {
		return err
	}
	l := &link{slot: slot, info: info, mechanisms: d.list(slot)}
	l.about = d.describe(l)
	a, err := d.attacker(l)
	if err != nil {
		return err
	}
	defer a.close()
	f(a)
	return nil
}
