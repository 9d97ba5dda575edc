package client

import (
	"context"

	"connectrpc.com/connect"

	clavigerv1 "claviger.dev/api/claviger/v1"
)

// RunAttest has a TPM certify one of its keys. Check the answer against the
// nonce that was sent.
func (c *Client) RunAttest(ctx context.Context, r *clavigerv1.RunAttestRequest) (*clavigerv1.RunAttestResponse, error) {
	return call(ctx, c, again, c.evidence.RunAttest, r)
}

// RunProbe has a device process attack one of its keys. It may take minutes:
// the context bounds it; the client's timeout does not.
func (c *Client) RunProbe(ctx context.Context, r *clavigerv1.RunProbeRequest) (*clavigerv1.RunProbeResponse, error) {
	return long(ctx, c.evidence.RunProbe, r)
}

// SearchMaterial looks for keys of the key process in at most 1 MiB.
func (c *Client) SearchMaterial(ctx context.Context, r *clavigerv1.SearchMaterialRequest) (*clavigerv1.SearchMaterialResponse, error) {
	return call(ctx, c, again, c.evidence.SearchMaterial, r)
}

// SubmitEvidence hands over a run and returns its signed statement. The context
// bounds it; the client's timeout does not.
func (c *Client) SubmitEvidence(ctx context.Context, r *clavigerv1.SubmitEvidenceRequest) (*clavigerv1.SubmitEvidenceResponse, error) {
	return long(ctx, c.evidence.SubmitEvidence, r)
}

// ListEvidence returns what evidence shows of one page of keys.
func (c *Client) ListEvidence(ctx context.Context, r *clavigerv1.ListEvidenceRequest) (*clavigerv1.ListEvidenceResponse, error) {
	return call(ctx, c, again, c.evidence.ListEvidence, r)
}

// GetStatement returns the signed statement of a run.
func (c *Client) GetStatement(ctx context.Context, r *clavigerv1.GetStatementRequest) (*clavigerv1.GetStatementResponse, error) {
	return call(ctx, c, again, c.evidence.GetStatement, r)
}

// ReportCopy records that a version was found outside custody: it is exposed
// from now on, and its owner is told.
func (c *Client) ReportCopy(ctx context.Context, r *clavigerv1.ReportCopyRequest) (*clavigerv1.Key, error) {
	return call(ctx, c, once, c.evidence.ReportCopy, r)
}

// CloseCopy records that a copy of a version is gone.
func (c *Client) CloseCopy(ctx context.Context, r *clavigerv1.CloseCopyRequest) (*clavigerv1.Key, error) {
	return call(ctx, c, once, c.evidence.CloseCopy, r)
}

// ListCustodians returns every custodian and what it stands on.
func (c *Client) ListCustodians(ctx context.Context) (*clavigerv1.ListCustodiansResponse, error) {
	return call(ctx, c, again, c.evidence.ListCustodians, &clavigerv1.ListCustodiansRequest{})
}

// long makes one call that may outlast the client's timeout.
func long[Q, A any](ctx context.Context, method func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), request *Q) (*A, error) {
	answer, err := method(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, fromConnect(err)
	}
	return answer.Msg, nil
}
