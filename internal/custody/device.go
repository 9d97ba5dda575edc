package custody

import (
	"context"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

// Attestation is what a TPM says of one of its keys, with what it takes to
// check it. Everything is in the TPM's own encoding.
type Attestation = frames.AttestResponse

// Endorsement says which TPM a custodian stands on.
type Endorsement = frames.EndorseResponse

// Probed is what a device process saw when it attacked a key of its own.
type Probed struct {
	Level    claviger.Level
	Finding  string // the worst; "" when there is none
	Attempts []claviger.Attempt
}

// Hit says where a search found material.
type Hit = frames.Hit

// Device asks what the custodian stands on.
func (c *Client) Device(ctx context.Context) (claviger.Device, error) {
	r, err := slow[*frames.DeviceResponse](ctx, c, &frames.DeviceRequest{})
	if err != nil {
		return claviger.Device{}, err
	}
	return claviger.Device(*r), nil
}

// Bind takes a key that was made elsewhere in the device into custody.
// reference is an RFC 7512 URI.
func (c *Client) Bind(ctx context.Context, b frames.Binding, reference string) (Made, error) {
	r, err := slow[*frames.BindResponse](ctx, c, &frames.BindRequest{Binding: b, Reference: reference})
	if err != nil {
		return Made{}, err
	}
	return r.Made, nil
}

// Attest has the device certify a key. nonce has 16 to 64 bytes.
func (c *Client) Attest(ctx context.Context, m Material, nonce []byte) (Attestation, error) {
	r, err := slow[*frames.AttestResponse](ctx, c, &frames.AttestRequest{Binding: m.Binding, Blob: m.Blob, Nonce: nonce})
	if err != nil {
		return Attestation{}, err
	}
	return *r, nil
}

// Endorse asks for the keys that say which device it is.
func (c *Client) Endorse(ctx context.Context) (Endorsement, error) {
	r, err := slow[*frames.EndorseResponse](ctx, c, &frames.EndorseRequest{})
	if err != nil {
		return Endorsement{}, err
	}
	return *r, nil
}

// Activate returns the 32 bytes that were encrypted to the device's endorsement
// key and the name of its attestation key: TPM2B_ID_OBJECT and
// TPM2B_ENCRYPTED_SECRET.
func (c *Client) Activate(ctx context.Context, credential, encrypted []byte) ([]byte, error) {
	r, err := slow[*frames.ActivateResponse](ctx, c, &frames.ActivateRequest{Credential: credential, Encrypted: encrypted})
	if err != nil {
		return nil, err
	}
	return r.Challenge, nil
}

// Probe has the device process attack a key with all the authority it has.
// loud includes what alarms a device or counts against a lockout.
func (c *Client) Probe(ctx context.Context, m Material, loud bool) (Probed, error) {
	r, err := slow[*frames.ProbeResponse](ctx, c, &frames.ProbeRequest{Binding: m.Binding, Blob: m.Blob, Loud: loud})
	if err != nil {
		return Probed{}, err
	}
	return Probed(*r), nil
}

// Destroy has the device delete a key, which is no error when it is not there.
// kept tells that the device keeps it: it was made by others, and only bound.
func (c *Client) Destroy(ctx context.Context, m Material) (kept bool, err error) {
	r, err := slow[*frames.DestroyResponse](ctx, c, &frames.DestroyRequest{Binding: m.Binding, Blob: m.Blob})
	if err != nil {
		return false, err
	}
	return r.Kept, nil
}

// Search reports which of the materials (at most 1000) lie in the haystack (at
// most 1 MiB), whole, in any usual encoding.
func (c *Client) Search(ctx context.Context, materials []Material, haystack []byte) ([]Hit, error) {
	req := &frames.SearchRequest{Haystack: haystack, Items: make([]frames.Stored, len(materials))}
	for i, m := range materials {
		req.Items[i] = frames.Stored(m)
	}
	r, err := slow[*frames.SearchResponse](ctx, c, req)
	if err != nil {
		return nil, err
	}
	for _, h := range r.Found {
		if int(h.Item) >= len(materials) {
			return nil, errMismatch
		}
	}
	return r.Found, nil
}
