package keeper_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

func TestDoctorAndReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	if err := w.Ready(ctx); err != nil {
		t.Errorf("ready: %v", err)
	}
	find := func(part, name string) keeper.Measure {
		t.Helper()
		report, err := w.Doctor(ctx, w.op)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range report.Measures {
			if m.State == "off" && (m.Gain == "" || m.Hint == "" || report.Healthy) {
				t.Errorf("%+v is off, healthy %v: say what it means and what to do", m, report.Healthy)
			}
			if m.Part == part && m.Name == name {
				return m
			}
		}
		t.Fatalf("no measure %s of %s in %+v", name, part, report.Measures)
		return keeper.Measure{}
	}
	for part, name := range map[string]string{"keyd": "answers", "root": "root key", "store": "can be written", "audit": "can be written", "server": "own certificate"} {
		if m := find(part, name); m.State != "on" {
			t.Errorf("%+v, want on", m)
		}
	}
	w.log.broken.Store(true)
	w.later(2 * time.Second)
	if m := find("audit", "can be written"); m.State != "off" {
		t.Errorf("%+v on a full disk, want off", m)
	}
	wantCode(t, "ready on a full disk", w.Ready(ctx), claviger.Unavailable)
	w.log.broken.Store(false)
	w.later(2 * time.Second)
	if err := w.Ready(ctx); err != nil {
		t.Errorf("ready again: %v", err)
	}
	w.later(-10 * 365 * 24 * time.Hour)
	if m := find("host", "clock is not behind the record"); m.State != "off" {
		t.Errorf("%+v with the clock ten years back, want off", m)
	}
}

func TestAuditTrail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{}, claviger.Sign)
	w.key("prod/app/key", claviger.Ed25519)
	if err := sign(w, by, "prod/app/key"); err != nil {
		t.Fatal(err)
	}
	checkpoint, err := w.Checkpoint(ctx, w.op)
	if err != nil {
		t.Fatal(err)
	}
	report, err := w.VerifyAudit(ctx, w.op, checkpoint)
	if err != nil || len(report.Faults) != 0 || report.Records == 0 || report.Checkpoints == 0 {
		t.Errorf("report %+v, %v", report, err)
	}
	var forged map[string]any
	if err := json.Unmarshal(checkpoint, &forged); err != nil {
		t.Fatal(err)
	}
	forged["seq"] = "1"
	bad, err := json.Marshal(forged)
	if err != nil {
		t.Fatal(err)
	}
	report, err = w.VerifyAudit(ctx, w.op, bad)
	if err != nil || len(report.Faults) == 0 {
		t.Errorf("a forged checkpoint: %+v, %v", report, err)
	}
	var got []string
	q := keeper.AuditQuery{KeyRef: "prod/app/key", PrincipalRef: "uid:7"}
	if err := w.Query(ctx, w.op, q, func(l audit.Line) error { got = append(got, l.Record.Action); return nil }); err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, " ") != "use.sign" {
		t.Errorf("records of the caller and the key: %v", got)
	}
	following, stop := context.WithCancel(ctx)
	q.Follow = true
	seen := 0
	err = w.Query(following, w.op, q, func(audit.Line) error {
		if seen++; seen == 1 {
			go func() { _ = sign(w, by, "prod/app/key") }()
		} else {
			stop()
		}
		return nil
	})
	if seen != 2 {
		t.Errorf("followed %d records, %v", seen, err)
	}
}

// A record whose change is committed reaches the log at the next start, once.
func TestOutboxReachesTheLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := openWorld(t, dir)
	w.log.broken.Store(true)
	_, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/app/key", Algorithm: "ed25519"})
	wantCode(t, "create while nothing can be recorded", err, claviger.Unavailable)
	w.log.broken.Store(false)
	// The row of a change that is recorded already, as a crash before the
	// drop leaves it.
	if _, err := w.Rotate(t.Context(), w.op, "prod/app/key", "", 0); err != nil {
		t.Fatal(err)
	}
	w.closed.Do(w.shut)
	w = openWorld(t, dir)
	n := map[string]int{}
	for _, r := range w.records() {
		if r.Key == "prod/app/key" {
			n[r.Action]++
		}
	}
	if n["key.create"] != 1 || n["key.rotate"] != 1 {
		t.Errorf("records %v, want one of the creation and one of the rotation", n)
	}
	var rows []store.Outgoing
	if err := w.db.View(t.Context(), func(tx *store.Tx) error { var err error; rows, err = tx.Outbox(10); return err }); err != nil || len(rows) != 0 {
		t.Errorf("%d rows are left, %v", len(rows), err)
	}
}

// Periodic checkpoints leave the host; a place that fails is shown, and tried
// again with the next one.
func TestCheckpointExport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	find := func(k *keeper.Keeper) keeper.Measure {
		t.Helper()
		report, err := k.Doctor(t.Context(), w.op)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range report.Measures {
			if m.Name == "checkpoints are kept elsewhere" {
				return m
			}
		}
		t.Fatal("doctor says nothing of where checkpoints are kept")
		return keeper.Measure{}
	}
	if m := find(w.Keeper); m.State != "unavailable" || m.Hint == "" {
		t.Errorf("without a place: %+v", m)
	}
	cfg := w.config()
	cfg.Checkpoints = time.Nanosecond // one each second, which is how often Run looks
	lines := make(chan []byte)
	var broken atomic.Bool
	cfg.Export = func(ctx context.Context, line []byte) error {
		select {
		case lines <- line:
		case <-ctx.Done():
		}
		if broken.Load() {
			return errors.New("no such place")
		}
		return nil
	}
	w.open(cfg)
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- w.Run(ctx) }()
	first := <-lines
	report, err := w.VerifyAudit(t.Context(), w.op, first)
	if err != nil || len(report.Faults) > 0 {
		t.Errorf("an exported checkpoint does not verify: %+v, %v", report, err)
	}
	broken.Store(true)
	<-lines
	<-lines // the one before has been answered
	if m := find(w.Keeper); m.State != "off" || m.Hint == "" || !strings.Contains(m.Detail, "could not be delivered") {
		t.Errorf("with a broken place: %+v", m)
	}
	broken.Store(false)
	<-lines
	<-lines
	if m := find(w.Keeper); m.State != "on" {
		t.Errorf("with a place that works again: %+v", m)
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestBackupIsRecordedFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var wrote bytes.Buffer
	cfg := w.config()
	recorded := 0
	cfg.Backup = func(_ context.Context, recipients []string, out io.Writer) error {
		for _, r := range w.records() {
			if r.Action == "server.backup" {
				recorded++
			}
		}
		if len(recipients) == 0 {
			return errors.New("no recipient")
		}
		_, err := io.WriteString(out, "archive")
		return err
	}
	k, err := keeper.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Backup(t.Context(), w.op, []string{"age1"}, &wrote); err != nil || wrote.String() != "archive" || recorded != 1 {
		t.Errorf("backup: %v, wrote %q after %d records", err, wrote.String(), recorded)
	}
	w.log.broken.Store(true)
	wrote.Reset()
	wantCode(t, "backup that cannot be recorded", k.Backup(t.Context(), w.op, []string{"age1"}, &wrote), claviger.Unavailable)
	if wrote.Len() != 0 {
		t.Error("a backup was written without a record")
	}
	w.log.broken.Store(false)
	wantCode(t, "backup that fails", k.Backup(t.Context(), w.op, nil, &wrote), claviger.Internal)
}

func TestStructuredSigning(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.key("prod/app/jwt", claviger.ECDSAP256)
	w.grant(by, "prod/app/jwt", claviger.Conditions{Template: &claviger.Template{JWT: &claviger.JWTTemplate{
		Issuer: "https://issuer.example", Subject: "app", Audiences: []string{"api"}, MaxLifetime: claviger.Duration(time.Hour),
	}}}, claviger.Sign)
	claims := func(audience string) []byte {
		now := time.Now().Unix()
		b, err := json.Marshal(map[string]any{"iss": "https://issuer.example", "sub": "app", "aud": audience, "iat": now, "exp": now + 60})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	out, err := w.SignStructured(t.Context(), by, keeper.StructuredRequest{Key: "prod/app/jwt", JWT: &keeper.JWT{Claims: claims("api")}})
	if err != nil {
		t.Fatal(err)
	}
	if parts := strings.Split(string(out.Signed), "."); len(parts) != 3 || out.KID == "" || out.Version != 1 {
		t.Errorf("signed %s, kid %q, version %d", out.Signed, out.KID, out.Version)
	}
	calls := w.keys.calls.Load()
	_, err = w.SignStructured(t.Context(), by, keeper.StructuredRequest{Key: "prod/app/jwt", JWT: &keeper.JWT{Claims: claims("other")}})
	wantCode(t, "another audience", err, claviger.Denied)
	wantCode(t, "raw signing", sign(w, by, "prod/app/jwt"), claviger.Denied)
	_, err = w.SignStructured(t.Context(), by, keeper.StructuredRequest{Key: "prod/app/jwt"})
	wantCode(t, "nothing to sign", err, claviger.Invalid)
	if w.keys.calls.Load() != calls {
		t.Error("the custodian was called for what was refused")
	}
}

func TestListing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	for _, name := range []string{"prod/a/one", "prod/a/two", "prod/b/three"} {
		w.key(name, claviger.Ed25519)
	}
	w.grant(by, "prod/a/*", claviger.Conditions{}, claviger.ReadKey)
	w.grant(by, "prod/a/one", claviger.Conditions{}, claviger.Sign)
	names := func(p claviger.Principal) (list []string) {
		t.Helper()
		keys, _, err := w.Keys(t.Context(), p, store.KeyQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			list = append(list, string(k.Name))
		}
		return list
	}
	if got := strings.Join(names(by), " "); got != "prod/a/one prod/a/two" {
		t.Errorf("a caller with a grant sees %s", got)
	}
	if got := strings.Join(names(w.op), " "); got != "prod/a/one prod/a/two prod/b/three" {
		t.Errorf("an operator sees %s", got)
	}
	grants, _, err := w.Grants(t.Context(), w.op, store.GrantQuery{Principal: by.ID})
	if err != nil || len(grants) != 2 || grants[0].PrincipalName != "uid:7" {
		t.Errorf("grants %+v, %v", grants, err)
	}
}

// After the root key was rotated, a rewrap brings every blob to the new
// generation while keys are used.
func TestRewrap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Sign)
	for _, name := range []string{"prod/app/one", "prod/app/two"} {
		w.key(name, claviger.Ed25519)
		if _, err := w.Rotate(t.Context(), w.op, name, "", 0); err != nil {
			t.Fatal(err)
		}
		if err := sign(w, by, name); err != nil {
			t.Fatal(err)
		}
	}
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	session := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	if err := w.use(by, session.ID); err != nil {
		t.Fatal(err)
	}
	client, stop := startKeydWith(keyProcess.path, 2)
	defer stop()
	w.keys.Custodian = client
	// Two keys of two versions, the four system keys, and the key of a session.
	done, err := w.Rewrap(t.Context(), w.op)
	if err != nil || done != (keeper.Rewrapped{Rewrapped: 9, Generation: 2}) {
		t.Errorf("rewrapped %+v, %v, want 9 blobs at generation 2", done, err)
	}
	if done, err = w.Rewrap(t.Context(), w.op); err != nil || done != (keeper.Rewrapped{Already: 9, Generation: 2}) {
		t.Errorf("rewrapped again %+v, %v, want none of 9", done, err)
	}
	for _, name := range []string{"prod/app/one", "prod/app/two"} {
		if err := sign(w, by, name); err != nil {
			t.Errorf("sign after the rewrap: %v", err)
		}
	}
	if err := w.use(by, session.ID); err != nil {
		t.Errorf("use of a session after the rewrap: %v", err)
	}
	if _, err := w.Checkpoint(t.Context(), w.op); err != nil {
		t.Errorf("checkpoint after the rewrap: %v", err)
	}
}

// A blob that does not open does not keep a rewrap from the others, and is
// counted each time; a custodian that is gone is no damage.
func TestRewrapDamaged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Sign)
	altered, whole := w.key("prod/app/altered", claviger.Ed25519), w.key("prod/app/whole", claviger.Ed25519)
	lost := w.key("prod/app/lost", claviger.Ed25519)
	put := func(id claviger.ID, generation uint32, alter func([]byte)) {
		t.Helper()
		err := w.db.Update(t.Context(), func(tx *store.Tx) error {
			blob, _, err := tx.Blob(id, 1)
			if err != nil {
				return err
			}
			alter(blob)
			return tx.PutBlob(id, 1, generation, blob)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(altered.ID, 1, func(b []byte) { b[len(b)-1] ^= 1 })
	put(lost.ID, 1, func(b []byte) { b[4] = 200 }) // wrapped under a generation that nobody has
	client, stop := startKeydWith(keyProcess.path, 2)
	w.keys.Custodian = client
	// Three keys of one version, and the four system keys.
	for again, want := range []keeper.Rewrapped{{Rewrapped: 5, Damaged: 2, Generation: 2}, {Already: 5, Damaged: 2, Generation: 2}} {
		if done, err := w.Rewrap(t.Context(), w.op); err != nil || done != want {
			t.Errorf("time %d: rewrapped %+v, %v, want %+v", again, done, err, want)
		}
	}
	if err := sign(w, by, string(whole.Name)); err != nil {
		t.Errorf("sign with a key behind the damaged one: %v", err)
	}
	put(altered.ID, 1, func(b []byte) { b[len(b)-1] ^= 1 })
	if done, err := w.Rewrap(t.Context(), w.op); err != nil || done != (keeper.Rewrapped{Rewrapped: 1, Already: 5, Damaged: 1, Generation: 2}) {
		t.Errorf("after a repair: %+v, %v", done, err)
	}
	stop()
	if done, err := w.Rewrap(t.Context(), w.op); err == nil {
		t.Errorf("without a custodian: rewrapped %+v", done)
	}
}
