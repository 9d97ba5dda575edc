package rootkey_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/rootkey"
	"github.com/google/go-cmp/cmp"
)

// device is a vault in memory. What it sealed it gives back while nothing is
// the matter.
type device struct {
	info    claviger.Device
	kept    map[string]string // by what Seal returned
	trouble error             // of every command
	lossy   bool              // gives back something else
	asked   int               // to unseal
	open    int               // opened and not closed
}

func (d *device) Info() (claviger.Device, error) { return d.info, d.trouble }

func (d *device) Seal(secret []byte, pcrs []uint) ([]byte, error) {
	if d.trouble != nil {
		return nil, d.trouble
	}
	if d.kept == nil {
		d.kept = map[string]string{}
	}
	sealed := string(rune('a' + len(d.kept)))
	d.kept[sealed] = string(secret)
	return []byte(sealed), nil
}

func (d *device) Unseal(sealed []byte) ([]byte, error) {
	d.asked++
	secret, ok := d.kept[string(sealed)]
	switch {
	case d.trouble != nil:
		return nil, d.trouble
	case !ok:
		return nil, claviger.Errorf(claviger.Invalid, "this is of another device", "take its own")
	case d.lossy:
		return bytes.Repeat([]byte{1}, 32), nil
	}
	return []byte(secret), nil
}

func (d *device) Forget(sealed []byte) error {
	delete(d.kept, string(sealed))
	return d.trouble
}

func (d *device) Close() error {
	d.open--
	return nil
}

// with adds the device to what answers the secrets.
func (a answers) with(t *testing.T, d *device) rootkey.Secrets {
	s := a.secrets(t)
	s.Vault = func(rootkey.SlotKind) (rootkey.Vault, error) {
		d.open++
		return d, nil
	}
	return s
}

func made(t *testing.T, d *rootkey.Dir, from rootkey.Secrets, slots ...rootkey.NewSlot) {
	t.Helper()
	r, err := d.New(nil, slots[0], from)
	for _, s := range slots[1:] {
		if err == nil {
			_, err = r.Add(s, from)
		}
	}
	if err == nil {
		err = r.Save()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func opened(t *testing.T, d *rootkey.Dir, from rootkey.Secrets) (*rootkey.Root, error) {
	t.Helper()
	sealed, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	return sealed.Open(0, from)
}

func TestDeviceSlots(t *testing.T) {
	t.Parallel()
	for _, kind := range []rootkey.SlotKind{rootkey.TPM, rootkey.PKCS11} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			d, v := newDir(t), &device{info: claviger.Device{Manufacturer: "Maker", Model: "One\n", Serial: "7", Software: true}}
			from := answers{}.with(t, v)
			made(t, d, from, rootkey.NewSlot{Kind: kind})
			r, err := opened(t, d, from)
			if err != nil {
				t.Fatal(err)
			}
			s := r.Slots()[0]
			if s.Source != "Maker One 7" || !s.Software {
				t.Errorf("the slot is of %q, software %v", s.Source, s.Software)
			}
			text, err := os.ReadFile(filepath.Join(d.Path, rootkey.SlotsName))
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range v.kept {
				if raw, _ := json.Marshal([]byte(secret)); bytes.Contains(text, []byte(secret)) || bytes.Contains(text, raw[1:len(raw)-1]) {
					t.Error("the slots file holds the secret")
				}
			}
			// A rotation needs no device, and the slot opens what it wrote.
			if _, err := r.Rotate(); err != nil {
				t.Fatal(err)
			}
			v.asked = 0
			if err := r.Save(); err != nil || v.asked != 0 {
				t.Errorf("the device was asked %d times to save: %v", v.asked, err)
			}
			if r, err = opened(t, d, from); err != nil || r.Bundle.Newest().Number != 2 {
				t.Errorf("after the rotation: %v", err)
			}
			if v.open != 0 {
				t.Errorf("the device was left open %d times", v.open)
			}
		})
	}
}

func TestDeviceSlotRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		slot rootkey.NewSlot
		v    device
		want claviger.Code
	}{
		"a register that is not": {rootkey.NewSlot{Kind: rootkey.TPM, PCRs: []uint{24}}, device{}, claviger.Invalid},
		"a register twice":       {rootkey.NewSlot{Kind: rootkey.TPM, PCRs: []uint{7, 7}}, device{}, claviger.Invalid},
		"registers of a token":   {rootkey.NewSlot{Kind: rootkey.PKCS11, PCRs: []uint{7}}, device{}, claviger.Invalid},
		"a device that lies":     {rootkey.NewSlot{Kind: rootkey.TPM}, device{lossy: true}, claviger.Internal},
		"a device that is away":  {rootkey.NewSlot{Kind: rootkey.TPM}, device{trouble: claviger.Errorf(claviger.Unavailable, "away", "plug it in")}, claviger.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDir(t)
			if _, err := d.New(nil, tt.slot, answers{}.with(t, &tt.v)); claviger.CodeOf(err) != tt.want {
				t.Errorf("got %v", err)
			}
			if tt.v.open != 0 {
				t.Error("the device was left open")
			}
		})
	}
	if _, err := newDir(t).New(nil, rootkey.NewSlot{Kind: rootkey.TPM}, answers{}.secrets(t)); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("without devices: %v", err)
	}
}

// TestWhichSlotOpens checks the order, what is said of those that failed, and
// which refusals are worth another try.
func TestWhichSlotOpens(t *testing.T) {
	t.Parallel()
	away := claviger.Errorf(claviger.Unavailable, "the TPM is not there", "plug it in")
	changed := claviger.Errorf(claviger.Denied, "the platform has changed", "seal anew")
	for name, tt := range map[string]struct {
		slots   []rootkey.SlotKind
		give    answers
		trouble error
		want    claviger.Code // "" when it opens
		failed  string
		asked   int // times that the device was
	}{
		"first the TPM":                {[]rootkey.SlotKind{rootkey.Passphrase, rootkey.TPM}, answers{}, nil, "", "", 1},
		"the token after a credential": {[]rootkey.SlotKind{rootkey.PKCS11, rootkey.Credential}, answers{credential: credential}, nil, "", "", 0},
		"the next after the TPM":       {[]rootkey.SlotKind{rootkey.TPM, rootkey.Credential}, answers{credential: credential}, changed, "", "slot 1 (tpm): the platform has changed", 1},
		"only an absent TPM":           {[]rootkey.SlotKind{rootkey.TPM}, answers{}, away, claviger.Unavailable, "", 1},
		"only an absent token":         {[]rootkey.SlotKind{rootkey.PKCS11}, answers{}, away, claviger.Denied, "", 1},
		"TPM and token absent":         {[]rootkey.SlotKind{rootkey.TPM, rootkey.PKCS11}, answers{}, away, claviger.Denied, "", 2},
		"only a changed platform":      {[]rootkey.SlotKind{rootkey.TPM}, answers{}, changed, claviger.Denied, "", 1},
		"absent, and a wrong phrase":   {[]rootkey.SlotKind{rootkey.TPM, rootkey.Passphrase}, answers{phrase: phrase + "!"}, away, claviger.Unavailable, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, v := newDir(t), &device{}
			var slots []rootkey.NewSlot
			for _, kind := range tt.slots {
				s := rootkey.NewSlot{Kind: kind}
				if kind == rootkey.Credential {
					s.Source = "root"
				}
				slots = append(slots, s)
			}
			made(t, d, answers{phrase: phrase, credential: credential}.with(t, v), slots...)
			v.trouble, v.asked = tt.trouble, 0
			r, err := opened(t, d, tt.give.with(t, v))
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(r.Failed, "; "); got != tt.failed {
					t.Errorf("failed before: %q, want %q", got, tt.failed)
				}
			} else if e, ok := errors.AsType[*claviger.Error](err); !ok || e.Code != tt.want || !strings.Contains(e.Hint, "another slot") {
				t.Errorf("got %v, want %s and a hint", err, tt.want)
			}
			if v.asked != tt.asked {
				t.Errorf("the device was asked %d times, want %d", v.asked, tt.asked)
			}
		})
	}
}

func TestAnotherDevice(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	made(t, d, answers{}.with(t, &device{}), rootkey.NewSlot{Kind: rootkey.TPM})
	_, err := opened(t, d, answers{}.with(t, &device{}))
	if !errors.Is(err, claviger.Denied) || !strings.Contains(err.Error(), "another device") {
		t.Errorf("got %v", err)
	}
}

func TestDeviceCommands(t *testing.T) {
	t.Parallel()
	p, v := newProgram(t), &device{info: claviger.Device{Manufacturer: "Maker", Software: true}}
	p.vault = func(kind rootkey.SlotKind, tpm string, token int) (rootkey.Vault, error) {
		if kind == rootkey.TPM && tpm != "unix:/tpm" || kind == rootkey.PKCS11 && token != 9 {
			t.Errorf("kind %s with %q and %d", kind, tpm, token)
		}
		return v, nil
	}
	p.must("", "init", "--kind", "tpm", "--pcr", "7,0", "--tpm", "unix:/tpm")
	p.must("", "add", "--kind", "pkcs11", "--tpm", "unix:/tpm", "--token-fd", "9")
	var rows []struct {
		ID       int
		Kind     string
		Source   string
		PCRs     []uint
		Software bool
		Insecure bool
		Created  time.Time
	}
	if err := json.Unmarshal([]byte(p.must("", "list", "--format", "json")), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || !rows[0].Software || rows[1].Kind != "pkcs11" || rows[1].Insecure || cmp.Diff([]uint{0, 7}, rows[0].PCRs) != "" {
		t.Errorf("list: %+v", rows)
	}
	if out := p.must("", "list"); !strings.Contains(out, "tpm (SOFTWARE)") || !strings.Contains(out, "Maker, registers [0 7]") {
		t.Errorf("list:\n%s", out)
	}
	if status, _, talk := p.run("", "rotate"); status != 3 || !strings.Contains(talk, "no TPM is named") {
		t.Errorf("without the flags: exit status %d, %s", status, talk)
	}
	p.must("", "remove", "--tpm", "unix:/tpm", "--token-fd", "9", "2")
	if len(v.kept) != 1 {
		t.Errorf("the token keeps %d secrets, want that of slot 1 alone", len(v.kept))
	}
	v.trouble = claviger.Errorf(claviger.Unavailable, "away", "plug it in")
	if status, _, talk := p.run("", "rotate", "--tpm", "unix:/tpm"); status != 5 || !strings.Contains(talk, "plug it in") {
		t.Errorf("with the device away: exit status %d, %s", status, talk)
	}
}

// TestDescribe: a slot that was sealed before its TPM was pinned says so.
func TestDescribe(t *testing.T) {
	t.Parallel()
	slot := rootkey.Slot{ID: 1, Kind: rootkey.TPM, Source: "Maker", Sealed: []byte("claviger tpm sealed 1\x00...")}
	now := slot
	now.ID, now.Sealed = 2, []byte("claviger tpm sealed 2\x00...")
	if diff := cmp.Diff("1 tpm (Maker, TPM NOT PINNED: add the slot anew), 2 tpm (Maker)", rootkey.Describe(slot, now)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
