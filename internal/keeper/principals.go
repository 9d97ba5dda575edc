package keeper

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
)

// CreatePrincipal registers a principal. Only an operator makes an operator.
func (k *Keeper) CreatePrincipal(ctx context.Context, by claviger.Principal, req CreatePrincipal) (claviger.PrincipalRecord, error) {
	if err := checkPrincipal(req); err != nil {
		return claviger.PrincipalRecord{}, err
	}
	if _, _, ours := k.ownName(req.Name); ours {
		return claviger.PrincipalRecord{}, claviger.Errorf(claviger.Invalid, "the SPIFFE id is of this server's own trust domain", "register the plain name and let it enrol")
	}
	if req.Kind != claviger.Operator && slices.ContainsFunc(k.cfg.Operators, func(uid int) bool { return uidName(uid) == req.Name }) {
		return claviger.PrincipalRecord{}, claviger.Errorf(claviger.Invalid, "the configuration lists this local user as operator", "take it off the list first")
	}
	now := k.cfg.Now().UTC()
	p := claviger.PrincipalRecord{
		ID: claviger.NewID(now), Name: req.Name, Kind: req.Kind, Environments: slices.Clone(req.Environments),
		Owner: req.Owner, Bound: req.Bound, Created: now, Revision: 1,
	}
	err := k.change(ctx, by, change{op: claviger.ManagePrincipals, action: "principal.create", apply: func(tx *store.Tx, e *effect) error {
		if err := outranks(by, p.Kind); err != nil {
			return err
		}
		describe(e, p)
		return tx.InsertPrincipal(p)
	}})
	if err != nil {
		return claviger.PrincipalRecord{}, err
	}
	return p, nil
}

// outranks keeps who merely manages principals from becoming an operator.
func outranks(by claviger.Principal, kind claviger.PrincipalKind) error {
	if kind == claviger.Operator && by.Kind != claviger.Operator {
		return claviger.Errorf(claviger.Denied, "only an operator looks after operators", "ask an operator")
	}
	return nil
}

// describe says in the record which principal a change is about.
func describe(e *effect, p claviger.PrincipalRecord) {
	e.touched = append(e.touched, p.ID)
	e.detail("principal", p.Name)
	e.detail("principal_id", string(p.ID))
	e.detail("kind", string(p.Kind))
}

// describeBinding says in the record what a principal is bound to.
func describeBinding(e *effect, b *claviger.Binding) {
	if b == nil {
		return
	}
	e.detail("custodian", string(b.Custodian))
	e.detail("device", b.Device)
	e.detail("level", string(b.Level))
	e.detail("ek", b.EKFingerprint)
	e.detail("root", b.RootText())
}

func checkPrincipal(req CreatePrincipal) error {
	kinds := []claviger.PrincipalKind{claviger.Operator, claviger.Workload, claviger.ServiceAccount, claviger.Agent, claviger.Person}
	if !slices.Contains(kinds, req.Kind) {
		return claviger.Errorf(claviger.Invalid, "there is no such kind of principal", "use operator, workload, service-account, agent or person")
	}
	if !validPrincipalName(req.Name) {
		return claviger.Errorf(claviger.Invalid, "the principal's name has a form that is not allowed",
			"use 1 to 63 of a-z, 0-9, '-', '_' and '.', or uid:NUMBER for a local user, or the whole SPIFFE id of an external one")
	}
	if len(req.Environments) > 64 {
		return claviger.Errorf(claviger.Invalid, "there are more than 64 environments", "use * for all")
	}
	for _, env := range req.Environments {
		if env == policy.SystemEnvironment {
			return claviger.Errorf(claviger.Invalid, "the environment 'system' is reserved", "name another environment")
		}
		if _, err := claviger.ParseSelector(env + "/a/a"); err != nil {
			return claviger.Errorf(claviger.Invalid, "an environment has a form that is not allowed", "use the first segment of a key's name, or *")
		}
	}
	if req.Bound && !isPlainName(req.Name) {
		return claviger.Errorf(claviger.Invalid, "only a principal that enrols can be bound to a device", "leave the binding out, or use a plain name")
	}
	return checkText("owner", req.Owner)
}

// validPrincipalName accepts a plain name, "uid:N" and a SPIFFE id. A plain
// name is one segment of a key's name, and nothing that could be an id.
func validPrincipalName(name string) bool {
	if rest, ok := strings.CutPrefix(name, "uid:"); ok {
		uid, err := strconv.ParseUint(rest, 10, 32)
		return err == nil && uidName(int(uid)) == name
	}
	if strings.HasPrefix(name, "spiffe://") {
		return validSPIFFE(name)
	}
	return isPlainName(name)
}

func isPlainName(name string) bool {
	_, idErr := claviger.ParseID(name)
	_, err := claviger.ParseName("a/a/" + name)
	return err == nil && idErr != nil
}

// Principal returns a principal by id or name.
func (k *Keeper) Principal(ctx context.Context, by claviger.Principal, ref string) (claviger.PrincipalRecord, error) {
	if ref != by.Name && ref != string(by.ID) { // everybody may see themselves
		if err := k.read(ctx, &by, change{op: claviger.ManagePrincipals, action: "principal.read"}); err != nil {
			return claviger.PrincipalRecord{}, err
		}
	}
	return k.principal(ctx, ref)
}

func (k *Keeper) principal(ctx context.Context, ref string) (p claviger.PrincipalRecord, err error) {
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		p, err = tx.Principal(ref)
		return err
	})
	return p, outward(err)
}

// Principals lists principals, one page at a time.
func (k *Keeper) Principals(ctx context.Context, by claviger.Principal, q store.PrincipalQuery) (list []claviger.PrincipalRecord, next string, err error) {
	if err := k.read(ctx, &by, change{op: claviger.ManagePrincipals, action: "principal.list"}); err != nil {
		return nil, "", err
	}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		list, next, err = tx.Principals(q)
		return err
	})
	return list, next, outward(err)
}

// RevokePrincipal revokes a principal with its certificates. When it has
// returned, nothing is done for it any more.
func (k *Keeper) RevokePrincipal(ctx context.Context, by claviger.Principal, ref, reason string) (claviger.PrincipalRecord, error) {
	if err := checkText("reason", reason); err != nil {
		return claviger.PrincipalRecord{}, err
	}
	err := k.change(ctx, by, change{op: claviger.ManagePrincipals, action: "principal.revoke", reason: reason, apply: func(tx *store.Tx, e *effect) error {
		p, err := tx.Principal(ref)
		if err != nil {
			return err
		}
		if err := outranks(by, p.Kind); err != nil {
			return err
		}
		if !p.Revoked.IsZero() {
			return claviger.Errorf(claviger.Conflict, "the principal is revoked already", "nothing is left to do")
		}
		now := k.cfg.Now().UTC()
		p.Revoked, p.RevokeReason = now, reason
		describe(e, p)
		failpoint.Hit(failpoint.RevokePrincipal)
		if err := revokeCertificates(tx, p.ID, now, "the principal was revoked"); err != nil {
			return err
		}
		return tx.UpdatePrincipal(p)
	}})
	if err != nil {
		return claviger.PrincipalRecord{}, err
	}
	p, err := k.principal(ctx, ref)
	if err == nil {
		// They are refused already; this erases their keys and tells receivers.
		// What a crash leaves is swept.
		_, err = k.EndSessions(ctx, k.self(), SessionQuery{Principal: p.ID}, End{Reason: EndPrincipal, Text: reason})
	}
	return p, err
}

// revokeCertificates revokes every certificate of a principal that stands.
func revokeCertificates(tx *store.Tx, principal claviger.ID, now time.Time, reason string) error {
	certs, err := tx.Certificates(principal)
	if err != nil {
		return err
	}
	for _, cert := range certs {
		if !cert.Revoked.IsZero() || cert.NotAfter.Before(now) {
			continue
		}
		cert.Revoked, cert.Reason = now, reason
		if err := tx.UpdateCertificate(cert); err != nil {
			return err
		}
	}
	return nil
}

// Lifetimes of enrolment codes.
const (
	codeLifetime    = 15 * time.Minute
	maxCodeLifetime = 24 * time.Hour
)

// IssueCode makes a one-time enrolment code; lifetime is at most 24 h, and
// 15 min when zero. Another code of the principal ends.
func (k *Keeper) IssueCode(ctx context.Context, by claviger.Principal, ref string, lifetime time.Duration) (Code, error) {
	if lifetime == 0 {
		lifetime = codeLifetime
	}
	if lifetime < time.Second || lifetime > maxCodeLifetime {
		return Code{}, claviger.Errorf(claviger.Invalid, "an enrolment code lives for 1 second to 24 hours", "use a shorter lifetime")
	}
	var code claviger.EnrolmentCode
	var expires time.Time
	err := k.change(ctx, by, change{
		op: claviger.ManagePrincipals, action: "principal.code",
		prepare: func(ctx context.Context, _ claviger.Key) error {
			identity, err := k.cfg.Custodian.Identity(ctx)
			if err != nil {
				return err
			}
			code = claviger.NewEnrolmentCode(k.system.caPin, pinOf(identity.Public))
			return nil
		},
		apply: func(tx *store.Tx, e *effect) error {
			p, err := tx.Principal(ref)
			if err != nil {
				return err
			}
			if err := outranks(by, p.Kind); err != nil {
				return err
			}
			if !p.Revoked.IsZero() || !isPlainName(p.Name) {
				return claviger.Errorf(claviger.Invalid, "the principal cannot enrol", "local users and external principals are known without a certificate of ours, and revoked ones stay revoked")
			}
			now := k.cfg.Now().UTC()
			expires = now.Add(lifetime)
			describe(e, p)
			e.detail("expires", expires.Format(time.RFC3339))
			return tx.PutCode(store.Code{Hash: code.Hash(), Principal: p.ID, Expires: expires}, now)
		},
	})
	if err != nil {
		return Code{}, err
	}
	return Code{Code: code.String(), Expires: expires}, nil
}

// Certificates lists a principal's certificates, the latest to expire first.
func (k *Keeper) Certificates(ctx context.Context, by claviger.Principal, ref string) ([]Certificate, error) {
	p, err := k.Principal(ctx, by, ref)
	if err != nil {
		return nil, err
	}
	var list []Certificate
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		certs, err := tx.Certificates(p.ID)
		list = nil
		for _, c := range certs {
			list = append(list, Certificate{Serial: c.Serial, Principal: c.Principal, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Revoked: c.Revoked})
		}
		return err
	})
	return list, outward(err)
}

// RevokeCertificate revokes one certificate. When it has returned, no caller
// is known by it any more. Serial is hex.
func (k *Keeper) RevokeCertificate(ctx context.Context, by claviger.Principal, serial, reason string) error {
	if err := checkText("reason", reason); err != nil {
		return err
	}
	return k.change(ctx, by, change{op: claviger.ManagePrincipals, action: "certificate.revoke", reason: reason, apply: func(tx *store.Tx, e *effect) error {
		cert, err := tx.Certificate(serial)
		if errors.Is(err, claviger.NotFound) {
			return claviger.Errorf(claviger.NotFound, "there is no such certificate", "list a principal's certificates for their serial numbers")
		}
		if err != nil {
			return err
		}
		if !cert.Revoked.IsZero() {
			return claviger.Errorf(claviger.Conflict, "the certificate is revoked already", "nothing is left to do")
		}
		p, err := tx.Principal(string(cert.Principal))
		if err != nil {
			return err
		}
		if err := outranks(by, p.Kind); err != nil {
			return err
		}
		describe(e, p)
		e.detail("serial", serial)
		cert.Revoked, cert.Reason = k.cfg.Now().UTC(), reason
		failpoint.Hit(failpoint.RevokeCert)
		return tx.UpdateCertificate(cert)
	}})
}
