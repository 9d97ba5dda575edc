package keeper_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// What a run of this test binary is told when it is to be killed.
const (
	crashDir  = "CLAVIGER_CRASH_DIR"  // where store, log and the list of what was acknowledged are
	crashKeyd = "CLAVIGER_CRASH_KEYD" // the key process
)

// TestCrashScenario does a little of everything. In a process that is to be
// killed it notes what was acknowledged, for examine.
func TestCrashScenario(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		dir = t.TempDir()
	}
	acks, err := os.OpenFile(filepath.Join(dir, "acks"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer acks.Close()
	scenario(openWorld(t, dir), func(what string, more ...any) { fmt.Fprintln(acks, append([]any{what}, more...)...) })
}

// scenario does every kind of change once. Each line of what was acknowledged
// is a thing to look for afterwards.
func scenario(w *world, ack func(what string, more ...any)) {
	t, ctx := w.TB, w.Context()
	tag := strconv.FormatInt(time.Now().UnixNano(), 36)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	uid := int(time.Now().UnixNano() % 1e9)
	by := w.caller(uid)
	ack("principal", by.Name)
	all := w.grant(by, "prod/*/*", claviger.Conditions{Count: 1000}, claviger.Sign, claviger.Verify)
	ack("grant", all.ID)
	key := "prod/app/k" + tag
	w.key(key, claviger.Ed25519)
	ack("version", key, 1)
	must(sign(w, by, key))
	ack("use", key)
	_, err := w.Rotate(ctx, w.op, key, "test")
	must(err)
	ack("version", key, 2)
	one, err := w.BeginImport(ctx, w.op, key)
	must(err)
	sealed, err := one.Seal(custodytest.Material(t, claviger.Ed25519))
	must(err)
	_, err = w.Import(ctx, w.op, key, one.ID, sealed, "test")
	must(err)
	ack("version", key, 3)
	_, err = w.Verify(ctx, by, keeper.VerifyRequest{Key: key, Items: []keeper.Item{{Input: []byte("m"), Signature: []byte("s")}}})
	must(err)
	must(w.Flush(ctx))
	_, err = w.ChangeState(ctx, w.op, key, 1, claviger.Destroyed, "test")
	must(err)
	ack("destroyed", key, 1)
	_, err = w.RevokeGrant(ctx, w.op, string(all.ID), "test")
	must(err)
	ack("revoked-grant", all.ID)
	w.workload("w" + tag)
	cert, err := w.Enroll(ctx, w.code("w"+tag), request(t, newSigner(t)), claviger.Facts{UID: -1})
	must(err)
	ack("certificate", cert.Serial)
	must(w.RevokeCertificate(ctx, w.op, cert.Serial, "test"))
	ack("revoked-certificate", cert.Serial)
	_, err = w.RevokePrincipal(ctx, w.op, by.Name, "test")
	must(err)
	ack("revoked-principal", by.Name)
	_, err = w.Checkpoint(ctx, w.op)
	must(err)
	_, err = w.Rewrap(ctx, w.op)
	must(err)
}

// elsewhere are points that this scenario does not come to: rewrapping needs a
// second root key.
var elsewhere = []failpoint.Name{failpoint.RewrapBlob}

// TestKilledAtEveryPoint kills a process at every fail-point, and at random
// ones after that, and looks at what is left. CLAVIGER_CHAOS_RUNS says how
// many times in all; 60 when it is not set.
func TestKilledAtEveryPoint(t *testing.T) {
	t.Parallel()
	custodian(t) // builds the key process
	binary := filepath.Join(t.TempDir(), "keeper.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "failpoints", "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	type kill struct {
		point failpoint.Name
		count int
	}
	var kills []kill
	for _, point := range failpoint.Names() {
		if !slices.Contains(elsewhere, point) {
			kills = append(kills, kill{point, 1})
		}
	}
	if len(kills) < 30 {
		t.Fatalf("%d points, want at least 30", len(kills))
	}
	certain := len(kills)
	runs := 60
	if text := os.Getenv("CLAVIGER_CHAOS_RUNS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		runs = n
	}
	random := rand.New(rand.NewPCG(1, 2))
	for len(kills) < runs {
		kills = append(kills, kill{kills[random.IntN(certain)].point, 2 + random.IntN(12)})
	}
	for i, k := range kills {
		t.Run(fmt.Sprintf("%d-%s-%d", i, k.point, k.count), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if strings.HasPrefix(string(k.point), "outbox.") { // there must be something to replay
				if !killed(t, binary, dir, string(failpoint.ChangeCommitted)+"=5") {
					t.Fatal("the first process was not killed")
				}
			}
			if !killed(t, binary, dir, fmt.Sprintf("%s=%d", k.point, k.count)) && i < certain {
				t.Errorf("the process never came to %s", k.point)
			}
			examine(t, dir)
		})
	}
}

// killed runs the scenario until it is killed, or to its end.
func killed(t *testing.T, binary, dir, point string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.run", "^TestCrashScenario$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashKeyd+"="+keyProcess.path, "CLAVIGER_FAILPOINT="+point)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && ctx.Err() == nil {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
			return true
		}
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", point, err, out)
	}
	return false
}

// examine opens what a killed process left, and looks for everything that it
// acknowledged.
func examine(t *testing.T, dir string) {
	t.Helper()
	began := time.Now()
	w := openWorld(t, dir)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("ready again after %v, want at most 3s", took)
	}
	ctx := t.Context()
	actions := map[string]int{}
	changes := map[string]int{}
	for _, r := range w.records() {
		actions[r.Action+" "+string(r.Key)]++
		actions[r.Action+" "+string(r.Grant)]++
		actions[r.Action+" "+r.Detail["principal"]]++
		actions[r.Action+" "+r.Detail["serial"]]++
		if id := r.Detail["change"]; id != "" {
			changes[id]++
		}
	}
	for id, n := range changes {
		if n != 1 {
			t.Errorf("the change %s has %d records", id, n)
		}
	}
	report, err := w.VerifyAudit(ctx, w.op, nil)
	if err != nil || len(report.Faults) != 0 {
		t.Errorf("the audit log: %+v, %v", report.Faults, err)
	}
	for _, line := range acknowledged(t, dir) {
		if err := stands(w, line, actions); err != nil {
			t.Errorf("acknowledged %v: %v", line, err)
		}
	}
	everythingIsRecorded(w, actions)
	keys, _, err := w.Keys(ctx, w.op, store.KeyQuery{Selector: "prod/*/*"})
	if err != nil {
		t.Fatal(err)
	}
	by := w.caller(1 << 30)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Sign)
	for _, key := range keys {
		active := 0
		for _, v := range key.Versions {
			if v.State == claviger.Active {
				active++
			}
		}
		if active != 1 {
			t.Errorf("%s has %d active versions", key.Name, active)
		}
		if err := sign(w, by, string(key.Name)); err != nil {
			t.Errorf("sign with %s: %v", key.Name, err)
		}
	}
}

// everythingIsRecorded looks for what stands in the store without the record
// of its creation.
func everythingIsRecorded(w *world, actions map[string]int) {
	w.Helper()
	err := w.db.View(w.Context(), func(tx *store.Tx) error {
		keys, _, err := tx.Keys(store.KeyQuery{})
		if err != nil {
			return err
		}
		for _, key := range keys {
			if n := actions["key.create "+string(key.Name)]; n != 1 {
				w.Errorf("the key %s has %d records of its creation", key.Name, n)
			}
			made := actions["key.create "+string(key.Name)] + actions["key.rotate "+string(key.Name)] + actions["key.import "+string(key.Name)]
			if made != len(key.Versions) {
				w.Errorf("%s has %d versions and %d records of them", key.Name, len(key.Versions), made)
			}
		}
		principals, _, err := tx.Principals(store.PrincipalQuery{})
		for _, p := range principals {
			if n := actions["principal.create "+p.Name]; n != 1 {
				w.Errorf("the principal %s has %d records of its creation", p.Name, n)
			}
		}
		return err
	})
	if err != nil {
		w.Error(err)
	}
}

func acknowledged(t *testing.T, dir string) (lines [][]string) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "acks"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		lines = append(lines, strings.Fields(s.Text()))
	}
	return lines
}

// stands returns what is missing of one thing that was acknowledged.
func stands(w *world, line []string, actions map[string]int) error {
	ctx := w.Context()
	recorded := func(action string) error {
		if actions[action+" "+line[1]] == 0 {
			return fmt.Errorf("there is no record %s", action)
		}
		return nil
	}
	switch what, ref := line[0], line[1]; what {
	case "principal", "revoked-principal":
		p, err := w.Principal(ctx, w.op, ref)
		if err == nil && what == "revoked-principal" && p.Revoked.IsZero() {
			return errors.New("it is not revoked")
		}
		return errors.Join(err, recorded("principal.create"))
	case "grant", "revoked-grant":
		g, err := w.Grant(ctx, w.op, ref)
		if err == nil && what == "revoked-grant" && g.Revoked.IsZero() {
			return errors.New("it is not revoked")
		}
		return errors.Join(err, recorded("grant.create"))
	case "use":
		return recorded("use.sign")
	case "version", "destroyed":
		n, err := strconv.ParseUint(line[2], 10, 32)
		if err != nil {
			return err
		}
		key, err := w.Key(ctx, w.op, ref)
		if err != nil {
			return err
		}
		v := key.Version(uint32(n))
		if v == nil || what == "destroyed" && v.State != claviger.Destroyed {
			return fmt.Errorf("the versions are %+v", key.Versions)
		}
		return recorded([]string{"", "key.create", "key.rotate", "key.import"}[n])
	case "certificate", "revoked-certificate":
		var cert store.Certificate
		err := w.db.View(ctx, func(tx *store.Tx) error { var err error; cert, err = tx.Certificate(ref); return err })
		if err == nil && what == "revoked-certificate" && cert.Revoked.IsZero() {
			return errors.New("it is not revoked")
		}
		return errors.Join(err, recorded("principal.enrol"))
	}
	return errors.New("the line is unknown")
}
