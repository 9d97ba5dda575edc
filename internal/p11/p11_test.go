package p11_test

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	claviger "claviger.dev"
	"claviger.dev/internal/p11"
)

func TestParseURI(t *testing.T) {
	t.Parallel()
	slot := uint(7)
	for text, want := range map[string]p11.URI{
		"pkcs11:": {},
		"pkcs11:token=prod%20hsm;serial=ab12?module-path=/usr/lib/x.so&pin-source=file:/etc/pin": {Token: "prod hsm", Serial: "ab12", ModulePath: "/usr/lib/x.so", PINFile: "/etc/pin"},
		"pkcs11:object=my-key;type=private;id=%01%ff":                                            {Object: "my-key", Type: "private", ID: []byte{1, 255}},
		"pkcs11:id=%0Aab;slot-id=7":                                                              {ID: []byte("\nab"), Slot: &slot},
		"pkcs11:?pin-source=file:///run/pin":                                                     {PINFile: "/run/pin"},
		"pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project":                               {Model: "SoftHSM v2", Manufacturer: "SoftHSM project"},
	} {
		got, err := p11.ParseURI(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	for _, text := range []string{
		"", "pkcs11", "PKCS11:token=a", "http://x", "pkcs11:token", "pkcs11:token=", "pkcs11:token=a;token=b", "pkcs11:token=a;;serial=b",
		"pkcs11:token=%", "pkcs11:token=%2", "pkcs11:token=%zz", "pkcs11:token=%+1", "pkcs11:token=a b", "pkcs11:token=%ff", "pkcs11:token=%00",
		"pkcs11:slot-id=x", "pkcs11:slot-id=01", "pkcs11:slot-id=-1", "pkcs11:slot-id=99999999999", "pkcs11:type=cert",
		"pkcs11:?pin-value=1234", "pkcs11:?module-name=softhsm2", "pkcs11:?module-path=lib.so", "pkcs11:?pin-source=/etc/pin",
		"pkcs11:?pin-source=%7Ccat%20/etc/pin", "pkcs11:?pin-source=file:pin", "pkcs11:?pin-source=file://host/pin", "pkcs11:?",
		"pkcs11:x-vendor=1", "pkcs11:token=a/b", "pkcs11:token=" + strings.Repeat("a", 3000),
	} {
		if u, err := p11.ParseURI(text); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%q: %+v, %v", text, u, err)
		}
	}
	if _, err := p11.ParseURI("pkcs11:?pin-value=8472915"); err == nil || strings.Contains(err.Error(), "8472915") {
		t.Errorf("a PIN in a URI: %v", err)
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("pkcs11:token=a%20b;id=%01;object=k;type=private;slot-id=3?module-path=/m.so&pin-source=file:/p")
	f.Add("pkcs11:model=x;manufacturer=y;serial=z")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := p11.ParseURI(text)
		if err != nil {
			return
		}
		again, err := p11.ParseURI(u.String())
		if err != nil && len(u.String()) < 2048 {
			t.Fatalf("%q became %q: %v", text, u, err)
		}
		if err == nil && !cmp.Equal(u, again) {
			t.Fatalf("(-want +got):\n%s", cmp.Diff(u, again))
		}
	})
}

// token answers a talk from memory.
type token struct{ removed string }

func (k *token) Wrap(secret []byte) ([]byte, string, error) {
	return append([]byte("wrapped:"), secret...), "pkcs11:id=%01", nil
}

func (k *token) Unwrap(reference string, blob []byte) ([]byte, error) {
	secret, ok := bytes.CutPrefix(blob, []byte("wrapped:"))
	if !ok || reference != "pkcs11:id=%01" {
		return nil, claviger.Errorf(claviger.NotFound, "no such wrapping key", "look elsewhere")
	}
	return bytes.Clone(secret), nil
}

func (k *token) Device() (claviger.Device, error) {
	return claviger.Device{Kind: claviger.P11, Manufacturer: "Maker", Software: true}, nil
}

func (k *token) Remove(reference string) error { k.removed = reference; return nil }

func TestRootTalk(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	k, served := &token{}, make(chan error)
	go func() { served <- p11.ServeRoot(theirs, k) }()
	secret := bytes.Repeat([]byte{7}, p11.SecretSize)
	blob, reference, err := p11.Wrap(ours, secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p11.Unwrap(ours, reference, blob)
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("unwrapped %x, %v", got, err)
	}
	if _, err := p11.Unwrap(ours, "pkcs11:id=%02", blob); claviger.CodeOf(err) != claviger.NotFound || !strings.Contains(err.Error(), "no such wrapping key") {
		t.Errorf("another reference: %v", err)
	}
	if d, err := p11.Device(ours); err != nil || d.Manufacturer != "Maker" || !d.Software {
		t.Errorf("device %+v, %v", d, err)
	}
	if err := p11.Remove(ours, reference); err != nil || k.removed != reference {
		t.Errorf("removed %q, %v", k.removed, err)
	}
	if _, _, err := p11.Wrap(ours, secret[1:]); err == nil {
		t.Error("a short secret was wrapped")
	}
	ours.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func FuzzRootTalk(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x23W\x00\x0001234567890123456789012345678901"))
	f.Add([]byte("\x00\x00\x00\x05U\x00\x01rb"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		_ = p11.ServeRoot(struct {
			*bytes.Reader
			*writer
		}{bytes.NewReader(in), &writer{&out}}, &token{})
	})
}

type writer struct{ b *bytes.Buffer }

func (w *writer) Write(p []byte) (int, error) { return w.b.Write(p) }
