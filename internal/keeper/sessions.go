package keeper

import (
	"context"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

// Limits of sessions and of what is asked of them.
const (
	MaxToBeSigned  = 16 << 10 // bytes to be signed for a session
	maxSessionList = 32       // audiences, scopes, methods or actors of one session
	minIdle        = 10 * time.Second
	keepEnded      = 7 * 24 * time.Hour // sessions that have ended; the record has them for good
)

// NewSession asks for a session. Its limits can only be tighter than the
// client's: what is zero is the client's.
type NewSession struct {
	Client         string           // by id or name
	Subject        claviger.Subject // the principal itself when it has no id
	Actors         []claviger.Actor
	KeyKind        claviger.SessionKey
	Algorithm      claviger.Algorithm // of a key in custody: ecdsa-p256-sha256 when empty, or ed25519
	Public         []byte             // of any other key: SubjectPublicKeyInfo, DER
	Scopes         []string
	Audiences      []string // patterns; empty: the client's
	Methods        []string // of HTTP
	MaxUses        uint64
	Rate           *claviger.Rate
	Idle, Lifetime time.Duration
	Source         claviger.Source // of the browser, where the caller knows it; zero: the connection's
	UpstreamIssuer string
	UpstreamSID    string
}

// SessionStatement is what a session's key signs. Package broker builds it
// from a structured request; a caller's digest is never signed.
type SessionStatement struct {
	Kind       string          // "dpop", "assertion", "jwt" or "ssh"
	Audience   string          // what it is for: the URL of a request, or the aud of a token
	Method     string          // of the request, upper case
	ToBeSigned []byte          // at most MaxToBeSigned
	Source     claviger.Source // as in NewSession
}

// SessionSigned is the signature under a statement.
type SessionSigned struct {
	Signature []byte // as custody makes it: ECDSA in ASN.1
	Session   claviger.Session
}

// OpenSession opens a session of a client, with a key that custody makes or
// with one that the caller has. It answers claviger.Denied without a grant to
// open sessions of the client, and claviger.Exhausted when the subject has as
// many as the client may have.
func (k *Keeper) OpenSession(ctx context.Context, by claviger.Principal, n NewSession) (claviger.Session, error) {
	if err := n.check(); err != nil {
		return claviger.Session{}, err
	}
	s, err := k.sessionSnapshot(ctx, by.ID, n.Client, "")
	if err != nil {
		return claviger.Session{}, outward(err)
	}
	if s.client != nil {
		n.inherit(s.client)
	}
	if n.Subject.ID == "" {
		n.Subject = claviger.Subject{ID: string(by.ID), Name: by.Name}
	}
	id := claviger.NewID(k.cfg.Now())
	a := ask{op: claviger.OpenSession, count: 1, session: &sessionAsk{
		action: "session.open", client: n.Client, audiences: n.Audiences, scopes: n.Scopes, source: n.Source,
		detail: map[string]string{"session": string(id), "key": string(n.KeyKind), "issuer": n.Subject.Issuer, "subject": n.Subject.ID},
	}}
	stored := false
	session, err := pass(ctx, k, by, a, func(ctx context.Context, p permit) (claviger.Session, error) {
		session, generation, blob, err := k.makeSession(ctx, p, id, n)
		if err != nil {
			return claviger.Session{}, err
		}
		stored = true // or perhaps: what failed may still be there
		return session, k.writes.write(ctx, func(tx *store.Tx) error { return insertSession(tx, session, p.on.client, generation, blob) })
	})
	if err != nil && stored {
		k.discard(ctx, id)
	}
	return session, err
}

// insertSession stores a session, if its subject may have one more.
func insertSession(tx *store.Tx, s claviger.Session, c *claviger.Client, generation uint32, blob []byte) error {
	if most := c.Limits.MaxSessions; most > 0 {
		have, err := tx.CountSessions(store.SessionQuery{Client: c.ID, Issuer: s.Subject.Issuer, Subject: s.Subject.ID})
		if err != nil {
			return err
		}
		if have >= most {
			return claviger.Errorf(claviger.Exhausted, "the subject has as many sessions of the client as it may", "close one of them")
		}
	}
	return tx.InsertSession(s, generation, blob)
}

// discard takes back a session that nobody was told of.
func (k *Keeper) discard(ctx context.Context, id claviger.ID) {
	err := k.writes.write(ctx, func(tx *store.Tx) error { return tx.DiscardSession(id) })
	k.attempt("discard a session that was not opened", err)
}

// makeSession makes the record of a session, and its key where custody has it.
func (k *Keeper) makeSession(ctx context.Context, p permit, id claviger.ID, n NewSession) (s claviger.Session, generation uint32, blob []byte, err error) {
	limits := p.on.client.Limits.WithDefaults()
	now := k.cfg.Now().UTC().Truncate(time.Millisecond)
	s = claviger.Session{
		ID: id, Client: p.on.client.ID, Principal: p.by.ID, Subject: n.Subject, Actors: n.Actors, KeyKind: n.KeyKind, Algorithm: n.Algorithm,
		Scopes: n.Scopes, Audiences: n.Audiences, Methods: n.Methods,
		MaxUses: tighter(limits.SessionUses, n.MaxUses), Rate: tighterRate(limits.SessionRate, n.Rate),
		Idle: claviger.Duration(tighter(time.Duration(limits.SessionIdle), n.Idle)), SourceChanges: limits.SourceChanges,
		Created: now, Ends: now.Add(tighter(time.Duration(limits.Session), n.Lifetime)), Source: p.ask.session.from(p.by),
		State: claviger.SessionLive, Volume: limits.SessionVolume, SuspendOn: limits.SuspendOn, UpstreamIssuer: n.UpstreamIssuer, UpstreamSID: n.UpstreamSID, Revision: 1,
	}
	var key pubkey.Key
	switch n.KeyKind {
	case claviger.CustodyKey:
		made, err := k.cfg.Custodian.Generate(ctx, sessionBinding(&s))
		if err != nil {
			return s, 0, nil, err
		}
		if key, err = pubkey.Parse(s.Algorithm, made.Public); err != nil {
			return s, 0, nil, err
		}
		s.Binding, generation, blob = string(orText(made.Level, claviger.Exposed)), made.Generation, made.Blob
	default:
		if key, err = pubkey.FromSPKI(n.Algorithm, n.Public); err != nil {
			return s, 0, nil, err
		}
		s.Binding = claviger.BindingNone
		if n.KeyKind == claviger.BrowserKey {
			s.Binding = claviger.BindingScript
		}
	}
	s.Public, s.JKT = key.SPKI(), key.Thumbprint()
	return s, generation, blob, nil
}

// tighter returns the smaller of two limits, of which 0 is none.
func tighter[T uint64 | time.Duration](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func tighterRate(a, b *claviger.Rate) *claviger.Rate {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	return &claviger.Rate{PerSecond: min(a.PerSecond, b.PerSecond), Burst: min(a.Burst, b.Burst)}
}

// inherit fills in what a session has of its client.
func (n *NewSession) inherit(c *claviger.Client) {
	if len(n.Audiences) == 0 {
		n.Audiences = c.Audiences
	}
}

// check refuses what is malformed, and fills in what stands by itself.
func (n *NewSession) check() error {
	bad := func(what, hint string) error { return claviger.Errorf(claviger.Invalid, what, hint) }
	if len(n.Audiences) > maxSessionList || len(n.Scopes) > maxSessionList || len(n.Methods) > maxSessionList || len(n.Actors) > maxSessionList {
		return bad("a session has more than 32 audiences, scopes, methods or actors", "use fewer")
	}
	for _, pattern := range n.Audiences {
		if err := claviger.ParseAudience(pattern); err != nil {
			return err
		}
	}
	for i, method := range n.Methods {
		if n.Methods[i] = strings.ToUpper(method); !token(method) {
			return bad("a method of HTTP has a form that is not allowed", "use such as GET")
		}
	}
	texts := append([]string{n.Subject.Issuer, n.Subject.ID, n.Subject.Name, n.UpstreamIssuer, n.UpstreamSID, n.Source.UserAgent}, n.Scopes...)
	for _, actor := range n.Actors {
		texts = append(texts, actor.Issuer, actor.ID)
	}
	for _, text := range texts {
		if err := checkText("text of the session", text); err != nil {
			return err
		}
	}
	switch {
	case n.Subject.ID == "" && n.Subject.Issuer != "", n.UpstreamSID != "" && n.UpstreamIssuer == "":
		return bad("an issuer or what it vouches for is missing", "send both")
	case n.Idle < 0 || n.Lifetime < 0 || n.Idle > 0 && n.Idle < minIdle || n.Lifetime > 0 && n.Lifetime < minIdle:
		return bad("a limit of time is under 10 seconds", "use a longer one")
	case n.Rate != nil && (n.Rate.PerSecond <= 0 || n.Rate.Burst == 0):
		return bad("a rate has no pace or no burst", "set both")
	}
	return n.checkKey()
}

// sessionAlgorithms are those of keys that a session may have; the first two
// are made in custody.
var sessionAlgorithms = []claviger.Algorithm{claviger.ECDSAP256, claviger.Ed25519,
	"rsa-2048-pkcs1-sha256", "rsa-2048-pss-sha256", "rsa-3072-pkcs1-sha256", "rsa-3072-pss-sha256"}

func (n *NewSession) checkKey() error {
	n.Algorithm = orText(n.Algorithm, claviger.ECDSAP256)
	i := slices.Index(sessionAlgorithms, n.Algorithm)
	switch {
	case n.KeyKind != claviger.CustodyKey && n.KeyKind != claviger.BrowserKey && n.KeyKind != claviger.DeviceKey:
		return claviger.Errorf(claviger.Invalid, "there is no such kind of session key", "use custody, browser or device")
	case n.KeyKind == claviger.CustodyKey && len(n.Public) > 0, n.KeyKind != claviger.CustodyKey && len(n.Public) == 0:
		return claviger.Errorf(claviger.Invalid, "a public key is sent with a key that is not in custody, and with no other", "send the public key of the caller's own key alone")
	case i < 0 || n.KeyKind == claviger.CustodyKey && i > 1:
		return claviger.Errorf(claviger.Unsupported, "the algorithm is not one of session keys", "use ecdsa-p256-sha256 or ed25519")
	case n.KeyKind == claviger.CustodyKey:
		return nil
	}
	_, err := pubkey.FromSPKI(n.Algorithm, n.Public)
	return err
}

// token reports whether a text is a token of HTTP (RFC 9110, 5.6.2) of at most
// 32 characters.
func token(s string) bool {
	return len(s) > 0 && len(s) <= 32 && strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	}) < 0
}

// SignForSession signs a statement with the key of a session, for who opened
// it. It answers claviger.Denied when the session has ended, is suspended, or is
// not for the statement's audience or method, and claviger.Exhausted when a
// budget of it is used up.
func (k *Keeper) SignForSession(ctx context.Context, by claviger.Principal, id claviger.ID, st SessionStatement) (SessionSigned, error) {
	switch {
	case len(st.ToBeSigned) == 0 || len(st.ToBeSigned) > MaxToBeSigned:
		return SessionSigned{}, claviger.Errorf(claviger.TooLarge, "a statement is 1 byte to 16 KiB", "sign less")
	case st.Audience == "" || len(st.Audience) > policy.MaxText || st.Kind == "":
		return SessionSigned{}, claviger.Errorf(claviger.Invalid, "a statement says what it is and whom it is for, in at most 512 bytes", "name the audience")
	}
	a := ask{op: useSession, count: 1, digest: digestOf(st.ToBeSigned), session: &sessionAsk{
		action: "session.use", id: id, audiences: []string{st.Audience}, method: st.Method, kind: st.Kind, source: st.Source,
	}}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) (SessionSigned, error) {
		m, err := k.materialOf(ctx, p.on.session)
		if err != nil {
			return SessionSigned{}, err
		}
		signatures, err := k.cfg.Custodian.Sign(ctx, m, [][]byte{st.ToBeSigned}, false)
		if err == nil {
			err = checkAnswers(len(signatures), 1)
		}
		if err != nil {
			return SessionSigned{}, err
		}
		return SessionSigned{Signature: signatures[0], Session: p.on.session.current()}, nil
	})
}

// SessionLive returns a session that may be used now: the check that resource
// servers, forward-auth and introspection ask for. It is as fresh as the door
// and leaves no record. It answers claviger.NotFound when there is no such
// session, and claviger.Denied when it has ended or is suspended.
func (k *Keeper) SessionLive(ctx context.Context, id claviger.ID) (claviger.Session, error) {
	s, d, err := k.lookLive(ctx, id, k.cfg.Now())
	if err != nil {
		return claviger.Session{}, outward(err)
	}
	if !d.Allowed {
		return claviger.Session{}, liveRefusal(d)
	}
	return s.session.current(), nil
}

// lookLive decides whether a session may be used by anyone. Uses do not move the
// change sequence: one that was idle here is read again, since it may have been
// used through another server.
func (k *Keeper) lookLive(ctx context.Context, id claviger.ID, now time.Time) (s snapshot, d policy.Decision, err error) {
	for again := false; ; again = true {
		if s, err = k.sessionSnapshot(ctx, "", "", id); err != nil {
			return s, d, err
		}
		if d = live(s, now); d.Reason != reasonIdle || again {
			return s, d, nil
		}
		k.cache.forgetSession(id)
	}
}

// live decides whether a session may be used by anyone.
func live(s snapshot, now time.Time) policy.Decision {
	d := policy.Decision{Code: claviger.Denied}
	if s.session == nil {
		return policy.Decision{Code: claviger.NotFound, Reason: reasonNoSession}
	}
	switch session := s.session.current(); {
	case session.State == claviger.SessionEnded || !now.Before(session.Ends):
		d.Reason = reasonEnded
	case !now.Before(session.IdleEnd()):
		d.Reason = reasonIdle
	case session.State != claviger.SessionLive:
		d.Reason = reasonSuspended
	default:
		d.Reason = gone(s)
		d.Allowed = d.Reason == ""
	}
	return d
}

func liveRefusal(d policy.Decision) error {
	if err := sessionRefusal(d); err != nil {
		return err
	}
	return refusal(d)
}

// SessionQuery chooses sessions. Zero fields choose all.
type SessionQuery = store.SessionQuery

// Session returns a session to who opened it, and to who may manage those of
// its client.
func (k *Keeper) Session(ctx context.Context, by claviger.Principal, id claviger.ID) (claviger.Session, error) {
	s, err := k.mayManage(ctx, &by, id, "session.read")
	if err != nil {
		return claviger.Session{}, err
	}
	return k.counted(s.session.current()), nil
}

// counted adds the uses that are not written yet.
func (k *Keeper) counted(s claviger.Session) claviger.Session {
	u := k.counts.sessionUse(s.ID)
	s.Uses += u.Count
	if u.Last.After(s.LastUsed) {
		s.LastUsed = u.Last.UTC()
	}
	return s
}

// Sessions returns a page of sessions, oldest first, and what to pass as After
// for the next: all of them to who may manage sessions, and to any other
// caller those that it opened.
func (k *Keeper) Sessions(ctx context.Context, by claviger.Principal, q SessionQuery) ([]claviger.Session, claviger.ID, error) {
	if q.Principal != by.ID {
		s, err := k.snapshot(ctx, string(by.ID), "")
		if err != nil {
			return nil, "", outward(err)
		}
		if d := k.decideChange(s, &by, change{op: claviger.ManageSessions}); !d.Allowed {
			if q.Principal != "" || s.principal.admit(&by) != "" {
				return nil, "", k.deny(ctx, k.newRecord(by, "session.list"), d)
			}
			q.Principal = by.ID
		}
	} else if err := k.known(ctx, &by); err != nil {
		return nil, "", err
	}
	var list []claviger.Session
	var next claviger.ID
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		list, next, err = tx.Sessions(q)
		return err
	})
	for i := range list {
		list[i] = k.counted(list[i])
	}
	return list, next, outward(err)
}

// known makes sure that the caller still stands.
func (k *Keeper) known(ctx context.Context, by *claviger.Principal) error {
	s, err := k.snapshot(ctx, string(by.ID), "")
	if err != nil {
		return outward(err)
	}
	if reason := s.principal.admit(by); reason != "" {
		return k.deny(ctx, k.newRecord(*by, "session.list"), policy.Decision{Code: claviger.Denied, Reason: reason})
	}
	return nil
}
