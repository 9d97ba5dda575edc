//go:build failpoints

package chaos_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

const (
	workers      = 3
	rounds       = 4  // of each worker, unless it is killed before
	budgetLimit  = 12 // of grants and versions that have one
	stateReason  = "moved by the workload"
	revokeReason = "lost by its owner"
)

// hand is one worker. What it makes is touched by no other, so that the order
// of its acknowledgements is the order of what happened.
type hand struct {
	*world
	name    string
	rng     *mathrand.Rand
	by      claviger.Principal
	uid     int // next free one
	made    int // names and requests so far
	keys    []*claviger.Key
	client  claviger.Name // of sessions
	limited struct {
		grant *claviger.Grant
		by    claviger.Principal // of grant
		key   *claviger.Key      // on which grant is
		few   *claviger.Key      // whose version may seal only so often
	}
}

// work does what a busy server does until it is killed, or for some rounds.
func (w *world) work(ctx context.Context) {
	running, stop := context.WithCancel(ctx)
	defer stop()
	go func() { _ = w.Run(running) }() // returns nil, and with the process
	var group sync.WaitGroup
	for n := range workers {
		h := &hand{
			world: w, name: fmt.Sprintf("a%dw%d", w.attempt, n), uid: 10000 + 10000*w.attempt + 1000*n,
			rng: mathrand.New(mathrand.NewPCG(w.seed, uint64(100*w.attempt+n))),
		}
		group.Go(func() {
			if err := h.begin(ctx); err != nil {
				w.fault("%s: begin: %v", h.name, err)
				return
			}
			for range rounds {
				h.round(ctx, n == 0)
			}
		})
	}
	group.Wait()
	w.tell(line{What: isDone})
}

func (h *hand) begin(ctx context.Context) (err error) {
	if h.by, err = h.caller(ctx, h.name, h.next()); err != nil {
		return err
	}
	if _, err = h.grant(ctx, h.name, h.by, "prod/*/*", claviger.Conditions{}, claviger.UseOperations...); err != nil {
		return err
	}
	if err = h.create(ctx); err != nil {
		return err
	}
	if err = h.limit(ctx); err != nil {
		return err
	}
	return h.register(ctx)
}

// round does every step once, in some order.
func (h *hand) round(ctx context.Context, first bool) {
	steps := map[string]func(context.Context) error{
		"create": h.create, "use": h.use, "use again": h.use, "rotate": h.rotate, "move": h.move, "destroy": h.destroy,
		"import": h.importKey, "update": h.update, "revoke grant": h.revokeGrant, "revoke principal": h.revokePrincipal,
		"enrol": h.enrol, "spend": h.spend, "flush": h.flush, "checkpoint": h.checkpoint, "sessions": h.sessions,
	}
	if first {
		steps["rewrap"] = h.rewrap
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range steps {
			if !yield(name) {
				return
			}
		}
	})
	h.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		if err := steps[name](ctx); err != nil {
			h.fault("%s: %s: %v", h.name, name, err)
		}
	}
}

func (h *hand) next() int { h.uid++; return h.uid }

// fresh returns a name that was not used before.
func (h *hand) fresh(what string) string {
	h.made++
	return fmt.Sprintf("%s-%s%d", h.name, what, h.made)
}

func (h *hand) acknowledge(key claviger.Key) {
	h.tell(line{What: isKey, Worker: h.name, Key: &key})
	for i, have := range h.keys {
		if have.ID == key.ID {
			h.keys[i] = &key
		}
	}
}

func (h *hand) create(ctx context.Context) error {
	algorithms := []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.HMACSHA256, claviger.AES256GCM}
	key, err := h.make(ctx, keeper.CreateKey{
		Algorithm: string(algorithms[h.rng.IntN(len(algorithms))]), PreActivation: h.made > 0 && h.rng.IntN(4) == 0,
	})
	if err == nil {
		h.keys = append(h.keys, key)
	}
	return err
}

func (h *hand) make(ctx context.Context, req keeper.CreateKey) (*claviger.Key, error) {
	req.Name, req.Owner = "prod/chaos/"+h.fresh("k"), h.name
	view, err := h.CreateKey(ctx, h.op, req)
	if err != nil {
		return nil, err
	}
	h.acknowledge(view.Key)
	return &view.Key, nil
}

// pick returns one of the worker's keys with an active version.
func (h *hand) pick() *claviger.Key {
	var live []*claviger.Key
	for _, key := range h.keys {
		if key.ActiveVersion() != nil {
			live = append(live, key)
		}
	}
	if len(live) == 0 {
		return nil
	}
	return live[h.rng.IntN(len(live))]
}

func (h *hand) use(ctx context.Context) error {
	key := h.pick()
	if key == nil {
		return nil
	}
	inputs := make([][]byte, 1+h.rng.IntN(3))
	for i := range inputs {
		inputs[i] = fmt.Appendf(nil, "message %d of %s", h.rng.Uint64(), h.name)
	}
	u, err := h.protect(ctx, h.by, key, h.fresh("r"), inputs...)
	if err != nil {
		return err
	}
	h.tell(line{What: isUse, Worker: h.name, Use: u})
	ok, processed, err := h.process(ctx, h.by, key, u, h.fresh("r"))
	if err != nil {
		return err
	}
	if !ok {
		h.fault("%s: what version %d of %s made is not genuine", h.name, u.Version, key.Name)
	}
	what := isVerified
	if processed.Op == claviger.Open { // recorded by itself
		what = isUse
	}
	h.tell(line{What: what, Worker: h.name, Use: processed})
	return nil
}

func (h *hand) rotate(ctx context.Context) error {
	key := h.pick()
	if key == nil {
		return nil
	}
	view, err := h.Rotate(ctx, h.op, string(key.ID), "", 0)
	if err == nil {
		h.acknowledge(view.Key)
	}
	return err
}

// move brings a version to another state that it may take, but destroyed.
func (h *hand) move(ctx context.Context) error {
	key := h.keys[h.rng.IntN(len(h.keys))]
	v := key.Versions[h.rng.IntN(len(key.Versions))]
	var to []claviger.State
	for _, s := range claviger.States() {
		if claviger.TransitionNumber(v.State, s) != 0 && s != claviger.Destroyed && (s != claviger.Active || key.ActiveVersion() == nil) {
			to = append(to, s)
		}
	}
	if len(to) == 0 {
		return h.create(ctx)
	}
	return h.state(ctx, key, v.Number, to[h.rng.IntN(len(to))])
}

func (h *hand) state(ctx context.Context, key *claviger.Key, version uint32, to claviger.State) error {
	view, err := h.ChangeState(ctx, h.op, string(key.ID), version, to, stateReason, true)
	if err == nil {
		h.acknowledge(view.Key)
	}
	return err
}

// destroy destroys the version that was active, after another took its place,
// whoever used it last.
func (h *hand) destroy(ctx context.Context) error {
	key := h.pick()
	if key == nil {
		return nil
	}
	old := key.ActiveVersion().Number
	view, err := h.Rotate(ctx, h.op, string(key.ID), "", 0)
	if err != nil {
		return err
	}
	h.acknowledge(view.Key)
	return h.state(ctx, key, old, claviger.Destroyed)
}

func (h *hand) importKey(ctx context.Context) error {
	h.restarting.RLock() // a one-time key is gone with its process
	defer h.restarting.RUnlock()
	key, err := h.make(ctx, keeper.CreateKey{Algorithm: string(claviger.HMACSHA256), ForImport: true})
	if err != nil {
		return err
	}
	oneTime, err := h.BeginImport(ctx, h.op, string(key.ID))
	if err != nil {
		return err
	}
	if err := oneTime.Verify(sha256.Sum256(oneTime.Identity), time.Now()); err != nil {
		return err
	}
	material := make([]byte, 32)
	_, _ = rand.Read(material)
	sealed, err := oneTime.Seal(material)
	if err != nil {
		return err
	}
	view, err := h.Import(ctx, h.op, keeper.Import{Key: string(key.ID), OneTime: oneTime.ID, Sealed: sealed})
	if err != nil {
		return err
	}
	h.keys = append(h.keys, &view.Key)
	h.acknowledge(view.Key)
	return nil
}

func (h *hand) update(ctx context.Context) error {
	key := h.keys[h.rng.IntN(len(h.keys))]
	owner := h.fresh("owner")
	view, err := h.UpdateKey(ctx, h.op, string(key.ID), keeper.KeyChange{Owner: &owner})
	if err != nil {
		return err
	}
	h.acknowledge(view.Key)
	view, err = h.Rename(ctx, h.op, string(key.ID), "prod/chaos/"+h.fresh("renamed"))
	if err == nil {
		h.acknowledge(view.Key)
	}
	return err
}

// guest is somebody with one grant on one key, who has used it.
func (h *hand) guest(ctx context.Context) (by claviger.Principal, g claviger.Grant, key *claviger.Key, err error) {
	if key = h.pick(); key == nil {
		if key, err = h.make(ctx, keeper.CreateKey{Algorithm: string(claviger.Ed25519)}); err != nil {
			return by, g, nil, err
		}
	}
	if by, err = h.caller(ctx, h.name, h.next()); err != nil {
		return by, g, key, err
	}
	if g, err = h.grant(ctx, h.name, by, string(key.Name), claviger.Conditions{}, key.Algorithm.Protects()); err != nil {
		return by, g, key, err
	}
	u, err := h.protect(ctx, by, key, h.fresh("r"), []byte("before"))
	if err == nil {
		u.Grant = g.ID
		h.tell(line{What: isUse, Worker: h.name, Use: u})
	}
	return by, g, key, err
}

// refused checks that somebody can do nothing any more.
func (h *hand) refused(ctx context.Context, by claviger.Principal, key *claviger.Key, why string) {
	if _, err := h.protect(ctx, by, key, h.fresh("r"), []byte("after")); !errors.Is(err, claviger.Denied) {
		h.fault("%s: used %s after %s: %v", h.name, key.Name, why, err)
	}
}

func (h *hand) revokeGrant(ctx context.Context) error {
	by, g, key, err := h.guest(ctx)
	if err != nil {
		return err
	}
	view, err := h.RevokeGrant(ctx, h.op, string(g.ID), revokeReason)
	if err != nil {
		return err
	}
	h.tell(line{What: isGrant, Worker: h.name, Grant: &view.Grant, Key: key, UID: by.Facts.UID})
	h.refused(ctx, by, key, "its grant was revoked")
	return nil
}

func (h *hand) revokePrincipal(ctx context.Context) error {
	by, _, key, err := h.guest(ctx)
	if err != nil {
		return err
	}
	p, err := h.RevokePrincipal(ctx, h.op, string(by.ID), revokeReason)
	if err != nil {
		return err
	}
	h.tell(line{What: isPrincipal, Worker: h.name, Principal: &p, Key: key, UID: by.Facts.UID})
	h.refused(ctx, by, key, "its principal was revoked")
	return nil
}

// enrol enrols a principal, renews its certificate and revokes the first one.
func (h *hand) enrol(ctx context.Context) error {
	p, err := h.CreatePrincipal(ctx, h.op, keeper.CreatePrincipal{Name: h.fresh("e"), Kind: claviger.Workload, Environments: []string{"prod"}})
	if err != nil {
		return err
	}
	h.tell(line{What: isPrincipal, Worker: h.name, Principal: &p})
	code, err := h.IssueCode(ctx, h.op, p.Name, 0)
	if err != nil {
		return err
	}
	h.tell(line{What: isCode, Worker: h.name, Principal: &p, Code: code.Code})
	csr, err := certificateRequest()
	if err != nil {
		return err
	}
	first, err := h.Enroll(ctx, code.Code, csr, claviger.Facts{UID: -1, RequestID: h.fresh("r")})
	if err != nil {
		return err
	}
	h.tell(line{What: isCertificate, Worker: h.name, Code: code.Code, Serial: first.Serial, Chain: first.Chain})
	leaf, err := x509.ParseCertificate(first.Chain[0])
	if err != nil {
		return err
	}
	by, err := h.ByCertificate(ctx, leaf, claviger.Facts{UID: -1, RequestID: h.fresh("r")})
	if err != nil {
		return err
	}
	second, err := h.Renew(ctx, by, csr)
	if err != nil {
		return err
	}
	h.tell(line{What: isCertificate, Worker: h.name, Serial: second.Serial, Chain: second.Chain})
	if err := h.RevokeCertificate(ctx, h.op, first.Serial, revokeReason); err != nil {
		return err
	}
	h.tell(line{What: isRevokedChain, Worker: h.name, Serial: first.Serial, Chain: first.Chain})
	if _, err := h.ByCertificate(ctx, leaf, claviger.Facts{UID: -1}); !errors.Is(err, claviger.Unauthenticated) {
		h.fault("%s: known by a certificate that was revoked: %v", h.name, err)
	}
	return nil
}

func certificateRequest() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// limit makes what has a budget.
func (h *hand) limit(ctx context.Context) (err error) {
	l := &h.limited
	if l.key, err = h.make(ctx, keeper.CreateKey{Algorithm: string(claviger.Ed25519)}); err != nil {
		return err
	}
	l.few, err = h.make(ctx, keeper.CreateKey{Algorithm: string(claviger.AES256GCM), Settings: claviger.Settings{MaxInvocations: budgetLimit}})
	if err != nil {
		return err
	}
	h.tell(line{What: isBudget, Worker: h.name, Key: l.few, UID: h.by.Facts.UID})
	if l.by, err = h.caller(ctx, h.name, h.next()); err != nil {
		return err
	}
	g, err := h.grant(ctx, h.name, l.by, string(l.key.Name), claviger.Conditions{Count: budgetLimit}, claviger.Sign)
	if err != nil {
		return err
	}
	l.grant = &g
	h.tell(line{What: isBudget, Worker: h.name, Grant: &g, Key: l.key, UID: l.by.Facts.UID})
	return nil
}

// spend uses budgets up.
func (h *hand) spend(ctx context.Context) error {
	l := &h.limited
	for range 3 {
		u, err := h.protect(ctx, l.by, l.key, h.fresh("r"), []byte("one of a few"))
		if err != nil {
			return err
		}
		u.Grant = l.grant.ID
		h.tell(line{What: isUse, Worker: h.name, Use: u})
		if u, err = h.protect(ctx, h.by, l.few, h.fresh("r"), []byte("one of a few")); err != nil {
			return err
		}
		h.tell(line{What: isUse, Worker: h.name, Use: u})
	}
	return nil
}

func (h *hand) flush(ctx context.Context) error {
	if err := h.Flush(ctx); err != nil {
		return err
	}
	h.tell(line{What: isFlushed, Worker: h.name})
	return nil
}

func (h *hand) checkpoint(ctx context.Context) error {
	checkpoint, err := h.Checkpoint(ctx, h.op)
	if err == nil {
		h.tell(line{What: isCheckpoint, Worker: h.name, Checkpoint: checkpoint})
	}
	return err
}

// rewrap makes another root key and brings every blob to it.
func (h *hand) rewrap(ctx context.Context) error {
	h.restarting.Lock()
	err := h.processes.rotate()
	h.restarting.Unlock()
	if err != nil {
		return err
	}
	done, err := h.Rewrap(ctx, h.op)
	if err == nil && done.Generation < 2 {
		h.fault("%s: rewrapped to root key %d", h.name, done.Generation)
	}
	return err
}
