//go:build failpoints

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

const sessionAudience = "https://api.example/"

// register makes a client, and a receiver that is told when its sessions end.
func (h *hand) register(ctx context.Context) error {
	h.client = claviger.Name("prod/chaos/" + h.fresh("c"))
	_, err := h.CreateClient(ctx, h.op, claviger.Client{Name: h.client, Principal: h.by.ID, Kind: claviger.Confidential, Audiences: []string{sessionAudience + "*"}})
	if err != nil {
		return err
	}
	_, err = h.CreateReceiver(ctx, h.op, claviger.Receiver{
		Name: h.fresh("r"), Kind: claviger.LogoutReceiver, Client: claviger.ID(h.client), URL: "https://shop.example/logout",
	}, "")
	if err != nil {
		return err
	}
	_, err = h.grant(ctx, h.name, h.by, string(h.client), claviger.Conditions{}, claviger.OpenSession)
	return err
}

// sessions opens two sessions, uses both, and ends one.
func (h *hand) sessions(ctx context.Context) error {
	var last claviger.Session
	for _, alg := range []claviger.Algorithm{claviger.ECDSAP256, claviger.Ed25519} {
		s, err := h.OpenSession(ctx, h.by, keeper.NewSession{Client: string(h.client), KeyKind: claviger.CustodyKey, Algorithm: alg})
		if err != nil {
			return err
		}
		h.tell(line{What: isSession, Worker: h.name, Session: &s})
		request := h.fresh("r")
		if err := h.signFor(ctx, h.by, &s, request); err != nil {
			return err
		}
		h.tell(line{What: isSessionUse, Worker: h.name, Session: &s, Text: request})
		last = s
	}
	if err := h.EndSession(ctx, h.by, last.ID, keeper.End{Reason: keeper.EndClosed}); err != nil {
		return err
	}
	last.State = claviger.SessionEnded
	h.tell(line{What: isSession, Worker: h.name, Session: &last})
	if err := h.signFor(ctx, h.by, &last, h.fresh("r")); !errors.Is(err, claviger.Denied) {
		h.fault("%s: the key of session %s was used after its end: %v", h.name, last.ID, err)
	}
	return nil
}

// signFor has the key of a session sign, and checks the signature.
func (w *world) signFor(ctx context.Context, by claviger.Principal, s *claviger.Session, request string) error {
	by.Facts.RequestID = request
	text := []byte("a statement for " + request)
	signed, err := w.SignForSession(ctx, by, s.ID, keeper.SessionStatement{Kind: "dpop", Audience: sessionAudience, Method: "GET", ToBeSigned: text})
	if err != nil {
		return err
	}
	key, err := pubkey.FromSPKI(s.Algorithm, s.Public)
	if err == nil && !key.Verify(text, signed.Signature, pubkey.ASN1) {
		w.fault("what the key of session %s signed is not genuine", s.ID)
	}
	return err
}

// foundSession is a session as it stands in the store.
type foundSession struct {
	claviger.Session
	blob      bool
	receivers int // of its client
	told      int // deliveries of its end
}

func sessionsIn(tx *store.Tx) (map[claviger.ID]foundSession, error) {
	found, told := map[claviger.ID]foundSession{}, map[claviger.ID]int{}
	err := pages(func(after string) (string, error) {
		list, next, err := tx.Deliveries(store.DeliveryQuery{After: claviger.ID(after), Limit: store.MaxLimit})
		for _, d := range list {
			told[d.Session]++
		}
		return string(next), err
	})
	if err != nil {
		return nil, err
	}
	err = pages(func(after string) (string, error) {
		list, next, err := tx.Sessions(store.SessionQuery{Ended: true, After: claviger.ID(after), Limit: store.MaxLimit})
		for _, s := range list {
			f := foundSession{Session: s, told: told[s.ID]}
			receivers, e := tx.ReceiversOf(s.Client)
			if e != nil {
				return "", e
			}
			f.receivers = len(receivers)
			_, _, e = tx.SessionBlob(s.ID)
			if f.blob = e == nil; e != nil && !errors.Is(e, claviger.NotFound) {
				return "", e
			}
			found[s.ID] = f
		}
		return string(next), err
	})
	return found, err
}

// sessions checks that a session that has ended signs nothing, that its key is
// gone and everybody is told once, and that every other one still signs.
func (c *check) sessions(ctx context.Context) error {
	for _, l := range c.told {
		if l.What != isSession {
			continue
		}
		s, ok := c.found.sessions[l.Session.ID]
		if !ok || l.Session.State == claviger.SessionEnded && s.State != claviger.SessionEnded {
			c.fault("session %s is not there, or has not ended any more", l.Session.ID)
		}
	}
	for id, s := range c.found.sessions {
		ended := s.State == claviger.SessionEnded
		if s.blob == ended {
			c.fault("session %s is %s; its key is there: %t", id, s.State, s.blob)
		}
		if want := map[bool]int{true: s.receivers}[ended]; s.told != want || s.receivers == 0 {
			c.fault("session %s is %s; of %d receivers, %d are to be told of its end", id, s.State, s.receivers, s.told)
		}
		var uid int
		if _, err := fmt.Sscanf(c.found.principals[s.Principal].Name, "uid:%d", &uid); err != nil {
			return fmt.Errorf("session %s: read its principal: %w", id, err)
		}
		by, err := c.ByUID(ctx, claviger.Facts{UID: uid})
		if err != nil {
			return err
		}
		err = c.signFor(ctx, by, &s.Session, c.request())
		if ended && !errors.Is(err, claviger.Denied) {
			c.fault("the key of session %s was used after its end: %v", id, err)
		}
		if !ended && err != nil {
			c.fault("session %s is %s, and its key does not sign: %v", id, s.State, err)
		}
	}
	return nil
}

// sessionRecords checks that every session that was opened and every signature
// that was released has its record.
func (c *check) sessionRecords(ctx context.Context) error {
	recorded := map[string]int{}
	err := c.all(ctx, func(r *audit.Record) {
		n := 0
		switch {
		case r.Outcome == audit.Allowed:
			n = 1
		case r.Reason == "dropped-before-release":
			n = -1
		}
		switch {
		case r.Action == "session.open":
			recorded[r.Detail["session"]] += n
		case strings.HasPrefix(r.Action, "session.use"):
			recorded[r.RequestID] += n
		}
	})
	for _, l := range c.told {
		switch {
		case l.What == isSession && recorded[string(l.Session.ID)] != 1:
			c.fault("session %s was opened and has %d records", l.Session.ID, recorded[string(l.Session.ID)])
		case l.What == isSessionUse && recorded[l.Text] != 1:
			c.fault("the use %s of session %s was released and has %d records", l.Text, l.Session.ID, recorded[l.Text])
		}
	}
	return err
}
