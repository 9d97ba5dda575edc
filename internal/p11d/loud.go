//go:build cgo

package p11d

import (
	"fmt"
	"os"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/p11"
)

// The attempts that count against a PIN, made on a throw-away token alone.
var (
	lockout  = claviger.Attempt{Probe: "p11.pin-lockout", Tried: "12 wrong PINs on a throw-away token, then the right one"}
	takeover = claviger.Attempt{Probe: "p11.so-takeover", Tried: "on a throw-away token, the security officer sets a new user PIN and reads a key"}
)

const wrongPINs = 12

// unspoken is a loud attempt that nobody asked for.
func unspoken(t claviger.Attempt) claviger.Attempt {
	t.Verdict, t.Reason = claviger.NotAttempted, "loud: it counts against PINs; ask for it with a throw-away token"
	return t
}

// loud makes the loud attempts on the throw-away token, and says so first.
func (d *device) loud(o Options) ([]claviger.Attempt, error) {
	u, err := p11.ParseURI(o.ThrowAway)
	if err != nil {
		return nil, err
	}
	if u.ModulePath != "" && u.ModulePath != d.uri.ModulePath || u.Token == "" || u.PINFile == "" {
		return nil, claviger.Errorf(claviger.Invalid, "the throw-away token needs token and pin-source, and the module of the token that is probed", "-throw-away 'pkcs11:token=NAME?pin-source=file:/path'")
	}
	t := &device{module: d.module, uri: u, hung: d.hung, now: d.now, pin: pin{path: u.PINFile}}
	officer := pin{path: o.OfficerPIN}
	slot, info, err := t.find()
	if err != nil {
		return nil, err
	}
	if mine, _, err := d.find(); err != nil || mine == slot {
		return nil, claviger.Errorf(claviger.Denied, "the throw-away token is the one that is probed", "initialise another one for it")
	}
	fmt.Fprintf(os.Stderr, "claviger-p11d: LOUD: %d wrong PINs and a new user PIN on the token %q\n", wrongPINs, trim(info.Label))
	l := &link{slot: slot, info: info, mechanisms: t.list(slot)}
	l.about = t.describe(l)
	a, err := t.attacker(l)
	if err != nil {
		return nil, tell(err)
	}
	defer a.close()
	right, _, err := t.pin.read()
	if err != nil {
		return nil, err
	}
	defer clear(right)
	so, _, err := officer.read()
	if err != nil {
		return nil, err
	}
	defer clear(so)
	return []claviger.Attempt{a.takeover(line(right), line(so)), a.lockout(line(right))}, nil
}

func (a *attacker) lockout(right string) claviger.Attempt {
	got := lockout
	login := func(pin string) error {
		err := a.module.Login(a.s, pkcs11.CKU_USER, pin)
		if err == nil {
			_ = a.module.Logout(a.s)
		}
		return err
	}
	first := login(right)
	got.Control = "the right PIN first: " + name(first)
	for i := range wrongPINs {
		if err := login(fmt.Sprintf("%04d-wrong", i)); code(err) == pkcs11.CKR_PIN_LOCKED {
			got.Result = fmt.Sprintf("locked after %d wrong ones", i)
			got.Settle(false, first == nil)
			return got
		}
	}
	last := login(right)
	got.Result = fmt.Sprintf("%d wrong ones, then the right one: %s", wrongPINs, name(last))
	if last == nil {
		got.Result += "; nothing stops a guesser"
	}
	got.Settle(last == nil, first == nil)
	return got
}

// takeover shows what the security officer gains: the use of every key is the
// standard's own answer; a value must not come out even so.
func (a *attacker) takeover(right, so string) claviger.Attempt {
	got := takeover
	sch, _ := schemeOf(claviger.ECDSAP256)
	fail := func(at string, err error) claviger.Attempt {
		got.Verdict, got.Reason = claviger.Broken, at+": "+name(err)
		return got
	}
	if err := a.module.Login(a.s, pkcs11.CKU_USER, right); err != nil {
		return fail("log in as the user", err)
	}
	id := challenge()[:16]
	if _, err := a.create(a.s, sch, sch.protected("throw-away", id), sch.publicHalf("throw-away", id)); err != nil {
		return fail("make a key", err)
	}
	_ = a.module.Logout(a.s)
	set := func(pin string) error {
		if err := a.module.Login(a.s, pkcs11.CKU_SO, so); err != nil {
			return err
		}
		defer func() { _ = a.module.Logout(a.s) }()
		return a.module.InitPIN(a.s, pin)
	}
	const taken = "taken-over-1"
	if err := set(taken); err != nil {
		got.Verdict, got.Reason = claviger.NotAttempted, "the security officer cannot set a user PIN: "+name(err)
		return got
	}
	defer func() { // as it was
		_ = a.module.Logout(a.s)
		_ = set(right)
		if a.module.Login(a.s, pkcs11.CKU_USER, right) == nil {
			if found, err := a.search(a.s, 1, attribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attribute(pkcs11.CKA_ID, id)); err == nil && len(found) == 1 {
				_ = a.destroy(a.s, sch.class, found[0], id)
			}
			_ = a.module.Logout(a.s)
		}
	}()
	if err := a.module.Login(a.s, pkcs11.CKU_USER, taken); err != nil {
		return fail("log in with the new PIN", err)
	}
	found, err := a.search(a.s, 1, attribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attribute(pkcs11.CKA_ID, id))
	if err != nil || len(found) != 1 {
		return fail("find the key", err)
	}
	o := found[0]
	use := "cannot use the key: "
	if _, err = a.signOne(a.s, &key{scheme: sch, object: o}, make([]byte, 32)); err == nil {
		use = "can use every key with the new PIN: "
	}
	value := a.readValue(o, sch)
	got.Result = "the security officer " + use + name(err) + "; the value: " + value.result
	weak, err := a.victim(sch, readable)
	if err != nil {
		return fail("make a weak key", err)
	}
	control := a.readValue(weak, sch)
	got.Control = "the value of a key that is " + string(readable) + ": " + control.result
	got.Settle(value.leaked, control.leaked)
	return got
}
