// Package custody is the server's side of frames: the one client of every
// custodian.
//
// It owns the connection to the key process: pipelining, loading of blobs into
// slots, repetition after a key process died, and the verdict that one is hung
// or speaks garbage, upon which it closes the socket so that the supervisor
// replaces the process. It promises that a result was made by the material
// that was named, or else there is an error; and that no call waits longer
// than its context and the configured timeout. It sees wrapped blobs, never
// material, and decides nothing about who may use what.
package custody

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/recipe"
)

// Source hands over the sockets of key processes.
type Source interface {
	// Next returns the next key process's socket. It blocks until there is
	// one, the context ends or no more will come.
	Next(ctx context.Context) (net.Conn, error)
}

// Material names what a use needs: a wrapped blob, what it is bound to, and
// the fingerprint that was authorised.
type Material struct {
	Binding     frames.Binding
	Blob        []byte
	Fingerprint claviger.Fingerprint
}

// The messages that callers see as they are.
type (
	// Made is the outcome of generating or adopting.
	Made = frames.Made
	// Plain is one item to seal.
	Plain = frames.Plain
	// Sealed is one item to open.
	Sealed = frames.Sealed
	// Opened is the answer for one item.
	Opened = frames.Opened
	// Share is one recovery share.
	Share = frames.Share
	// Measure is one protective measure of the key process.
	Measure = frames.Measure
)

// Identity is who the key process is.
type Identity struct {
	Public     ed25519.PublicKey
	Generation uint32 // newest root generation; 0 while Joining
	Joining    bool   // it was started without a root and has none yet
}

// Evidence is what the key process observes of itself.
type Evidence struct {
	PID      int
	Level    claviger.Level // the level of what it generates
	Measures []Measure
}

// Shares are recovery shares, each encrypted to its holder.
type Shares struct {
	Threshold int
	Shares    []Share
}

// Config configures a Client.
type Config struct {
	Source  Source        // required
	Log     *slog.Logger  // nil discards
	Timeout time.Duration // longest wait for a request, and the silence after which a key process counts as hung; 2 s when zero
	Device  bool          // it stands on a device, whose speed nobody knows: requests are cut by what it showed
}

// Generate makes new material for the binding.
func (c *Client) Generate(ctx context.Context, b frames.Binding) (Made, error) {
	r, err := slow[*frames.GenerateResponse](ctx, c, &frames.GenerateRequest{Binding: b})
	if err != nil {
		return Made{}, err
	}
	return r.Made, nil
}

// OneTimeKey asks for a key to which material for b, or shares, can be sealed
// once. purpose is onetime.Import or onetime.Share (b zero).
func (c *Client) OneTimeKey(ctx context.Context, purpose string, b frames.Binding) (onetime.Key, error) {
	r, err := slow[*frames.OneTimeKeyResponse](ctx, c, &frames.OneTimeKeyRequest{Purpose: purpose, Binding: b})
	if err != nil {
		return onetime.Key{}, err
	}
	return onetime.Key{
		ID: r.ID, Purpose: purpose, Public: r.Public, Binding: b,
		Expires:  time.Unix(int64(r.Expires), 0).UTC(),
		Identity: r.Identity[:], Signature: r.Signature[:],
	}, nil
}

// Adopt takes in material that was sealed to a one-time key for b. A key that
// was used, has expired or died with its process is claviger.NotFound.
func (c *Client) Adopt(ctx context.Context, b frames.Binding, oneTimeID string, sealed []byte) (Made, error) {
	r, err := slow[*frames.AdoptResponse](ctx, c, &frames.AdoptRequest{Binding: b, OneTime: oneTimeID, Sealed: sealed})
	if err != nil {
		return Made{}, err
	}
	return r.Made, nil
}

// Sign signs each input; ECDSA signatures are ASN.1. With prehashed the inputs
// are digests of the algorithm's hash.
func (c *Client) Sign(ctx context.Context, m Material, inputs [][]byte, prehashed bool) ([][]byte, error) {
	return inParts(ctx, c, m, len(inputs), func(u frames.Use, from, to int) frames.Request {
		return &frames.SignRequest{Use: u, Prehashed: prehashed, Inputs: inputs[from:to]}
	}, func(r *frames.SignResponse) [][]byte { return r.Signatures })
}

// MAC computes the code of each input.
func (c *Client) MAC(ctx context.Context, m Material, inputs [][]byte) ([][]byte, error) {
	return inParts(ctx, c, m, len(inputs), func(u frames.Use, from, to int) frames.Request {
		return &frames.MACRequest{Use: u, Inputs: inputs[from:to]}
	}, func(r *frames.MACResponse) [][]byte { return r.MACs })
}

// VerifyMAC compares each full-length code.
func (c *Client) VerifyMAC(ctx context.Context, m Material, inputs, macs [][]byte) ([]bool, error) {
	if len(inputs) != len(macs) {
		return nil, errPairs
	}
	return inParts(ctx, c, m, len(inputs), func(u frames.Use, from, to int) frames.Request {
		return &frames.VerifyMACRequest{Use: u, Inputs: inputs[from:to], MACs: macs[from:to]}
	}, func(r *frames.VerifyMACResponse) []bool { return r.Valid })
}

// Seal encrypts each item: nonce (12 bytes) || ciphertext || tag (16 bytes).
func (c *Client) Seal(ctx context.Context, m Material, items []Plain) ([][]byte, error) {
	return inParts(ctx, c, m, len(items), func(u frames.Use, from, to int) frames.Request {
		return &frames.SealRequest{Use: u, Items: items[from:to]}
	}, func(r *frames.SealResponse) [][]byte { return r.Sealed })
}

// Open decrypts each item.
func (c *Client) Open(ctx context.Context, m Material, items []Sealed) ([]Opened, error) {
	return inParts(ctx, c, m, len(items), func(u frames.Use, from, to int) frames.Request {
		return &frames.OpenRequest{Use: u, Items: items[from:to]}
	}, func(r *frames.OpenResponse) []Opened { return r.Opened })
}

// Recipe runs a recipe of a machine key's set on each item: with make it
// protects, and otherwise checks and opens. A recipe that the set does not have
// is claviger.Denied; why an item is not OK is never said.
func (c *Client) Recipe(ctx context.Context, m Material, r recipe.Recipe, make bool, items []recipe.Item) ([]recipe.Result, error) {
	resp, err := use[*frames.RecipeResponse](ctx, c, m, len(items), func(u frames.Use) frames.Request {
		return &frames.RecipeRequest{Use: u, Recipe: r, Make: make, Items: items}
	})
	if err != nil {
		return nil, err
	}
	return resp.Results, nil
}

// Find reports whether the haystack (at most 1 MiB) contains the material,
// whole, in any usual encoding.
func (c *Client) Find(ctx context.Context, m Material, haystack []byte) (bool, error) {
	r, err := use[*frames.FindResponse](ctx, c, m, -1, func(u frames.Use) frames.Request {
		return &frames.FindRequest{Use: u, Haystack: haystack}
	})
	if err != nil {
		return false, err
	}
	return r.Found, nil
}

// Unload empties the slot of the material, if it is loaded. Call it when a
// version is destroyed.
func (c *Client) Unload(ctx context.Context, m Material) error { return c.unload(ctx, m) }

// Rewrap wraps a blob under the newest root generation.
func (c *Client) Rewrap(ctx context.Context, b frames.Binding, blob []byte) ([]byte, uint32, error) {
	r, err := fast[*frames.RewrapResponse](ctx, c, &frames.RewrapRequest{Binding: b, Blob: blob})
	if err != nil {
		return nil, 0, err
	}
	return r.Blob, r.Generation, nil
}

// Identity asks who the key process is.
func (c *Client) Identity(ctx context.Context) (Identity, error) {
	r, err := fast[*frames.IdentityResponse](ctx, c, &frames.IdentityRequest{})
	if err != nil {
		return Identity{}, err
	}
	return Identity{Public: r.Public[:], Generation: r.Generation, Joining: r.Joining}, nil
}

// Evidence asks what the key process observes of itself.
func (c *Client) Evidence(ctx context.Context) (Evidence, error) {
	r, err := fast[*frames.EvidenceResponse](ctx, c, &frames.EvidenceRequest{})
	if err != nil {
		return Evidence{}, err
	}
	return Evidence{PID: int(r.PID), Level: r.Level, Measures: r.Measures}, nil
}

// JoinKey returns the public key to which another key process may wrap the root
// for this one, which was started without.
func (c *Client) JoinKey(ctx context.Context) ([]byte, error) {
	r, err := slow[*frames.JoinKeyResponse](ctx, c, &frames.JoinKeyRequest{})
	if err != nil {
		return nil, err
	}
	return r.Public, nil
}

// Admit wraps the root to a join key, if the root bundle admits that key;
// otherwise claviger.Denied.
func (c *Client) Admit(ctx context.Context, joinKey []byte) ([]byte, error) {
	r, err := slow[*frames.AdmitResponse](ctx, c, &frames.AdmitRequest{JoinKey: joinKey})
	if err != nil {
		return nil, err
	}
	return r.Wrapped, nil
}

// Join gives the wrapped root to the process that made the join key. identity
// is the raw public identity key that the root must have.
func (c *Client) Join(ctx context.Context, wrapped, identity []byte) error {
	_, err := slow[*frames.JoinResponse](ctx, c, &frames.JoinRequest{Wrapped: wrapped, Identity: identity})
	return err
}

// Shares splits the root for the holders in the root bundle.
func (c *Client) Shares(ctx context.Context) (Shares, error) {
	r, err := slow[*frames.SharesResponse](ctx, c, &frames.SharesRequest{})
	if err != nil {
		return Shares{}, err
	}
	return Shares{Threshold: int(r.Threshold), Shares: r.Shares}, nil
}

// VerifyShares opens shares that were sealed to a one-time key and reports
// whether they restore the present root, how many distinct ones of one set
// there were and how many that set needs.
func (c *Client) VerifyShares(ctx context.Context, oneTimeID string, sealed [][]byte) (restores bool, count, threshold int, err error) {
	r, err := slow[*frames.VerifySharesResponse](ctx, c, &frames.VerifySharesRequest{OneTime: oneTimeID, Sealed: sealed})
	if err != nil {
		return false, 0, 0, err
	}
	return r.Restores, int(r.Count), int(r.Threshold), nil
}

// Restore restores the root of a process that was started without.
func (c *Client) Restore(ctx context.Context, oneTimeID string, sealed [][]byte) error {
	_, err := slow[*frames.RestoreResponse](ctx, c, &frames.RestoreRequest{OneTime: oneTimeID, Sealed: sealed})
	return err
}
