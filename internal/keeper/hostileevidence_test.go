package keeper_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"unicode"
	"unicode/utf8"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/keeper"
)

type anyDevice = keeper.Device

// liar is a token that has the key process make its keys, and says of them what
// it likes.
type liar struct {
	anyDevice
	keys  keeper.Custodian
	level claviger.Level
	away  atomic.Bool
	says  string // beside its name
	binds atomic.Int32
}

func (l *liar) Device(context.Context) (claviger.Device, error) {
	if l.away.Load() {
		return claviger.Device{}, claviger.Errorf(claviger.Unavailable, "the token is away", "put it back")
	}
	return claviger.Device{Kind: claviger.P11, Manufacturer: "liar" + l.says, Model: l.says, Algorithms: append(claviger.Algorithms(), claviger.Algorithm(l.says))}, nil
}

func (l *liar) Generate(ctx context.Context, b frames.Binding) (custody.Made, error) {
	made, err := l.keys.Generate(ctx, b)
	made.Level, made.Reference = l.level, "pkcs11:object=liar"+l.says
	return made, err
}

func (l *liar) Bind(ctx context.Context, b frames.Binding, _ string) (custody.Made, error) {
	l.binds.Add(1)
	return l.Generate(ctx, b)
}

func (l *liar) Probe(context.Context, custody.Material, bool) (custody.Probed, error) {
	if l.away.Load() {
		return custody.Probed{}, claviger.Errorf(claviger.Unavailable, "the token is away", "put it back")
	}
	return custody.Probed{Level: l.level, Finding: l.says, Attempts: []claviger.Attempt{{Probe: "p11.liar" + l.says, Verdict: claviger.Held, Control: l.says, Result: l.says}}}, nil
}

func lied(t *testing.T) (*world, *liar) {
	t.Helper()
	l := &liar{level: claviger.Attested}
	w, h := isolated(t, func(cfg *keeper.Config) {
		cfg.Devices = map[claviger.Custodian]keeper.Device{claviger.P11: l}
	})
	l.keys = h
	return w, l
}

// A device's own word is never attested, from the first moment.
func TestDeviceThatSaysAttested(t *testing.T) {
	t.Parallel()
	w, l := lied(t)
	for say, want := range map[claviger.Level]claviger.Level{
		claviger.Attested: claviger.Hardware, claviger.Isolated: claviger.Isolated, "": claviger.Exposed, "platinum": claviger.Exposed, claviger.Lapsed: claviger.Exposed,
	} {
		l.level = say
		name := "prod/app/says-" + string(say) + "x"
		v, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: name, Algorithm: "ed25519", Custodian: claviger.P11})
		if err != nil || v.Level() != want {
			t.Errorf("a device that says %q made a key of level %s, %v, want %s", say, v.Level(), err, want)
		}
	}
	w.refresh()
}

// What others have in a token is not for who may create keys of some names.
func TestBindingIsForWhoManagesTheServer(t *testing.T) {
	t.Parallel()
	w, l := lied(t)
	by, half := w.caller(7), w.caller(8)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.CreateKey, claviger.Sign)
	w.grant(half, "prod/*/*", claviger.Conditions{}, claviger.CreateKey, claviger.ManageServer)
	req := keeper.CreateKey{Name: "prod/mine/key", Algorithm: "ed25519", Custodian: claviger.P11, Reference: "pkcs11:object=corporate-root;type=private"}
	for _, who := range []claviger.Principal{by, half} {
		records := w.since(func() {
			_, err := w.CreateKey(t.Context(), who, req)
			wantCode(t, "bind what others have", err, claviger.Denied)
		})
		if len(records) != 1 || records[0].Outcome != audit.Denied || l.binds.Load() != 0 {
			t.Errorf("it left %+v, and %d keys were bound", records, l.binds.Load())
		}
	}
	if _, err := w.CreateKey(t.Context(), w.op, req); err != nil || l.binds.Load() != 1 {
		t.Errorf("bind as an operator: %v", err)
	}
	req.Name, req.Reference = "prod/mine/made", ""
	if _, err := w.CreateKey(t.Context(), by, req); err != nil {
		t.Errorf("have a key made: %v", err)
	}
}

// One device that is away does not keep a run over others' keys from being
// recorded, and is not exposed by it.
func TestRunOverWhatIsAway(t *testing.T) {
	t.Parallel()
	w, l := lied(t)
	soft := w.key("prod/app/soft", claviger.Ed25519)
	token, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/app/token", Algorithm: "ed25519", Custodian: claviger.P11, Settings: claviger.Settings{SuspendExposed: true}})
	if err != nil {
		t.Fatal(err)
	}
	before := token.Versions[0].Shown
	l.away.Store(true)
	req := keeper.Recording{Run: claviger.NewID(w.now()), Subjects: []keeper.Subject{{Key: soft.ID, Version: 1}, {Key: token.ID, Version: 1}}}
	req.Judge = func(f keeper.Facts, s keeper.Signer) ([]keeper.Shown, []byte, error) {
		if f.Own[1].Level != claviger.Lapsed || f.Own[1].Finding == "" {
			t.Errorf("of what is away the facts are %+v", f.Own[1])
		}
		return shown("", "")(f, s)
	}
	records := w.since(func() {
		if _, err := w.RecordEvidence(t.Context(), w.op, req); err != nil {
			t.Error(err)
		}
	})
	if len(records) != 1 || records[0].Count != 1 || records[0].Detail["unexamined"] != "1" {
		t.Errorf("the run left %+v", records)
	}
	if got := w.level("prod/app/soft"); got != claviger.Isolated {
		t.Errorf("the other key is %s", got)
	}
	v, err := w.Key(t.Context(), w.op, "prod/app/token")
	if err != nil || v.Level() != claviger.Hardware || v.Versions[0].State != claviger.Active || !v.Versions[0].Shown.Equal(before) {
		t.Errorf("what is away is now %+v, %v", v.Versions, err)
	}
	// Nothing better may be said of it.
	req.Run, req.Judge = claviger.NewID(w.now()), shown(claviger.Isolated, "")
	_, err = w.RecordEvidence(t.Context(), w.op, req)
	wantCode(t, "a level of what is away", err, claviger.Internal)
}

// Who may record nothing does not learn what is there, and leaves a record.
func TestRunOverNothingIsRecorded(t *testing.T) {
	t.Parallel()
	w, _ := isolated(t, nil)
	stranger, manager := w.caller(8), w.caller(7)
	w.grant(manager, "prod/app/*", claviger.Conditions{}, claviger.ManageKey)
	mine, other := w.key("prod/app/key", claviger.Ed25519), w.key("prod/web/key", claviger.Ed25519)
	none := keeper.Subject{Key: claviger.NewID(w.now()), Version: 1}
	for name, test := range map[string]struct {
		by       claviger.Principal
		subjects []keeper.Subject
	}{
		"no key, by a stranger":        {stranger, []keeper.Subject{none}},
		"a key, by a stranger":         {stranger, []keeper.Subject{{Key: other.ID, Version: 1}}},
		"no version, by a stranger":    {stranger, []keeper.Subject{{Key: other.ID, Version: 9}}},
		"no key beside one's own":      {manager, []keeper.Subject{{Key: mine.ID, Version: 1}, none}},
		"another's beside one's own":   {manager, []keeper.Subject{{Key: mine.ID, Version: 1}, {Key: other.ID, Version: 1}}},
		"another's version, not there": {manager, []keeper.Subject{{Key: mine.ID, Version: 1}, {Key: other.ID, Version: 9}}},
	} {
		records := w.since(func() {
			_, err := w.RecordEvidence(t.Context(), test.by, keeper.Recording{Run: claviger.NewID(w.now()), Subjects: test.subjects, Judge: shown("", "")})
			wantCode(t, name, err, claviger.Denied)
		})
		if len(records) != 1 || records[0].Outcome != audit.Denied || records[0].Action != "evidence.record" {
			t.Errorf("%s left %+v", name, records)
		}
	}
}

// What a device tells that no terminal should see, and no message can carry,
// is told without it.
func TestDeviceThatTellsGarbage(t *testing.T) {
	t.Parallel()
	w, l := lied(t)
	l.level, l.says = claviger.Hardware, "\x1b[2J\u009b\u202e\xff\x00\n"+strings.Repeat("x", 100)
	v, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/app/token", Algorithm: "ed25519", Custodian: claviger.P11})
	if err != nil {
		t.Fatal(err)
	}
	_, probed, err := w.Probe(t.Context(), w.op, "prod/app/token", 1, false)
	if err != nil || len(probed.Attempts) != 1 {
		t.Fatalf("%+v, %v", probed, err)
	}
	list, err := w.Custodians(t.Context(), w.op)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	d, a := list[1].Device, probed.Attempts[0]
	for _, text := range []string{v.Versions[0].Reference, d.Manufacturer, d.Model, probed.Finding, a.Probe, a.Result, a.Control} {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || !strings.Contains(text, "xxx") {
			t.Errorf("a device told %q", text)
		}
	}
	if len(d.Algorithms) != len(claviger.Algorithms()) {
		t.Errorf("%d algorithms", len(d.Algorithms))
	}
	w.refresh()
	if v, err = w.Key(t.Context(), w.op, "prod/app/token"); err != nil || strings.ContainsFunc(v.Finding(), func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("the finding is %q, %v", v.Finding(), err)
	}
}
