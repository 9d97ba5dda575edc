package client

import (
	"context"
	"io"
	"iter"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/dynamicpb"

	clavigerv1 "claviger.dev/api/claviger/v1"
)

// The methods of the API. The messages are described in the API's own files.

// Call calls any method that answers once, named as in a Tap, with any message,
// well formed or not. The answer is for the Tap alone. It is for a caller that
// tries what no method is made for.
func (c *Client) Call(ctx context.Context, procedure string, request *dynamicpb.Message) error {
	_, err := call(ctx, c, once, c.any(procedure).CallUnary, request)
	return err
}

// CreateKey makes a key.
func (c *Client) CreateKey(ctx context.Context, r *clavigerv1.CreateKeyRequest) (*clavigerv1.Key, error) {
	return callWithin(ctx, c, c.making, once, c.keys.CreateKey, r)
}

// GetKey returns a key's record by name, former name or id.
func (c *Client) GetKey(ctx context.Context, ref string) (*clavigerv1.Key, error) {
	return call(ctx, c, again, c.keys.GetKey, &clavigerv1.GetKeyRequest{Key: ref})
}

// ListKeys returns one page of keys.
func (c *Client) ListKeys(ctx context.Context, r *clavigerv1.ListKeysRequest) (*clavigerv1.ListKeysResponse, error) {
	return call(ctx, c, again, c.keys.ListKeys, r)
}

// RotateKey makes a new active version.
func (c *Client) RotateKey(ctx context.Context, r *clavigerv1.RotateKeyRequest) (*clavigerv1.Key, error) {
	return callWithin(ctx, c, c.making, once, c.keys.RotateKey, r)
}

// RetireVersion ends the grace of a version that was replaced.
func (c *Client) RetireVersion(ctx context.Context, r *clavigerv1.RetireVersionRequest) (*clavigerv1.Key, error) {
	return call(ctx, c, once, c.keys.RetireVersion, r)
}

// ExposeKey answers an exposure: the version is compromised, and a new one made.
func (c *Client) ExposeKey(ctx context.Context, r *clavigerv1.ExposeKeyRequest) (*clavigerv1.ExposeKeyResponse, error) {
	return callWithin(ctx, c, c.making, once, c.keys.ExposeKey, r)
}

// ChangeState moves a version to another state.
func (c *Client) ChangeState(ctx context.Context, r *clavigerv1.ChangeStateRequest) (*clavigerv1.Key, error) {
	return call(ctx, c, once, c.keys.ChangeState, r)
}

// UpdateKey changes a key's owner, labels or settings.
func (c *Client) UpdateKey(ctx context.Context, r *clavigerv1.UpdateKeyRequest) (*clavigerv1.Key, error) {
	return call(ctx, c, once, c.keys.UpdateKey, r)
}

// RenameKey gives a key another name; the old one stays an alias.
func (c *Client) RenameKey(ctx context.Context, r *clavigerv1.RenameKeyRequest) (*clavigerv1.Key, error) {
	return call(ctx, c, once, c.keys.RenameKey, r)
}

// Sign signs a batch. See Key for the handle that does it by itself.
func (c *Client) Sign(ctx context.Context, r *clavigerv1.SignRequest) (*clavigerv1.SignResponse, error) {
	return call(ctx, c, again, c.use.Sign, r)
}

// SignStructured signs a JWT or a certificate under a template.
func (c *Client) SignStructured(ctx context.Context, r *clavigerv1.SignStructuredRequest) (*clavigerv1.SignStructuredResponse, error) {
	return call(ctx, c, again, c.use.SignStructured, r)
}

// Verify verifies a batch of signatures.
func (c *Client) Verify(ctx context.Context, r *clavigerv1.VerifyRequest) (*clavigerv1.VerifyResponse, error) {
	return call(ctx, c, again, c.use.Verify, r)
}

// MAC authenticates a batch.
func (c *Client) MAC(ctx context.Context, r *clavigerv1.MacRequest) (*clavigerv1.MacResponse, error) {
	return call(ctx, c, again, c.use.Mac, r)
}

// VerifyMAC verifies a batch of MACs.
func (c *Client) VerifyMAC(ctx context.Context, r *clavigerv1.VerifyMacRequest) (*clavigerv1.VerifyMacResponse, error) {
	return call(ctx, c, again, c.use.VerifyMac, r)
}

// Seal encrypts a batch.
func (c *Client) Seal(ctx context.Context, r *clavigerv1.SealRequest) (*clavigerv1.SealResponse, error) {
	return call(ctx, c, again, c.use.Seal, r)
}

// Open decrypts a batch.
func (c *Client) Open(ctx context.Context, r *clavigerv1.OpenRequest) (*clavigerv1.OpenResponse, error) {
	return call(ctx, c, again, c.use.Open, r)
}

// Protect makes a batch of tokens of a framework's format with a machine key.
func (c *Client) Protect(ctx context.Context, r *clavigerv1.ProtectRequest) (*clavigerv1.ProtectResponse, error) {
	return call(ctx, c, again, c.state.Protect, r)
}

// Drain says who still uses which version of a key.
func (c *Client) Drain(ctx context.Context, r *clavigerv1.DrainRequest) (*clavigerv1.DrainResponse, error) {
	return call(ctx, c, again, c.state.Drain, r)
}

// Unprotect checks a batch of tokens with a machine key, and opens them.
func (c *Client) Unprotect(ctx context.Context, r *clavigerv1.UnprotectRequest) (*clavigerv1.UnprotectResponse, error) {
	return call(ctx, c, again, c.state.Unprotect, r)
}

// CreateGrant lets a principal do operations on keys.
func (c *Client) CreateGrant(ctx context.Context, r *clavigerv1.CreateGrantRequest) (*clavigerv1.Grant, error) {
	return call(ctx, c, once, c.grants.CreateGrant, r)
}

// GetGrant returns a grant.
func (c *Client) GetGrant(ctx context.Context, r *clavigerv1.GetGrantRequest) (*clavigerv1.Grant, error) {
	return call(ctx, c, again, c.grants.GetGrant, r)
}

// ListGrants returns one page of grants.
func (c *Client) ListGrants(ctx context.Context, r *clavigerv1.ListGrantsRequest) (*clavigerv1.ListGrantsResponse, error) {
	return call(ctx, c, again, c.grants.ListGrants, r)
}

// RevokeGrant withdraws a grant at once.
func (c *Client) RevokeGrant(ctx context.Context, r *clavigerv1.RevokeGrantRequest) (*clavigerv1.Grant, error) {
	return call(ctx, c, once, c.grants.RevokeGrant, r)
}

// CreatePrincipal makes a principal.
func (c *Client) CreatePrincipal(ctx context.Context, r *clavigerv1.CreatePrincipalRequest) (*clavigerv1.Principal, error) {
	return call(ctx, c, once, c.principals.CreatePrincipal, r)
}

// GetPrincipal returns a principal by name or id.
func (c *Client) GetPrincipal(ctx context.Context, r *clavigerv1.GetPrincipalRequest) (*clavigerv1.Principal, error) {
	return call(ctx, c, again, c.principals.GetPrincipal, r)
}

// ListPrincipals returns one page of principals.
func (c *Client) ListPrincipals(ctx context.Context, r *clavigerv1.ListPrincipalsRequest) (*clavigerv1.ListPrincipalsResponse, error) {
	return call(ctx, c, again, c.principals.ListPrincipals, r)
}

// RevokePrincipal refuses a principal from now on.
func (c *Client) RevokePrincipal(ctx context.Context, r *clavigerv1.RevokePrincipalRequest) (*clavigerv1.Principal, error) {
	return call(ctx, c, once, c.principals.RevokePrincipal, r)
}

// IssueCode makes a one-time enrolment code.
func (c *Client) IssueCode(ctx context.Context, r *clavigerv1.IssueCodeRequest) (*clavigerv1.IssueCodeResponse, error) {
	return call(ctx, c, once, c.principals.IssueCode, r)
}

// ListCertificates returns the certificates of a principal.
func (c *Client) ListCertificates(ctx context.Context, r *clavigerv1.ListCertificatesRequest) (*clavigerv1.ListCertificatesResponse, error) {
	return call(ctx, c, again, c.principals.ListCertificates, r)
}

// RevokeCertificate refuses a certificate from now on.
func (c *Client) RevokeCertificate(ctx context.Context, r *clavigerv1.RevokeCertificateRequest) error {
	_, err := call(ctx, c, once, c.principals.RevokeCertificate, r)
	return err
}

// WhoAmI returns who the server takes the caller for, and by what facts.
func (c *Client) WhoAmI(ctx context.Context) (*clavigerv1.WhoAmIResponse, error) {
	return call(ctx, c, again, c.principals.WhoAmI, &clavigerv1.WhoAmIRequest{})
}

// Info returns the server's version and its pins.
func (c *Client) Info(ctx context.Context) (*clavigerv1.InfoResponse, error) {
	return call(ctx, c, again, c.server.Info, &clavigerv1.InfoRequest{})
}

// Doctor reports on every protective measure.
func (c *Client) Doctor(ctx context.Context) (*clavigerv1.DoctorResponse, error) {
	return call(ctx, c, again, c.server.Doctor, &clavigerv1.DoctorRequest{})
}

// Settle returns when every server of the store refuses what was withdrawn
// before the call, or refuses everything; within about two seconds.
func (c *Client) Settle(ctx context.Context) (*clavigerv1.SettleResponse, error) {
	return call(ctx, c, again, c.server.Settle, &clavigerv1.SettleRequest{})
}

// Rewrap brings every blob to the newest root key.
func (c *Client) Rewrap(ctx context.Context) (*clavigerv1.RewrapResponse, error) {
	return call(ctx, c, once, c.server.Rewrap, &clavigerv1.RewrapRequest{})
}

// Admit has the root key wrapped to a joining key process that was admitted.
func (c *Client) Admit(ctx context.Context, r *clavigerv1.AdmitRequest) (*clavigerv1.AdmitResponse, error) {
	return call(ctx, c, once, c.server.Admit, r)
}

// RecoveryShares makes shares of the root key, encrypted to their holders.
func (c *Client) RecoveryShares(ctx context.Context) (*clavigerv1.RecoverySharesResponse, error) {
	return call(ctx, c, once, c.server.RecoveryShares, &clavigerv1.RecoverySharesRequest{})
}

// RecoveryChallenge returns a one-time key to which shares are sealed for a test.
func (c *Client) RecoveryChallenge(ctx context.Context) (*clavigerv1.OneTimeKey, error) {
	return call(ctx, c, once, c.server.RecoveryChallenge, &clavigerv1.RecoveryChallengeRequest{})
}

// RecoveryVerify tests whether sealed shares restore the root key.
func (c *Client) RecoveryVerify(ctx context.Context, r *clavigerv1.RecoveryVerifyRequest) (*clavigerv1.RecoveryVerifyResponse, error) {
	return call(ctx, c, once, c.server.RecoveryVerify, r)
}

// VerifyAudit checks the chain of the record and every checkpoint. The record
// may be long: give it a context with a deadline of its own; the client's
// timeout does not apply.
func (c *Client) VerifyAudit(ctx context.Context, r *clavigerv1.VerifyAuditRequest) (*clavigerv1.VerifyAuditResponse, error) {
	return long(ctx, c.audit.VerifyAudit, r)
}

// Checkpoint signs the present head of the record, for keeping elsewhere.
func (c *Client) Checkpoint(ctx context.Context) (*clavigerv1.CheckpointResponse, error) {
	return call(ctx, c, once, c.audit.Checkpoint, &clavigerv1.CheckpointRequest{})
}

// Audit yields matching records, oldest first. It ends at the first error,
// which is yielded last. The context bounds it; the client's timeout does not.
func (c *Client) Audit(ctx context.Context, r *clavigerv1.QueryRequest) iter.Seq2[*clavigerv1.AuditRecord, error] {
	return func(yield func(*clavigerv1.AuditRecord, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.audit.Query(ctx, connect.NewRequest(r))
		if err != nil {
			yield(nil, fromConnect(err))
			return
		}
		defer stream.Close()
		for stream.Receive() {
			if !yield(stream.Msg(), nil) {
				return
			}
		}
		if err := stream.Err(); err != nil {
			yield(nil, fromConnect(err))
		}
	}
}

// Backup writes an archive that is encrypted to age recipients. When it returns
// an error, what was written is of no use. The context bounds it; the client's
// timeout does not.
func (c *Client) Backup(ctx context.Context, r *clavigerv1.BackupRequest, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.server.Backup(ctx, connect.NewRequest(r))
	if err != nil {
		return fromConnect(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if _, err := w.Write(stream.Msg().Data); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return fromConnect(err)
	}
	return nil
}
