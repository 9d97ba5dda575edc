// Package gather is the group commit of audit homes: concurrent appends are
// collected while a batch is being made durable, and become the next batch.
// It promises that nobody returns before their records are durable or refused,
// and that the home's commit runs in one goroutine. It knows no storage.
package gather

import (
	"context"
	"runtime"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
)

// Item is one record on its way: its body and what a home indexes.
type Item struct {
	Body      []byte // from audit.Record.Body
	Time      time.Time
	Action    string
	Outcome   audit.Outcome
	Key       claviger.Name
	KeyID     claviger.ID
	Principal claviger.ID
	Head      audit.Head // set by the home: the chain after this record
}

// NewItem cleans and encodes a record.
func NewItem(r *audit.Record) (Item, error) {
	body, err := r.Body(make([]byte, 0, 640)) // most bodies fit
	return Item{Body: body, Time: r.Time.UTC().Truncate(time.Microsecond), Action: r.Action, Outcome: r.Outcome,
		Key: claviger.Name(audit.Clean(string(r.Key))), KeyID: claviger.ID(audit.Clean(string(r.KeyID))), Principal: claviger.ID(audit.Clean(string(r.Principal)))}, err
}

// Queue gathers appends for one home.
type Queue struct {
	commit func([]Item) error
	wake   chan struct{}
	ended  chan struct{}

	mu     sync.Mutex // guards what follows
	open   *batch     // collecting; nil when there is nothing to do
	closed bool
	grown  chan struct{} // closed when the log grows
}

type batch struct {
	items []Item
	done  chan struct{} // closed when err and the items' heads are set
	err   error
}

// New starts a queue. commit makes the items durable in order and sets their
// heads; it is never called twice at once and its error goes to every caller
// of the batch.
func New(commit func([]Item) error) *Queue {
	q := &Queue{commit: commit, wake: make(chan struct{}, 1), ended: make(chan struct{}), grown: make(chan struct{})}
	go q.run()
	return q
}

// Append implements audit.Log.
func (q *Queue) Append(ctx context.Context, records ...*audit.Record) error {
	if len(records) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return late(err)
	}
	var room [1]Item
	items := room[:0]
	for _, r := range records {
		item, err := NewItem(r)
		if err != nil {
			return err
		}
		items = append(items, item)
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return claviger.Errorf(claviger.Unavailable, "the audit log is closed", "the server is stopping; try again when it is back")
	}
	b := q.open
	if b == nil {
		b = &batch{done: make(chan struct{})}
		q.open = b
		q.wake <- struct{}{} // never blocks: one token for each open batch
	}
	at := len(b.items)
	b.items = append(b.items, items...)
	q.mu.Unlock()
	select {
	case <-b.done:
	case <-ctx.Done():
		return late(ctx.Err())
	}
	if b.err != nil {
		return b.err
	}
	for i, r := range records {
		r.Writer, r.Seq = b.items[at+i].Head.Writer, b.items[at+i].Head.Seq
	}
	return nil
}

func late(err error) error {
	return claviger.Errorf(claviger.Deadline, "the audit record was not durable in time", "try again; look at the disk or database of the audit log").Wrap(err)
}

func (q *Queue) run() {
	defer close(q.ended)
	for range q.wake {
		// Those who were told of the last batch run first and join this one;
		// otherwise the quickest of them would have a sync to itself.
		runtime.Gosched()
		q.mu.Lock()
		b := q.open
		q.open = nil
		q.mu.Unlock()
		b.err = q.commit(b.items)
		close(b.done)
		if b.err == nil {
			q.Grow()
		}
	}
}

// Grow wakes everybody who waits for the log to grow.
func (q *Queue) Grow() {
	q.mu.Lock()
	defer q.mu.Unlock()
	close(q.grown)
	q.grown = make(chan struct{})
}

// Wait implements audit.Log on the home's own Head.
func (q *Queue) Wait(ctx context.Context, after []audit.Head, head func(context.Context) ([]audit.Head, error)) error {
	for {
		q.mu.Lock()
		grown := q.grown
		q.mu.Unlock()
		heads, err := head(ctx)
		if err != nil {
			return err
		}
		if audit.Longer(heads, after) {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close lets accepted appends finish and refuses later ones. It reports
// whether this call was the one that closed.
func (q *Queue) Close() bool {
	q.mu.Lock()
	first := !q.closed
	q.closed = true
	if first {
		close(q.wake)
	}
	q.mu.Unlock()
	<-q.ended
	return first
}
