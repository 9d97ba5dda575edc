package deliver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker/deliver"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

const issuer = "https://id.example"

// outbox is the door's part, in memory. It fails the test when a delivery is
// settled that nobody leased, or twice.
type outbox struct {
	t   *testing.T
	key *ecdsa.PrivateKey

	mu        sync.Mutex
	receivers []claviger.Receiver
	rows      map[claviger.ID]*keeper.Delivery
	leased    map[claviger.ID]bool
	arrived   []claviger.ID
	settled   chan keeper.Settlement // each, in order
}

func newOutbox(t *testing.T, receivers ...claviger.Receiver) *outbox {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &outbox{t: t, key: key, receivers: receivers, rows: map[claviger.ID]*keeper.Delivery{}, leased: map[claviger.ID]bool{},
		settled: make(chan keeper.Settlement, 10_000)}
}

func (o *outbox) put(receiver claviger.ID, id claviger.ID) keeper.Delivery {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := time.Now()
	d := keeper.Delivery{ID: id, Receiver: receiver, State: store.DeliveryPending, Since: at, Next: at, End: keeper.SessionEnded{
		Session: "ses-" + id, Client: "cli-1", Subject: claviger.Subject{Issuer: "https://login.example", ID: "ada"}, Reason: keeper.EndLogout, By: "person", At: at}}
	o.rows[id] = &d
	return d
}

func (o *outbox) DueReceivers(context.Context) (due []claviger.Receiver, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.receivers {
		for _, d := range o.rows {
			if d.Receiver == r.ID && d.State == store.DeliveryPending && !d.Next.After(time.Now()) {
				due = append(due, r)
				break
			}
		}
	}
	return due, nil
}

func (o *outbox) LeaseDeliveries(_ context.Context, receiver claviger.ID, until time.Time, limit int) (list []keeper.Delivery, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range o.rows {
		if d.Receiver == receiver && d.State == store.DeliveryPending && !d.Next.After(time.Now()) {
			list = append(list, *d)
		}
	}
	slices.SortFunc(list, func(a, b keeper.Delivery) int { return strings.Compare(string(a.ID), string(b.ID)) })
	list = list[:min(limit, len(list))]
	for _, d := range list {
		o.rows[d.ID].Next = until
		o.leased[d.ID] = true
	}
	return list, nil
}

func (o *outbox) SettleDelivery(_ context.Context, d keeper.Delivery, s keeper.Settlement) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.leased[d.ID] {
		o.t.Errorf("delivery %s was settled and not leased", d.ID)
	}
	delete(o.leased, d.ID)
	switch row := o.rows[d.ID]; {
	case s.Arrived:
		delete(o.rows, d.ID)
		o.arrived = append(o.arrived, d.ID)
	case s.Dead:
		row.State, row.Error = store.DeliveryDead, s.Error
	default:
		if s.Error != "" {
			row.Tries++
		}
		row.Error, row.Next = s.Error, s.Next
	}
	o.settled <- s
	return nil
}

func (o *outbox) SignEvent(_ context.Context, typ string, claims []byte) (string, error) {
	header, _ := json.Marshal(map[string]string{"alg": "ES256", "typ": typ, "kid": "k"})
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, o.key, sum[:])
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), err
}

// arrivals waits until so many have arrived.
func (o *outbox) arrivals(n int) {
	o.t.Helper()
	for {
		o.mu.Lock()
		have := len(o.arrived)
		o.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-o.settled:
		case <-time.After(20 * time.Second):
			o.t.Fatalf("%d of %d arrived", have, n)
		}
	}
}

// run runs a Deliverer until the test ends.
func run(t *testing.T, d *deliver.Deliverer) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// listener is a receiver that keeps what it is sent, over real TLS.
type listener struct {
	*httptest.Server
	mu     sync.Mutex
	got    []*http.Request // with what was posted in their Form, or as "body"
	answer func(n int) (status int, body string)
}

func listen(t *testing.T, answer func(n int) (int, string)) *listener {
	l := &listener{answer: answer}
	l.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, 64<<10)
		n := 0
		for {
			m, err := r.Body.Read(body[n:])
			n += m
			if err != nil {
				break
			}
		}
		r.Form = map[string][]string{"body": {string(body[:n])}}
		l.mu.Lock()
		l.got = append(l.got, r)
		count := len(l.got)
		l.mu.Unlock()
		status, text := l.answer(count)
		w.Header().Set("Location", "https://elsewhere.example/")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *listener) receiver(id claviger.ID, kind claviger.ReceiverKind) claviger.Receiver {
	return claviger.Receiver{ID: id, Name: string(id), Kind: kind, URL: l.URL + "/told", Audience: "cli-1", Roots: [][]byte{l.Certificate().Raw}}
}

func (l *listener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.got)
}

func ok(int) (int, string) { return http.StatusOK, "" }

// claimsOf reads a token without checking it.
func claimsOf(t *testing.T, jwt string) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		t.Fatalf("no JWT: %q", jwt)
	}
	for i, v := range []*map[string]any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}
