package keeper

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/store"
)

func pending() error {
	return claviger.Errorf(claviger.Unavailable, "the keeper is not ready", "try again")
}

// Open makes a Keeper: it brings leftover records to the audit log, makes the
// system keys at first start and takes the CA's certificate from the store.
func Open(ctx context.Context, cfg Config) (*Keeper, error) { return nil, pending() }

// Run does what time brings, until ctx ends: scheduled rotations and expiries,
// counts and aggregated records each second, checkpoints, the renewal of the
// server's certificate.
func (k *Keeper) Run(ctx context.Context) error { return pending() }

// Close writes what is gathered in memory. After it counts are exact.
func (k *Keeper) Close(ctx context.Context) error { return pending() }

// Sign signs with the active version of a key.
func (k *Keeper) Sign(ctx context.Context, by claviger.Principal, req SignRequest) (Signed, error) {
	return Signed{}, pending()
}

// SignStructured builds or checks a structure by the grant's template and signs it.
func (k *Keeper) SignStructured(ctx context.Context, by claviger.Principal, req StructuredRequest) (Structured, error) {
	return Structured{}, pending()
}

// Verify checks signatures with the public halves of a key.
func (k *Keeper) Verify(ctx context.Context, by claviger.Principal, req VerifyRequest) ([]Verdict, error) {
	return nil, pending()
}

// MAC computes MACs with the active version of a key.
func (k *Keeper) MAC(ctx context.Context, by claviger.Principal, req MACRequest) (MACs, error) {
	return MACs{}, pending()
}

// VerifyMAC checks MACs.
func (k *Keeper) VerifyMAC(ctx context.Context, by claviger.Principal, req VerifyMACRequest) ([]Verdict, error) {
	return nil, pending()
}

// Seal encrypts items with the active version of a key.
func (k *Keeper) Seal(ctx context.Context, by claviger.Principal, req SealRequest) (Sealed, error) {
	return Sealed{}, pending()
}

// Open decrypts items.
func (k *Keeper) Open(ctx context.Context, by claviger.Principal, req OpenRequest) ([]Opened, error) {
	return nil, pending()
}

// CreateKey makes a key, with a first version unless it is for import.
func (k *Keeper) CreateKey(ctx context.Context, by claviger.Principal, req CreateKey) (KeyView, error) {
	return KeyView{}, pending()
}

// Key returns a key by name, former name or id.
func (k *Keeper) Key(ctx context.Context, by claviger.Principal, ref string) (KeyView, error) {
	return KeyView{}, pending()
}

// Keys lists the keys that the caller may see, one page at a time.
func (k *Keeper) Keys(ctx context.Context, by claviger.Principal, q store.KeyQuery) (keys []KeyView, next string, err error) {
	return nil, "", pending()
}

// Rotate makes a new version, activates it and deactivates the old one.
func (k *Keeper) Rotate(ctx context.Context, by claviger.Principal, ref, reason string) (KeyView, error) {
	return KeyView{}, pending()
}

// ChangeState moves a version to another state.
func (k *Keeper) ChangeState(ctx context.Context, by claviger.Principal, ref string, version uint32, to claviger.State, reason string) (KeyView, error) {
	return KeyView{}, pending()
}

// UpdateKey changes owner, labels and settings; settings only tighten.
func (k *Keeper) UpdateKey(ctx context.Context, by claviger.Principal, ref string, change KeyChange) (KeyView, error) {
	return KeyView{}, pending()
}

// Rename gives a key another name in its environment; the old one stays an alias.
func (k *Keeper) Rename(ctx context.Context, by claviger.Principal, ref, name string) (KeyView, error) {
	return KeyView{}, pending()
}

// BeginImport makes a one-time key to which the material of the key's next
// version is to be sealed.
func (k *Keeper) BeginImport(ctx context.Context, by claviger.Principal, ref string) (onetime.Key, error) {
	return onetime.Key{}, pending()
}

// Import adopts material that was sealed to a one-time key as the key's next,
// active version.
func (k *Keeper) Import(ctx context.Context, by claviger.Principal, ref, oneTimeID string, sealed []byte, reason string) (KeyView, error) {
	return KeyView{}, pending()
}

// PublicKeys returns what an application publishes, for a JWKS. It needs no caller.
func (k *Keeper) PublicKeys(ctx context.Context, environment, application string) (PublicSet, error) {
	return PublicSet{}, pending()
}

// CreateGrant grants.
func (k *Keeper) CreateGrant(ctx context.Context, by claviger.Principal, req CreateGrant) (GrantView, error) {
	return GrantView{}, pending()
}

// Grant returns a grant.
func (k *Keeper) Grant(ctx context.Context, by claviger.Principal, id string) (GrantView, error) {
	return GrantView{}, pending()
}

// Grants lists grants, one page at a time.
func (k *Keeper) Grants(ctx context.Context, by claviger.Principal, q store.GrantQuery) (grants []GrantView, next string, err error) {
	return nil, "", pending()
}

// RevokeGrant revokes a grant, at once.
func (k *Keeper) RevokeGrant(ctx context.Context, by claviger.Principal, id, reason string) (GrantView, error) {
	return GrantView{}, pending()
}

// CreatePrincipal registers a principal.
func (k *Keeper) CreatePrincipal(ctx context.Context, by claviger.Principal, req CreatePrincipal) (claviger.PrincipalRecord, error) {
	return claviger.PrincipalRecord{}, pending()
}

// Principal returns a principal by id or name.
func (k *Keeper) Principal(ctx context.Context, by claviger.Principal, ref string) (claviger.PrincipalRecord, error) {
	return claviger.PrincipalRecord{}, pending()
}

// Principals lists principals, one page at a time.
func (k *Keeper) Principals(ctx context.Context, by claviger.Principal, q store.PrincipalQuery) (list []claviger.PrincipalRecord, next string, err error) {
	return nil, "", pending()
}

// RevokePrincipal revokes a principal, its certificates included, at once.
func (k *Keeper) RevokePrincipal(ctx context.Context, by claviger.Principal, ref, reason string) (claviger.PrincipalRecord, error) {
	return claviger.PrincipalRecord{}, pending()
}

// IssueCode makes a one-time enrolment code; lifetime is at most 24 h, and
// 15 min when zero.
func (k *Keeper) IssueCode(ctx context.Context, by claviger.Principal, ref string, lifetime time.Duration) (Code, error) {
	return Code{}, pending()
}

// Enroll trades a code and a certificate request (PKCS#10, DER) for a first certificate.
func (k *Keeper) Enroll(ctx context.Context, code string, csr []byte, facts claviger.Facts) (Certificate, error) {
	return Certificate{}, pending()
}

// Renew issues a new certificate to a caller that authenticated with the old one.
func (k *Keeper) Renew(ctx context.Context, by claviger.Principal, csr []byte) (Certificate, error) {
	return Certificate{}, pending()
}

// Certificates lists a principal's certificates.
func (k *Keeper) Certificates(ctx context.Context, by claviger.Principal, ref string) ([]Certificate, error) {
	return nil, pending()
}

// RevokeCertificate revokes one certificate, at once. Serial is hex.
func (k *Keeper) RevokeCertificate(ctx context.Context, by claviger.Principal, serial, reason string) error {
	return pending()
}

// ByCertificate identifies the caller of a verified TLS client certificate.
func (k *Keeper) ByCertificate(ctx context.Context, cert *x509.Certificate, facts claviger.Facts) (claviger.Principal, error) {
	return claviger.Principal{}, pending()
}

// ByUID identifies the caller of the local socket by facts.UID.
func (k *Keeper) ByUID(ctx context.Context, facts claviger.Facts) (claviger.Principal, error) {
	return claviger.Principal{}, pending()
}

// Query passes matching records to fn, oldest first; with q.Follow it goes on
// with every later one until ctx ends.
func (k *Keeper) Query(ctx context.Context, by claviger.Principal, q AuditQuery, fn func(audit.Line) error) error {
	return pending()
}

// VerifyAudit checks the chain and every checkpoint, and against one that was
// kept elsewhere unless it is empty.
func (k *Keeper) VerifyAudit(ctx context.Context, by claviger.Principal, checkpoint []byte) (audit.Report, error) {
	return audit.Report{}, pending()
}

// Checkpoint signs the present head of the audit log: one line of JSON.
func (k *Keeper) Checkpoint(ctx context.Context, by claviger.Principal) ([]byte, error) {
	return nil, pending()
}

// Info says what the server is. It needs no caller.
func (k *Keeper) Info(ctx context.Context) (Info, error) { return Info{}, pending() }

// Doctor reports every protective measure.
func (k *Keeper) Doctor(ctx context.Context, by claviger.Principal) (Report, error) {
	return Report{}, pending()
}

// Ready reports whether a key can be used and recorded now: nil, or why not.
func (k *Keeper) Ready(ctx context.Context) error { return pending() }

// Rewrap brings every blob to the newest root key.
func (k *Keeper) Rewrap(ctx context.Context, by claviger.Principal) (Rewrapped, error) {
	return Rewrapped{}, pending()
}

// Admit wraps the root key to a joining key process. It needs no caller: only
// ciphertext to a key that the root key's own policy admitted leaves.
func (k *Keeper) Admit(ctx context.Context, joinKey []byte, facts claviger.Facts) (Admitted, error) {
	return Admitted{}, pending()
}

// RecoveryShares makes shares, each encrypted to its holder inside the custodian.
func (k *Keeper) RecoveryShares(ctx context.Context, by claviger.Principal) (custody.Shares, error) {
	return custody.Shares{}, pending()
}

// RecoveryChallenge returns a one-time key to which holders seal their shares.
func (k *Keeper) RecoveryChallenge(ctx context.Context, by claviger.Principal) (onetime.Key, error) {
	return onetime.Key{}, pending()
}

// RecoveryVerify tests whether sealed shares restore the root key.
func (k *Keeper) RecoveryVerify(ctx context.Context, by claviger.Principal, challengeID string, sealed [][]byte) (RecoveryResult, error) {
	return RecoveryResult{}, pending()
}

// Backup writes an archive that is encrypted to age recipients.
func (k *Keeper) Backup(ctx context.Context, by claviger.Principal, recipients []string, w io.Writer) error {
	return pending()
}

// ServerCertificate returns the server's own certificate; its private key is in custody.
func (k *Keeper) ServerCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil, pending()
}

// Roots returns the CA's certificates, to verify clients against.
func (k *Keeper) Roots() []*x509.Certificate { return nil }
