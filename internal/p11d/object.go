//go:build cgo

package p11d

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/p11"
)

// Labels of what Claviger makes. Objects of other labels come in by bind
// alone, and those of root slots never by frames.
const (
	labelOurs = "claviger "
	labelKey  = labelOurs + "key "
	labelRoot = labelOurs + "root "
)

func attribute(kind uint, value any) *pkcs11.Attribute { return pkcs11.NewAttribute(kind, value) }

// protected is the template of a key that is to stay: every protective
// attribute has its value, since defaults differ from module to module.
func (s scheme) protected(label string, id []byte) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_LABEL, label), attribute(pkcs11.CKA_ID, id),
		attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_PRIVATE, true),
		attribute(pkcs11.CKA_SENSITIVE, true), attribute(pkcs11.CKA_EXTRACTABLE, false),
		attribute(pkcs11.CKA_MODIFIABLE, false), attribute(pkcs11.CKA_COPYABLE, false),
		attribute(pkcs11.CKA_DERIVE, false), attribute(pkcs11.CKA_UNWRAP, false),
	}
	seals := s.use == pkcs11.CKM_AES_GCM
	t = append(t, attribute(pkcs11.CKA_SIGN, !seals), attribute(pkcs11.CKA_DECRYPT, seals))
	if s.class == pkcs11.CKO_PRIVATE_KEY {
		return append(t, attribute(pkcs11.CKA_SIGN_RECOVER, false))
	}
	return append(t, attribute(pkcs11.CKA_VALUE_LEN, s.size), attribute(pkcs11.CKA_WRAP, false),
		attribute(pkcs11.CKA_ENCRYPT, seals), attribute(pkcs11.CKA_VERIFY, false))
}

// publicHalf is the template of a public key object.
func (s scheme) publicHalf(label string, id []byte) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_LABEL, label), attribute(pkcs11.CKA_ID, id), attribute(pkcs11.CKA_TOKEN, true),
		attribute(pkcs11.CKA_PRIVATE, false), attribute(pkcs11.CKA_MODIFIABLE, false), attribute(pkcs11.CKA_COPYABLE, false),
		attribute(pkcs11.CKA_VERIFY, true), attribute(pkcs11.CKA_ENCRYPT, false), attribute(pkcs11.CKA_WRAP, false),
		attribute(pkcs11.CKA_DERIVE, false), attribute(pkcs11.CKA_VERIFY_RECOVER, false),
	}
	if s.bits != 0 {
		return append(t, attribute(pkcs11.CKA_MODULUS_BITS, s.bits), attribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	}
	return append(t, attribute(pkcs11.CKA_EC_PARAMS, s.curve))
}

// create makes a key from templates and returns the object that is used.
func (d *device) create(s session, sch scheme, keep, public []*pkcs11.Attribute) (object, error) {
	defer d.watch("C_GenerateKey", makeLimit)()
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(sch.generate, nil)}
	if sch.class == pkcs11.CKO_SECRET_KEY {
		o, err := d.module.GenerateKey(s, mechanism, keep)
		return o, wrap("generate key", err)
	}
	_, o, err := d.module.GenerateKeyPair(s, mechanism, public, keep)
	return o, wrap("generate key pair", err)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// get reads one attribute.
func (d *device) get(s session, o object, kind uint) ([]byte, error) {
	defer d.watch("C_GetAttributeValue", useLimit)()
	got, err := d.module.GetAttributeValue(s, o, []*pkcs11.Attribute{attribute(kind, nil)})
	if err != nil {
		return nil, fmt.Errorf("read attribute %#x: %w", kind, err)
	}
	return got[0].Value, nil
}

// number reads an attribute of type CK_ULONG.
func (d *device) number(s session, o object, kind uint) (uint64, error) {
	b, err := d.get(s, o, kind)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("attribute %#x has %d bytes", kind, len(b))
	}
	return binary.NativeEndian.Uint64(b), nil
}

// search returns up to max objects that fit a template.
func (d *device) search(s session, max int, template ...*pkcs11.Attribute) ([]object, error) {
	defer d.watch("C_FindObjects", makeLimit)()
	if err := d.module.FindObjectsInit(s, template); err != nil {
		return nil, fmt.Errorf("find objects: %w", err)
	}
	var all []object
	for len(all) < max {
		part, _, err := d.module.FindObjects(s, min(max-len(all), 256))
		if err != nil {
			_ = d.module.FindObjectsFinal(s)
			return nil, fmt.Errorf("find objects: %w", err)
		}
		if len(part) == 0 {
			break
		}
		all = append(all, part...)
	}
	return all, wrap("find objects", d.module.FindObjectsFinal(s))
}

// only returns the one token object of a class that a URI names.
func (d *device) only(l *link, s session, class uint, u *p11.URI) (object, error) {
	if !sameToken(u, l.info) || u.Slot != nil && *u.Slot != l.slot {
		return 0, errNoKey
	}
	template := []*pkcs11.Attribute{attribute(pkcs11.CKA_CLASS, class), attribute(pkcs11.CKA_TOKEN, true)}
	if len(u.ID) > 0 {
		template = append(template, attribute(pkcs11.CKA_ID, u.ID))
	}
	if u.Object != "" {
		template = append(template, attribute(pkcs11.CKA_LABEL, u.Object))
	}
	found, err := d.search(s, 2, template...)
	switch {
	case err != nil:
		return 0, err
	case len(found) == 0:
		return 0, errNoKey
	case len(found) > 1:
		return 0, errManyKeys
	}
	return found[0], nil
}

// reference names an object of the token so that it is found again.
func (l *link) reference(class uint, label string, id []byte) *p11.URI {
	kind := "private"
	if class == pkcs11.CKO_SECRET_KEY {
		kind = "secret-key"
	}
	return &p11.URI{Token: trim(l.info.Label), Serial: trim(l.info.SerialNumber), Object: label, ID: id, Type: kind}
}

// checkType says whether an object is a key of the scheme.
func (d *device) checkType(s session, o object, sch scheme) error {
	bad := claviger.Errorf(claviger.Invalid, "the device's key is not one of the algorithm "+string(sch.algorithm), "give the algorithm that the key has; pkcs11-tool --list-objects shows it")
	kind, err := d.number(s, o, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return err
	}
	hmac := map[uint]uint64{pkcs11.CKM_SHA256_HMAC: pkcs11.CKK_SHA256_HMAC, pkcs11.CKM_SHA384_HMAC: pkcs11.CKK_SHA384_HMAC, pkcs11.CKM_SHA512_HMAC: pkcs11.CKK_SHA512_HMAC}
	if kind != uint64(sch.keyType) && (hmac[sch.use] == 0 || kind != hmac[sch.use]) {
		return bad
	}
	if sch.keyType == pkcs11.CKK_AES {
		if n, err := d.number(s, o, pkcs11.CKA_VALUE_LEN); err != nil || n != uint64(sch.size) {
			return bad
		}
	}
	if len(sch.curve) > 0 {
		// Ed25519 also has a name, as a PrintableString.
		curve, err := d.get(s, o, pkcs11.CKA_EC_PARAMS)
		if err != nil || !bytes.Equal(curve, sch.curve) && (sch.keyType != ckkEdwards || string(curve) != "\x13\x0cedwards25519") {
			return bad
		}
	}
	return nil
}

// rule is a value that an attribute must have for a key to count as one that
// cannot leave.
type rule struct {
	attribute uint
	name      string
	want      bool
	class     uint // 0: both
	lax       bool // older tokens do not know it
}

var rules = []rule{
	{attribute: pkcs11.CKA_EXTRACTABLE, name: "CKA_EXTRACTABLE"},
	{attribute: pkcs11.CKA_NEVER_EXTRACTABLE, name: "CKA_NEVER_EXTRACTABLE", want: true},
	{attribute: pkcs11.CKA_SENSITIVE, name: "CKA_SENSITIVE", want: true},
	{attribute: pkcs11.CKA_ALWAYS_SENSITIVE, name: "CKA_ALWAYS_SENSITIVE", want: true},
	{attribute: pkcs11.CKA_LOCAL, name: "CKA_LOCAL", want: true},
	{attribute: pkcs11.CKA_PRIVATE, name: "CKA_PRIVATE", want: true},
	{attribute: pkcs11.CKA_TOKEN, name: "CKA_TOKEN", want: true},
	{attribute: pkcs11.CKA_MODIFIABLE, name: "CKA_MODIFIABLE"},
	{attribute: pkcs11.CKA_COPYABLE, name: "CKA_COPYABLE", lax: true},
	{attribute: pkcs11.CKA_DERIVE, name: "CKA_DERIVE"},
	{attribute: pkcs11.CKA_UNWRAP, name: "CKA_UNWRAP"},
	{attribute: pkcs11.CKA_WRAP, name: "CKA_WRAP", class: pkcs11.CKO_SECRET_KEY},
	{attribute: pkcs11.CKA_SIGN_RECOVER, name: "CKA_SIGN_RECOVER", class: pkcs11.CKO_PRIVATE_KEY, lax: true},
}

// broken lists the rules that an object breaks, the worst first.
func (d *device) broken(s session, o object, sch scheme) ([]string, error) {
	var found []string
	check := func(kind uint, name string, want, lax bool) error {
		b, err := d.get(s, o, kind)
		switch {
		case err == nil && len(b) == 1 && (b[0] != 0) == want:
		case err == nil && len(b) == 1:
			found = append(found, fmt.Sprintf("%s=%d", name, b[0]&1))
		case isLost(err) || isGone(err):
			return err
		case !lax:
			found = append(found, name+" is not told")
		}
		return nil
	}
	for _, r := range rules {
		if r.class != 0 && r.class != sch.class {
			continue
		}
		if err := check(r.attribute, r.name, r.want, r.lax); err != nil {
			return nil, err
		}
	}
	seals := sch.use == pkcs11.CKM_AES_GCM
	if err := check(pkcs11.CKA_DECRYPT, "CKA_DECRYPT", seals, false); err != nil {
		return nil, err
	}
	if err := check(pkcs11.CKA_SIGN, "CKA_SIGN", !seals, false); err != nil {
		return nil, err
	}
	made, err := d.number(s, o, pkcs11.CKA_KEY_GEN_MECHANISM)
	if isLost(err) || isGone(err) {
		return nil, err
	}
	if err != nil || !slices.Contains(sch.makers(), uint(made)) {
		found = append(found, "CKA_KEY_GEN_MECHANISM is none that makes such keys")
	}
	return found, nil
}

// makers are the mechanisms that make keys of the scheme inside a device.
func (s scheme) makers() []uint {
	switch s.keyType {
	case pkcs11.CKK_RSA:
		return []uint{pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, pkcs11.CKM_RSA_X9_31_KEY_PAIR_GEN}
	case pkcs11.CKK_EC:
		return []uint{pkcs11.CKM_EC_KEY_PAIR_GEN, ckmECPairsExtraBits}
	}
	return []uint{s.generate}
}

// levelOf is the custody level that attributes show. Software is never hardware.
func (l *link) levelOf(broken []string) claviger.Level {
	switch {
	case len(broken) > 0:
		return claviger.Exposed
	case l.about.Software:
		return claviger.Isolated
	}
	return claviger.Hardware
}

// ours says whether a label is one that Claviger gives.
func ours(label string) bool { return strings.HasPrefix(label, labelOurs) }
