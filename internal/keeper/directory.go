package keeper

import (
	"context"
	"crypto/x509"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// ByCertificate identifies the caller by a client certificate whose chain TLS
// has verified. One of ours names a principal by its SPIFFE id and must be in
// the store, for the same key, and not revoked; one of another authority names
// a principal that is registered under its whole SPIFFE id.
func (k *Keeper) ByCertificate(ctx context.Context, cert *x509.Certificate, facts claviger.Facts) (claviger.Principal, error) {
	facts.Method, facts.CertSerial = "mtls", serialText(cert.SerialNumber)
	stranger := claviger.Principal{Facts: facts}
	id := ""
	if len(cert.URIs) == 1 {
		id = cert.URIs[0].String()
	}
	if !validSPIFFE(id) {
		return claviger.Principal{}, k.refuseStranger(ctx, stranger, "authenticate",
			claviger.Errorf(claviger.Unauthenticated, "the certificate has no SPIFFE id", "use a certificate that 'claviger enroll' made, or a SPIFFE one"))
	}
	name, kind, ours := k.ownName(id)
	s, err := k.snapshot(ctx, name, "")
	if err != nil {
		return claviger.Principal{}, outward(err)
	}
	by, ok := s.principal.identify(facts)
	if ok && ours {
		row, known := s.principal.certificate(facts.CertSerial)
		now := k.cfg.Now()
		ok = known && row.KeyHash == hashOf(cert.RawSubjectPublicKeyInfo) && by.Kind == kind &&
			!now.Before(row.NotBefore) && now.Before(row.NotAfter)
	}
	if !ok {
		stranger.Name = id
		return claviger.Principal{}, k.refuseStranger(ctx, stranger, "authenticate",
			claviger.Errorf(claviger.Unauthenticated, "the certificate or its principal is unknown, expired or revoked", "enrol again with a new code"))
	}
	return by, nil
}

// identify returns the principal with the facts of a call; ok is false when it
// or its certificate does not stand.
func (s *principalState) identify(facts claviger.Facts) (claviger.Principal, bool) {
	if s == nil {
		return claviger.Principal{}, false
	}
	by := claviger.Principal{ID: s.record.ID, Facts: facts}
	reason := s.admit(&by)
	return by, reason == "" || reason == reasonBinding // whose device is not trusted is refused at the door, by name
}

// ByUID identifies the caller of the local socket by facts.UID. A uid that the
// configuration lists as operator becomes one when it is first seen; any other
// must be registered as "uid:N".
func (k *Keeper) ByUID(ctx context.Context, facts claviger.Facts) (claviger.Principal, error) {
	facts.Method = "peer"
	name := uidName(facts.UID)
	s, err := k.snapshot(ctx, name, "")
	if err != nil {
		return claviger.Principal{}, outward(err)
	}
	if s.principal == nil && facts.UID >= 0 && slices.Contains(k.cfg.Operators, facts.UID) {
		if err := k.makeOperator(ctx, name, facts); err != nil && !errors.Is(err, claviger.Conflict) {
			return claviger.Principal{}, outward(err)
		}
		if s, err = k.snapshot(ctx, name, ""); err != nil {
			return claviger.Principal{}, outward(err)
		}
	}
	by, ok := s.principal.identify(facts)
	// Who is taken off the list of operators is none any more.
	if !ok || by.Kind == claviger.Operator && !slices.Contains(k.cfg.Operators, facts.UID) {
		return claviger.Principal{}, k.refuseStranger(ctx, claviger.Principal{Name: name, Facts: facts}, "authenticate",
			claviger.Errorf(claviger.Unauthenticated, "the local user is not a principal", "ask an operator to register it as uid:N, or list it among the operators in the configuration"))
	}
	return by, nil
}

// makeOperator registers a local operator that the configuration lists.
func (k *Keeper) makeOperator(ctx context.Context, name string, facts claviger.Facts) error {
	now := k.cfg.Now().UTC()
	p := claviger.PrincipalRecord{
		ID: claviger.NewID(now), Name: name, Kind: claviger.Operator, Environments: []string{"*"}, Owner: "local", Created: now,
	}
	self := k.self()
	self.Facts.RequestID = facts.RequestID
	c := change{action: "principal.create", reason: "listed as operator in the configuration", apply: func(tx *store.Tx, e *effect) error {
		describe(e, p)
		return tx.InsertPrincipal(p)
	}}
	return k.commit(ctx, self, c, nil, nil)
}

func uidName(uid int) string { return "uid:" + strconv.Itoa(uid) }

// spiffeID names a principal of ours.
func (k *Keeper) spiffeID(kind claviger.PrincipalKind, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: k.cfg.TrustDomain, Path: "/" + string(kind) + "/" + name}
}

// ownName returns the principal that a SPIFFE id names: for one of our trust
// domain its name and kind, for another the whole id.
func (k *Keeper) ownName(id string) (name string, kind claviger.PrincipalKind, ours bool) {
	rest, ours := strings.CutPrefix(id, "spiffe://"+k.cfg.TrustDomain+"/")
	if !ours {
		return id, "", false
	}
	text, name, _ := strings.Cut(rest, "/")
	return name, claviger.PrincipalKind(text), true
}

// validSPIFFE reports whether s is a SPIFFE id of a workload (SPIFFE-ID, 2):
// a lower-case trust domain and a path of plain segments, at most 2048 bytes.
func validSPIFFE(s string) bool {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	domain, path, slash := strings.Cut(rest, "/")
	if !ok || !slash || len(s) > 2048 || domain == "" || len(domain) > 255 || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." ||
			strings.Trim(segment, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") != "" {
			return false
		}
	}
	return true
}
