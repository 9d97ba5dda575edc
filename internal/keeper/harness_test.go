package keeper_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/segment"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/rootkey"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
)

// keyProcess is the one real key process that the tests share. It is built and
// started when the first of them needs it, which fuzz targets do not.
var keyProcess struct {
	once   sync.Once
	dir    string
	path   string
	client *custody.Client
	stop   func()
}

func TestMain(m *testing.M) {
	code := m.Run()
	if keyProcess.stop != nil {
		keyProcess.stop()
	}
	_ = os.RemoveAll(keyProcess.dir)
	os.Exit(code)
}

// custodian returns the client of the shared key process.
func custodian(t testing.TB) *custody.Client {
	t.Helper()
	keyProcess.once.Do(func() {
		var err error
		if keyProcess.dir, err = os.MkdirTemp("", "keeper"); err != nil {
			t.Fatal(err)
		}
		if keyProcess.path, err = custodytest.Build(keyProcess.dir, true); err != nil {
			t.Fatal(err)
		}
		keyProcess.client, keyProcess.stop = startKeyd(keyProcess.path)
	})
	if keyProcess.client == nil {
		t.Fatal("the key process could not be built")
	}
	return keyProcess.client
}

func startKeyd(path string) (*custody.Client, func()) { return startKeydWith(path, 1) }

// startKeydWith starts a key process whose root key has so many generations.
func startKeydWith(path string, generations int) (*custody.Client, func()) {
	bundle := &rootkey.Bundle{Identity: [32]byte(bytes.Repeat([]byte{9}, 32))}
	for i := range generations {
		bundle.Generations = append(bundle.Generations, rootkey.Generation{Number: uint32(i + 1), Key: [32]byte(bytes.Repeat([]byte{byte(i + 1)}, 32))})
	}
	s := &custodytest.Starter{Path: path, Message: rootkey.Message{Kind: rootkey.Deliver, Bundle: bundle}}
	c := custody.New(custody.Config{Source: s, Timeout: 20 * time.Second})
	return c, func() { c.Close(); s.Close() }
}

// watched counts what reaches the custodian.
type watched struct {
	keeper.Custodian
	calls  atomic.Int64
	during atomic.Pointer[func()] // runs while the custodian is used
}

func (w *watched) call() {
	w.calls.Add(1)
	if f := w.during.Load(); f != nil {
		(*f)()
	}
}

func (w *watched) Sign(ctx context.Context, m custody.Material, in [][]byte, pre bool) ([][]byte, error) {
	w.call()
	return w.Custodian.Sign(ctx, m, in, pre)
}

func (w *watched) MAC(ctx context.Context, m custody.Material, in [][]byte) ([][]byte, error) {
	w.call()
	return w.Custodian.MAC(ctx, m, in)
}

func (w *watched) VerifyMAC(ctx context.Context, m custody.Material, in, macs [][]byte) ([]bool, error) {
	w.call()
	return w.Custodian.VerifyMAC(ctx, m, in, macs)
}

func (w *watched) Seal(ctx context.Context, m custody.Material, items []custody.Plain) ([][]byte, error) {
	w.call()
	return w.Custodian.Seal(ctx, m, items)
}

func (w *watched) Open(ctx context.Context, m custody.Material, items []custody.Sealed) ([]custody.Opened, error) {
	w.call()
	return w.Custodian.Open(ctx, m, items)
}

func (w *watched) Generate(ctx context.Context, b frames.Binding) (custody.Made, error) {
	w.call()
	return w.Custodian.Generate(ctx, b)
}

func (w *watched) OneTimeKey(ctx context.Context, purpose string, b frames.Binding) (onetime.Key, error) {
	w.call()
	return w.Custodian.OneTimeKey(ctx, purpose, b)
}

func (w *watched) Adopt(ctx context.Context, b frames.Binding, id string, sealed []byte) (custody.Made, error) {
	w.call()
	return w.Custodian.Adopt(ctx, b, id, sealed)
}

// watchedLog is the real log, with faults on request.
type watchedLog struct {
	audit.Log
	broken atomic.Bool                         // Append fails
	after  atomic.Pointer[func(*audit.Record)] // runs after a record is durable
}

func (l *watchedLog) Append(ctx context.Context, records ...*audit.Record) error {
	if l.broken.Load() {
		return claviger.Errorf(claviger.Unavailable, "the disk is full", "free some space")
	}
	err := l.Log.Append(ctx, records...)
	if f := l.after.Load(); f != nil {
		for _, r := range records {
			(*f)(r)
		}
	}
	return err
}

// world is a keeper on a real store, a real audit log and a real key process.
type world struct {
	testing.TB
	*keeper.Keeper
	dir    string
	db     *store.DB
	log    *watchedLog
	keys   *watched
	offset atomic.Int64 // of the clock
	op     claviger.Principal
	closed sync.Once
}

const operatorUID = 1000

func newWorld(t testing.TB) *world { return openWorld(t, t.TempDir()) }

func openWorld(t testing.TB, dir string) *world {
	t.Helper()
	w := &world{TB: t, dir: dir, keys: &watched{Custodian: custodian(t)}}
	var err error
	if w.db, err = sqlite.Open(t.Context(), filepath.Join(dir, "claviger.db")); err != nil {
		t.Fatal(err)
	}
	log, err := segment.Open(t.Context(), segment.Config{Dir: filepath.Join(dir, "audit"), SegmentBytes: segmentBytes(t)})
	if err != nil {
		t.Fatal(err)
	}
	w.log = &watchedLog{Log: log}
	w.open(w.config())
	t.Cleanup(w.close)
	return w
}

// segmentBytes is small in tests, so that segments are sealed in them.
func segmentBytes(t testing.TB) int64 {
	if _, ok := t.(*testing.B); ok {
		return 0
	}
	return 8 << 10
}

func (w *world) config() keeper.Config {
	return keeper.Config{Store: w.db, Audit: w.log, Custodian: w.keys, Now: w.now, Operators: []int{operatorUID}, StoreName: "sqlite"}
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }

// later moves the clock.
func (w *world) later(d time.Duration) { w.offset.Add(int64(d)) }

func (w *world) open(cfg keeper.Config) {
	w.Helper()
	var err error
	if w.Keeper, err = keeper.Open(w.Context(), cfg); err != nil {
		w.Fatal(err)
	}
	if w.op, err = w.ByUID(w.Context(), claviger.Facts{UID: operatorUID, RequestID: "test"}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) close() {
	w.closed.Do(func() {
		if err := w.Close(context.WithoutCancel(w.Context())); err != nil {
			w.Error(err)
		}
		w.shut()
	})
}

// shut closes store and log without Close of the keeper, as a crash would.
func (w *world) shut() {
	if err := w.log.Close(); err != nil {
		w.Error(err)
	}
	if err := w.db.Close(); err != nil {
		w.Error(err)
	}
}

func (w *world) key(name string, alg claviger.Algorithm) keeper.KeyView {
	w.Helper()
	v, err := w.CreateKey(w.Context(), w.op, keeper.CreateKey{Name: name, Algorithm: string(alg), Owner: "tests"})
	if err != nil {
		w.Fatal(err)
	}
	return v
}

// caller registers a local user and returns it as it would call.
func (w *world) caller(uid int) claviger.Principal {
	w.Helper()
	_, err := w.CreatePrincipal(w.Context(), w.op, keeper.CreatePrincipal{
		Name: fmt.Sprintf("uid:%d", uid), Kind: claviger.Workload, Environments: []string{"prod"}, Owner: "tests",
	})
	if err != nil {
		w.Fatal(err)
	}
	by, err := w.ByUID(w.Context(), claviger.Facts{UID: uid, RequestID: "test"})
	if err != nil {
		w.Fatal(err)
	}
	return by
}

func (w *world) grant(by claviger.Principal, selector string, conditions claviger.Conditions, ops ...claviger.Operation) keeper.GrantView {
	w.Helper()
	req := keeper.CreateGrant{Principal: string(by.ID), Selector: selector, Conditions: conditions, Reason: "test"}
	for _, op := range ops {
		req.Operations = append(req.Operations, string(op))
	}
	g, err := w.CreateGrant(w.Context(), w.op, req)
	if err != nil {
		w.Fatal(err)
	}
	return g
}

// records returns every record of the log.
func (w *world) records() []audit.Record {
	w.Helper()
	var list []audit.Record
	err := w.log.Iterate(w.Context(), audit.Query{}, func(l audit.Line) error {
		list = append(list, l.Record)
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
	return list
}

// since returns the records of what f does.
func (w *world) since(f func()) []audit.Record {
	w.Helper()
	n := len(w.records())
	f()
	return w.records()[n:]
}

// writes returns how many rows were ever written through the store.
func (w *world) writes() (n int) {
	w.Helper()
	if err := w.db.SQL().QueryRowContext(w.Context(), "SELECT total_changes()").Scan(&n); err != nil {
		w.Fatal(err)
	}
	return n
}

func wantCode(t testing.TB, what string, err error, want claviger.Code) {
	t.Helper()
	if got := claviger.CodeOf(err); got != want {
		t.Errorf("%s: code %q (%v), want %q", what, got, err, want)
	}
}

func sign(w *world, by claviger.Principal, key string) error {
	_, err := w.Sign(w.Context(), by, keeper.SignRequest{Key: key, Inputs: [][]byte{[]byte("message")}})
	return err
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// runUntil runs the keeper until a condition holds, which it looks at whenever
// the audit log grows or a moment has passed.
func runUntil(w *world, done func() bool) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	stopped := make(chan error)
	running, stop := context.WithCancel(ctx)
	go func() { stopped <- w.Run(running) }()
	for !done() {
		heads, err := w.log.Head(ctx)
		if err == nil {
			err = w.log.Wait(ctx, heads)
		}
		if err != nil {
			w.Fatalf("it did not happen: %v", err)
		}
	}
	stop()
	if err := <-stopped; err != nil {
		w.Error(err)
	}
}
