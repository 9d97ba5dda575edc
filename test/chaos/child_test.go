//go:build failpoints

package chaos_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/segment"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/rootkey"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
)

const (
	operator      = 1000     // uid
	segmentBytes  = 16 << 10 // small, so that segments become full
	childDeadline = 60 * time.Second
)

// What a line says.
const (
	isReady        = "ready"         // the server is up and made its first signature
	isDone         = "done"          // the child did all it had to do
	isFault        = "fault"         // Text is wrong
	isKey          = "key"           // Key is how the key stood after an acknowledged change
	isUse          = "use"           // Use was released
	isVerified     = "verified"      // Use, a verification, was released; its record may be gathered yet
	isFlushed      = "flushed"       // all that the worker did before is written
	isPrincipal    = "principal"     // Principal is registered, or was revoked
	isGrant        = "grant"         // Grant stands, or was revoked
	isBudget       = "budget"        // Key or Grant has a budget that only this worker spends
	isCode         = "code"          // Code was issued to Principal
	isCertificate  = "certificate"   // Chain was issued for Code, or for another certificate
	isRevokedChain = "revoked-chain" // Chain was revoked
	isCheckpoint   = "checkpoint"    // Checkpoint is to be kept
	isSession      = "session"       // Session is open, or has ended
	isSessionUse   = "session-use"   // Session's key signed for the request that Text names
)

// line is what a child tells its parent once something has been acknowledged.
type line struct {
	What       string
	Worker     string
	Text       string                    `json:",omitempty"`
	Key        *claviger.Key             `json:",omitempty"`
	Use        *used                     `json:",omitempty"`
	Principal  *claviger.PrincipalRecord `json:",omitempty"`
	Grant      *claviger.Grant           `json:",omitempty"`
	Session    *claviger.Session         `json:",omitempty"`
	UID        int                       `json:",omitempty"` // of the local user that Grant or Key is for
	Code       string                    `json:",omitempty"`
	Serial     string                    `json:",omitempty"`
	Chain      [][]byte                  `json:",omitempty"`
	Checkpoint []byte                    `json:",omitempty"`
}

// used is one use that was released.
type used struct {
	Request string // id
	Op      claviger.Operation
	Key     claviger.ID
	Name    claviger.Name
	By      claviger.ID
	Version uint32
	Inputs  [][]byte
	Outputs [][]byte
	Grant   claviger.ID `json:",omitempty"` // the only one that it can rest on, where there is only one
}

// teller writes lines, each before the next.
type teller struct {
	mu  sync.Mutex
	out *os.File
}

func (t *teller) tell(l line) {
	raw, err := json.Marshal(l)
	if err != nil {
		panic(err) // a line is made of texts and numbers
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.out.Write(append(raw, '\n')); err != nil {
		os.Exit(3) // the parent has gone
	}
}

func (t *teller) fault(format string, args ...any) {
	t.tell(line{What: isFault, Text: fmt.Sprintf(format, args...)})
}

// world is a server without its network, in a process of its own.
type world struct {
	*keeper.Keeper
	*teller
	dir       string
	attempt   int
	seed      uint64
	db        *store.DB
	log       audit.Log
	processes *processes
	op        claviger.Principal

	restarting sync.RWMutex // held by who replaces the key process; others that need one process for two calls share it
}

// child does a role and returns the exit status.
func child(ctx context.Context, role string) int {
	ctx, cancel := context.WithTimeout(ctx, childDeadline)
	defer cancel()
	syscall.CloseOnExec(3)
	t := &teller{out: os.NewFile(3, "parent")}
	w, err := openWorld(ctx, t)
	if err != nil {
		t.fault("open: %v", err)
		return 1
	}
	defer w.processes.close()
	if role == worker {
		w.work(ctx)
		return 0 // as a crash would: nothing is closed
	}
	w.verify(ctx, os.Stdin)
	return 0
}

func openWorld(ctx context.Context, t *teller) (*world, error) {
	w := &world{teller: t, dir: os.Getenv(dirVariable)}
	attempt, err1 := strconv.Atoi(os.Getenv(attemptVariable))
	seed, err2 := strconv.ParseUint(os.Getenv(seedVariable), 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	w.attempt, w.seed = attempt, seed
	w.processes = &processes{dir: w.dir, path: os.Getenv(keydVariable)}
	var err error
	if w.db, err = sqlite.Open(ctx, filepath.Join(w.dir, "claviger.db")); err != nil {
		return nil, err
	}
	if w.log, err = segment.Open(ctx, segment.Config{Dir: filepath.Join(w.dir, "audit"), SegmentBytes: segmentBytes}); err != nil {
		return nil, err
	}
	w.Keeper, err = keeper.Open(ctx, keeper.Config{
		Store: w.db, Audit: w.log, Custodian: custody.New(custody.Config{Source: w.processes, Timeout: 10 * time.Second}),
		Operators: []int{operator}, StoreName: "sqlite", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return nil, err
	}
	w.op, err = w.ByUID(ctx, claviger.Facts{UID: operator, RequestID: "operator"})
	return w, err
}

// processes starts key processes with the root key that the directory says.
type processes struct {
	dir, path string

	mu  sync.Mutex // guards now
	now *custodytest.Starter
}

// Next implements custody.Source.
func (p *processes) Next(ctx context.Context) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now != nil {
		p.now.Close()
	}
	n, err := p.generations()
	if err != nil {
		return nil, err
	}
	b := &rootkey.Bundle{Identity: sha256.Sum256([]byte("identity"))}
	for i := uint32(1); i <= n; i++ {
		b.Generations = append(b.Generations, rootkey.Generation{Number: i, Key: sha256.Sum256([]byte{byte(i)})})
	}
	p.now = &custodytest.Starter{Path: p.path, Message: rootkey.Message{Kind: rootkey.Deliver, Bundle: b}}
	return p.now.Next(ctx)
}

// generations returns how many root keys there are.
func (p *processes) generations() (uint32, error) {
	text, err := os.ReadFile(filepath.Join(p.dir, "generations"))
	if errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(text), 10, 8)
	return uint32(n), err
}

// rotate makes another root key and kills the key process, whose successor
// has it.
func (p *processes) rotate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := p.generations()
	if err != nil {
		return err
	}
	next := filepath.Join(p.dir, "generations")
	if err := os.WriteFile(next+".new", strconv.AppendUint(nil, uint64(n)+1, 10), 0o600); err != nil {
		return err
	}
	if err := os.Rename(next+".new", next); err != nil {
		return err
	}
	p.now.Close()
	return nil
}

func (p *processes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now != nil {
		p.now.Close()
	}
}

// caller registers a local user and returns it as it calls.
func (w *world) caller(ctx context.Context, name string, uid int) (claviger.Principal, error) {
	p, err := w.CreatePrincipal(ctx, w.op, keeper.CreatePrincipal{
		Name: fmt.Sprintf("uid:%d", uid), Kind: claviger.Workload, Environments: []string{"prod"}, Owner: name,
	})
	if err != nil {
		return claviger.Principal{}, err
	}
	w.tell(line{What: isPrincipal, Worker: name, Principal: &p})
	return w.ByUID(ctx, claviger.Facts{UID: uid, RequestID: name})
}

// grant grants and returns the grant.
func (w *world) grant(ctx context.Context, name string, by claviger.Principal, selector string, c claviger.Conditions, ops ...claviger.Operation) (claviger.Grant, error) {
	req := keeper.CreateGrant{Principal: string(by.ID), Selector: selector, Conditions: c}
	for _, op := range ops {
		req.Operations = append(req.Operations, string(op))
	}
	g, err := w.CreateGrant(ctx, w.op, req)
	if err != nil {
		return claviger.Grant{}, err
	}
	w.tell(line{What: isGrant, Worker: name, Grant: &g.Grant, UID: by.Facts.UID})
	return g.Grant, nil
}

// protect does what a key is for, once for each input.
func (w *world) protect(ctx context.Context, by claviger.Principal, key *claviger.Key, request string, inputs ...[]byte) (*used, error) {
	by.Facts.RequestID = request
	u := &used{Request: request, Op: key.Algorithm.Protects(), Key: key.ID, Name: key.Name, By: by.ID, Inputs: inputs}
	var err error
	switch u.Op {
	case claviger.Sign:
		var signed keeper.Signed
		signed, err = w.Sign(ctx, by, keeper.SignRequest{Key: string(key.ID), Inputs: inputs})
		u.Version, u.Outputs = signed.Version, signed.Signatures
	case claviger.MAC:
		var macs keeper.MACs
		macs, err = w.MAC(ctx, by, keeper.MACRequest{Key: string(key.ID), Inputs: inputs})
		u.Version, u.Outputs = macs.Version, macs.MACs
	case claviger.Seal:
		req := keeper.SealRequest{Key: string(key.ID)}
		for _, in := range inputs {
			req.Items = append(req.Items, keeper.Plain{Plaintext: in})
		}
		var sealed keeper.Sealed
		sealed, err = w.Seal(ctx, by, req)
		u.Version, u.Outputs = sealed.Version, sealed.Sealed
	}
	return u, err
}

// process does the other half: it reports whether every output of a use is
// genuine.
func (w *world) process(ctx context.Context, by claviger.Principal, key *claviger.Key, of *used, request string) (bool, *used, error) {
	by.Facts.RequestID = request
	u := &used{Request: request, Op: key.Algorithm.Processes(), Key: key.ID, Name: key.Name, By: by.ID, Version: of.Version, Inputs: of.Inputs}
	items := make([]keeper.Item, len(of.Inputs))
	sealed := make([]keeper.SealedItem, len(of.Inputs))
	for i := range of.Inputs {
		items[i] = keeper.Item{Input: of.Inputs[i], Signature: of.Outputs[i], Version: of.Version}
		sealed[i] = keeper.SealedItem{Sealed: of.Outputs[i]}
	}
	var verdicts []keeper.Verdict
	var err error
	switch u.Op {
	case claviger.Verify:
		verdicts, err = w.Verify(ctx, by, keeper.VerifyRequest{Key: string(key.ID), Items: items})
	case claviger.VerifyMAC:
		verdicts, err = w.VerifyMAC(ctx, by, keeper.VerifyMACRequest{Key: string(key.ID), Items: items})
	case claviger.Open:
		var opened []keeper.Opened
		opened, err = w.Keeper.Open(ctx, by, keeper.OpenRequest{Key: string(key.ID), Items: sealed})
		for i, o := range opened {
			verdicts = append(verdicts, keeper.Verdict{Valid: o.OK && string(o.Plaintext) == string(of.Inputs[i]), Version: o.Version})
		}
	}
	all := err == nil
	for _, v := range verdicts {
		all = all && v.Valid && v.Version == of.Version
	}
	return all, u, err
}
