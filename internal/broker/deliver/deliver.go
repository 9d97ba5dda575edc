// Package deliver tells receivers that sessions have ended: OpenID Connect
// back-channel logout tokens, and security event tokens of Shared Signals.
//
// It owns the text of these tokens, the way they are sent, when one is tried
// again, and when it is given up. What is to be told stands in the outbox
// since the transaction that ended the session. It promises: everything there
// is delivered at least once or kept as dead, with one jti however often it is
// tried; a receiver that is down or slow holds no other back; nothing is sent
// but over https, to the address that was registered, and nothing secret with
// it: a receiver knows it by its signature.
//
// It must never hold a key, follow a redirect, or keep what a receiver answers.
package deliver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

// Outbox is what the door does for a Deliverer.
type Outbox interface {
	// DueReceivers returns the receivers that something waits for.
	DueReceivers(ctx context.Context) ([]claviger.Receiver, error)
	// LeaseDeliveries returns some of what waits for a receiver and puts it off,
	// so that no other server takes it meanwhile: a server that dies leaves it
	// to be taken again.
	LeaseDeliveries(ctx context.Context, receiver claviger.ID, until time.Time, limit int) ([]keeper.Delivery, error)
	// SettleDelivery says what became of one, and records it.
	SettleDelivery(ctx context.Context, d keeper.Delivery, s keeper.Settlement) error
	// SignEvent signs claims as a JWT of a type with the key of issued tokens.
	SignEvent(ctx context.Context, typ string, claims []byte) (string, error)
}

// The rules of trying again.
const (
	// parallel is how many tokens one receiver is sent at once.
	parallel = 4
	// leased is how many are taken at once for one receiver.
	leased = 32
	// lease is how long they stay with one server: longer than it needs for all.
	lease = leased/parallel*sendTimeout + time.Minute
	// firstPause is before the second try; each further pause is twice as long.
	firstPause = 2 * time.Second
	// longestPause bounds it.
	longestPause = 15 * time.Minute
	// maxTries is when a delivery is dead, unless it is too old before: with
	// these pauses that is after seven hours.
	maxTries = 40
)

// Deliverer carries the outbox out. Outbox and Issuer are required.
type Deliverer struct {
	Outbox   Outbox
	Issuer   string           // iss of the tokens
	Loopback bool             // receivers on this host are told too, with http as well: for tests
	Log      *slog.Logger     // discarded when nil
	Now      func() time.Time // time.Now when nil
	Every    time.Duration    // between two looks at the outbox; half a second when zero

	mu        sync.Mutex // guards what follows
	receivers map[claviger.ID]*circuit
}

// circuit is what is known of one receiver: whether it answers.
type circuit struct {
	busy   bool      // its worker runs
	fails  int       // in a row
	closed time.Time // nothing is tried before; zero where it answers
}

// Run delivers until ctx ends, and returns when what was under way is settled.
func (d *Deliverer) Run(ctx context.Context) {
	every := d.Every
	if every == 0 {
		every = 500 * time.Millisecond
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		d.look(ctx, &workers)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// look starts a worker for each receiver that something waits for, that has
// none, and that is not known to be away.
func (d *Deliverer) look(ctx context.Context, workers *sync.WaitGroup) {
	due, err := d.Outbox.DueReceivers(ctx)
	if err != nil {
		d.failed(ctx, "look at the outbox", err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.receivers == nil {
		d.receivers = map[claviger.ID]*circuit{}
	}
	known := make(map[claviger.ID]*circuit, len(due))
	for _, r := range due {
		c := d.receivers[r.ID]
		if c == nil {
			c = new(circuit)
		}
		known[r.ID] = c
		if c.busy || d.now().Before(c.closed) {
			continue
		}
		c.busy = true
		workers.Go(func() { d.serve(ctx, r, c) })
	}
	for id, c := range d.receivers {
		if c.busy {
			known[id] = c
		}
	}
	d.receivers = known // those that nothing waits for are forgotten
}

// serve delivers what is due for one receiver, until nothing is or it does not
// answer. The first goes alone where it did not answer last time.
func (d *Deliverer) serve(ctx context.Context, r claviger.Receiver, c *circuit) {
	defer func() {
		d.mu.Lock()
		c.busy = false
		d.mu.Unlock()
	}()
	roots, err := rootsOf(r)
	if err != nil {
		d.failed(ctx, "read the roots of receiver "+r.Name, err)
		return
	}
	client := newClient(roots, d.Loopback)
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		limit := leased
		if d.fails(c) > 0 {
			limit = 1
		}
		list, err := d.Outbox.LeaseDeliveries(ctx, r.ID, d.now().Add(lease), limit)
		if err != nil {
			d.failed(ctx, "take deliveries", err)
			return
		}
		d.batch(ctx, client, r, c, list)
		if len(list) < limit || d.now().Before(d.closedUntil(c)) {
			return
		}
	}
}

func (d *Deliverer) batch(ctx context.Context, client *http.Client, r claviger.Receiver, c *circuit, list []keeper.Delivery) {
	var group sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, one := range list {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			d.settle(ctx, one, d.try(ctx, client, r, c, one))
		})
	}
	group.Wait()
}

// try sends one delivery, unless its receiver was found to be away meanwhile.
func (d *Deliverer) try(ctx context.Context, client *http.Client, r claviger.Receiver, c *circuit, one keeper.Delivery) keeper.Settlement {
	now := d.now()
	if closed := d.closedUntil(c); now.Before(closed) || ctx.Err() != nil {
		return keeper.Settlement{Next: later(closed, now)}
	}
	err := d.send(ctx, client, r, one)
	if err == nil {
		d.answered(c)
		return keeper.Settlement{Arrived: true}
	}
	if ctx.Err() != nil { // this server stops: nothing is known of the receiver
		return keeper.Settlement{Next: now}
	}
	tries := int(one.Tries) + 1
	s := keeper.Settlement{Error: plain(err), Next: d.now().Add(pause(tries))}
	if _, refused := errors.AsType[refusal](err); refused {
		d.answered(c) // it is there
	} else {
		s.Next = later(d.away(c, now), s.Next)
	}
	s.Dead = tries >= maxTries
	return s
}

func (d *Deliverer) send(ctx context.Context, client *http.Client, r claviger.Receiver, one keeper.Delivery) error {
	t, err := newToken(d.Issuer, r, one, d.now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	jwt, err := d.Outbox.SignEvent(ctx, t.typ, t.claims)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	return send(ctx, client, r.Kind, r.URL, jwt)
}

// settle writes what became of a delivery, also while the server stops. Where
// that fails its lease ends, and it is sent again.
func (d *Deliverer) settle(ctx context.Context, one keeper.Delivery, s keeper.Settlement) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTimeout)
	defer cancel()
	if err := d.Outbox.SettleDelivery(ctx, one, s); err != nil {
		d.failed(ctx, "settle a delivery", err)
	}
	if s.Dead {
		d.log().Error("a receiver could not be told of the end of a session", "receiver", one.Receiver, "session", one.End.Session, "error", s.Error)
	}
}

func (d *Deliverer) fails(c *circuit) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return c.fails
}

func (d *Deliverer) closedUntil(c *circuit) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return c.closed
}

func (d *Deliverer) answered(c *circuit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.fails, c.closed = 0, time.Time{}
}

// away notes that a receiver does not answer, and returns until when it is left
// alone. Those that fail together count once.
func (d *Deliverer) away(c *circuit, began time.Time) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !began.Before(c.closed) {
		c.fails++
		c.closed = d.now().Add(pause(c.fails))
	}
	return c.closed
}

// pause is how long to wait after a number of tries: twice as long each time,
// less up to a half at random, so that receivers are not all asked at once.
func pause(tries int) time.Duration {
	most := longestPause
	if tries < 16 {
		most = min(firstPause<<(tries-1), longestPause)
	}
	return most/2 + rand.N(most/2)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// rootsOf are those that vouch for a receiver; nil for the system's.
func rootsOf(r claviger.Receiver) (*x509.CertPool, error) {
	if len(r.Roots) == 0 {
		return nil, nil //nolint:nilnil // the system's
	}
	pool := x509.NewCertPool()
	for _, der := range r.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return pool, fmt.Errorf("parse certificate: %w", err)
		}
		pool.AddCert(root)
	}
	return pool, nil
}

// plain is an error's text, bounded.
func plain(err error) string {
	text := err.Error()
	return text[:min(len(text), claviger.MaxTextLength)]
}

func (d *Deliverer) now() time.Time {
	if d.Now == nil {
		return time.Now()
	}
	return d.Now()
}

func (d *Deliverer) log() *slog.Logger {
	if d.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return d.Log
}

func (d *Deliverer) failed(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		d.log().Error(what, "error", err)
	}
}
