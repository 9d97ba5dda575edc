package store

import (
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"claviger.dev"
)

var (
	errNoPrincipal   = claviger.Errorf(claviger.NotFound, "there is no such principal", "list the principals with 'claviger principal list'")
	errNoCode        = claviger.Errorf(claviger.NotFound, "the enrolment code is not valid, was used or has expired", "ask an operator for a new code")
	errNoCertificate = claviger.Errorf(claviger.NotFound, "there is no such certificate", "list the principal's certificates")
)

// PrincipalQuery chooses principals. Zero fields choose all.
type PrincipalQuery struct {
	Kind   claviger.PrincipalKind
	Search string // part of the name or owner, whatever the case
	Live   bool   // leave out revoked ones
	After  string // the next of the page before
	Limit  int    // page size: DefaultLimit when 0, at most MaxLimit
}

const principalColumns = `SELECT id, name, revision, document, checksum FROM principals`

type principalRow struct{ keyRow }

func (r *principalRow) principal() (p claviger.PrincipalRecord, err error) {
	if err := decode("principal", r.id, r.document, r.sum, &p); err != nil {
		return claviger.PrincipalRecord{}, err
	}
	if string(p.ID) != r.id || p.Name != r.name || p.Revision != r.revision {
		return claviger.PrincipalRecord{}, damaged("principal", r.id, errColumns)
	}
	return p, nil
}

var errColumns = errors.New("columns and document differ")

// Principal returns a principal by its id or name, revoked or not.
func (t *Tx) Principal(ref string) (claviger.PrincipalRecord, error) {
	query := principalColumns + ` WHERE name = $1`
	if _, err := claviger.ParseID(ref); err == nil {
		query = principalColumns + ` WHERE id = $1`
	}
	var r principalRow
	if err := t.one("read principal", errNoPrincipal, query, []any{ref}, r.dest()...); err != nil {
		return claviger.PrincipalRecord{}, err
	}
	return r.principal()
}

// Principals returns a page of principals in the order of their names, and
// what to pass as After for the next page, which is empty on the last.
func (t *Tx) Principals(q PrincipalQuery) (principals []claviger.PrincipalRecord, next string, err error) {
	if err := checkArgs([]any{q.Search}); err != nil { // lower case would hide it
		return nil, "", err
	}
	limit := pageLimit(q.Limit)
	c := &clauses{}
	if q.Kind != "" {
		c.add("kind = %s", string(q.Kind))
	}
	if q.Live {
		c.add("revoked = 0")
	}
	if q.Search != "" {
		c.add(t.db.dialect.Contains+"(search, %s) > 0", strings.ToLower(q.Search))
	}
	if q.After != "" {
		c.add("name > %s", q.After)
	}
	query := principalColumns + c.sql() + ` ORDER BY name LIMIT ` + c.arg(limit+1)
	err = t.all("list principals", query, c.args, func(scan func(...any) error) error {
		var r principalRow
		if err := scan(r.dest()...); err != nil {
			return err
		}
		p, err := r.principal()
		principals = append(principals, p)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	if len(principals) > limit {
		principals = principals[:limit]
		next = principals[limit-1].Name
	}
	return principals, next, nil
}

// InsertPrincipal stores a new principal with revision 1, whatever its
// Revision says. It answers claviger.Conflict when its name is taken.
func (t *Tx) InsertPrincipal(p claviger.PrincipalRecord) error {
	p.Revision = 1
	args, err := principalArgs(p)
	if err != nil {
		return err
	}
	t.touch(p.ID)
	n, err := t.exec("insert principal", `INSERT INTO principals (id, name, kind, revoked, search, revision, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`, args...)
	if err == nil && n == 0 {
		return claviger.Errorf(claviger.Conflict, "there is a principal of this name", "choose another name; a revoked principal keeps its own")
	}
	return err
}

// UpdatePrincipal stores a changed principal with Revision+1 if the stored
// revision is still p.Revision, and answers claviger.Conflict if it is not.
func (t *Tx) UpdatePrincipal(p claviger.PrincipalRecord) error {
	p.Revision++
	args, err := principalArgs(p)
	if err != nil {
		return err
	}
	t.touch(p.ID)
	n, err := t.exec("update principal", `UPDATE principals SET name = $2, kind = $3, revoked = $4, search = $5, revision = $6,
		document = $7, checksum = $8 WHERE id = $1 AND revision = CAST($6 AS bigint) - 1`, args...)
	if err == nil && n == 0 {
		return t.lost("principals", string(p.ID), errNoPrincipal)
	}
	return err
}

func principalArgs(p claviger.PrincipalRecord) ([]any, error) {
	document, sum, err := encode("principal", string(p.ID), p)
	return []any{string(p.ID), p.Name, string(p.Kind), flag(!p.Revoked.IsZero()), strings.ToLower(p.Name + "\n" + p.Owner),
		p.Revision, document, sum}, err
}

// Code is an enrolment code, of which only the hash is known here.
type Code struct {
	Hash      [32]byte // SHA-256 of the code's secret
	Principal claviger.ID
	Expires   time.Time // to the millisecond
}

// PutCode stores an enrolment code, in place of any other of its principal,
// and removes codes that had expired at now.
func (t *Tx) PutCode(c Code, now time.Time) error {
	if _, err := t.exec("remove codes", `DELETE FROM codes WHERE principal = $1 OR expires <= $2`, string(c.Principal), now.UnixMilli()); err != nil {
		return err
	}
	_, err := t.exec("insert code", `INSERT INTO codes (hash, principal, expires) VALUES ($1, $2, $3)`,
		hex.EncodeToString(c.Hash[:]), string(c.Principal), c.Expires.UnixMilli())
	return err
}

// Code returns an enrolment code and leaves it where it is. It answers
// claviger.NotFound as TakeCode does.
func (t *Tx) Code(hash [32]byte, now time.Time) (Code, error) {
	c := Code{Hash: hash}
	var expires int64
	if err := t.one("read code", errNoCode, `SELECT principal, expires FROM codes WHERE hash = $1`,
		[]any{hex.EncodeToString(hash[:])}, &c.Principal, &expires); err != nil {
		return Code{}, err
	}
	if c.Expires = fromMillis(expires); !now.Before(c.Expires) {
		return Code{}, errNoCode
	}
	return c, nil
}

// TakeCode removes an enrolment code and returns it. It answers
// claviger.NotFound for one that is unknown, was taken or has expired.
func (t *Tx) TakeCode(hash [32]byte, now time.Time) (Code, error) {
	if !t.writes {
		return Code{}, errors.New("take code: write in a view")
	}
	c := Code{Hash: hash}
	var expires int64
	if err := t.one("take code", errNoCode, `DELETE FROM codes WHERE hash = $1 RETURNING principal, expires`,
		[]any{hex.EncodeToString(hash[:])}, &c.Principal, &expires); err != nil {
		return Code{}, err
	}
	if c.Expires = fromMillis(expires); !now.Before(c.Expires) {
		return Code{}, errNoCode
	}
	return c, nil
}

// Certificate is a client certificate that was issued to a principal.
type Certificate struct {
	Serial    string      `json:"serial"` // lower-case hex
	Principal claviger.ID `json:"principal"`
	KeyHash   string      `json:"key_hash"` // SHA-256 of the public key (SPKI), hex
	NotBefore time.Time   `json:"not_before"`
	NotAfter  time.Time   `json:"not_after"`
	Revoked   time.Time   `json:"revoked,omitzero"`
	Reason    string      `json:"reason,omitempty"`
}

const certificateColumns = `SELECT serial, principal, document, checksum FROM certificates`

func scanCertificate(scan func(...any) error) (c Certificate, err error) {
	var serial, principal, document string
	var sum []byte
	if err := scan(&serial, &principal, &document, &sum); err != nil {
		return Certificate{}, err
	}
	if err := decode("certificate", serial, document, sum, &c); err != nil {
		return Certificate{}, err
	}
	if c.Serial != serial || string(c.Principal) != principal {
		return Certificate{}, damaged("certificate", serial, errColumns)
	}
	return c, nil
}

// Certificate returns a certificate by its serial number, revoked or not.
func (t *Tx) Certificate(serial string) (Certificate, error) {
	var c Certificate
	found := false
	err := t.all("read certificate", certificateColumns+` WHERE serial = $1`, []any{serial}, func(scan func(...any) error) (err error) {
		found = true
		c, err = scanCertificate(scan)
		return err
	})
	if err == nil && !found {
		return Certificate{}, errNoCertificate
	}
	return c, err
}

// Certificates returns the certificates of a principal, the latest to expire
// first, at most MaxLimit.
func (t *Tx) Certificates(principal claviger.ID) ([]Certificate, error) {
	var certificates []Certificate
	err := t.all("list certificates", certificateColumns+` WHERE principal = $1 ORDER BY not_after DESC, serial LIMIT $2`,
		[]any{string(principal), MaxLimit}, func(scan func(...any) error) error {
			c, err := scanCertificate(scan)
			certificates = append(certificates, c)
			return err
		})
	return certificates, err
}

// InsertCertificate stores a certificate. It answers claviger.Conflict when
// the serial number is taken.
func (t *Tx) InsertCertificate(c Certificate) error {
	document, sum, err := encode("certificate", c.Serial, c)
	if err != nil {
		return err
	}
	t.touch(c.Principal)
	n, err := t.exec("insert certificate", `INSERT INTO certificates (serial, principal, not_after, document, checksum)
		VALUES ($1, $2, $3, $4, $5) ON CONFLICT (serial) DO NOTHING`, c.Serial, string(c.Principal), millis(c.NotAfter), document, sum)
	if err == nil && n == 0 {
		return claviger.Errorf(claviger.Conflict, "the serial number is taken", "issue the certificate again")
	}
	return err
}

// UpdateCertificate stores a changed certificate.
func (t *Tx) UpdateCertificate(c Certificate) error {
	document, sum, err := encode("certificate", c.Serial, c)
	if err != nil {
		return err
	}
	t.touch(c.Principal)
	n, err := t.exec("update certificate", `UPDATE certificates SET not_after = $3, document = $4, checksum = $5
		WHERE serial = $1 AND principal = $2`, c.Serial, string(c.Principal), millis(c.NotAfter), document, sum)
	if err == nil && n == 0 {
		return errNoCertificate
	}
	return err
}

// DropCertificates removes certificates that expired before a time and so are
// refused without a record, and returns how many.
func (t *Tx) DropCertificates(before time.Time) (int, error) {
	n, err := t.exec("drop certificates", `DELETE FROM certificates WHERE not_after < $1`, before.UnixMilli())
	return int(n), err
}
