package keyd

import (
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/onetime"
)

// maxOnetime is how many one-time keys may be outstanding.
const maxOnetime = 64

var errSpent = claviger.Errorf(claviger.NotFound, "there is no such one-time key: it was used, it expired, or the key process was restarted", "ask for another and seal again")

// onetimes holds the private halves of one-time keys.
type onetimes struct {
	mu   sync.Mutex
	keys map[string]*onetimeKey
}

type onetimeKey struct {
	statement onetime.Key
	private   hazmat.Secret // HPKE encoding
	expiry    *time.Timer   // nil for a join key, which has none
}

// newHPKE makes an HPKE key. It is called inside Do.
func (p *Process) newHPKE() (private hazmat.Secret, public []byte, err error) {
	key, err := onetime.KEM().GenerateKey()
	if err != nil {
		return private, nil, fmt.Errorf("generate one-time key: %w", err)
	}
	raw, err := key.Bytes()
	if err != nil {
		return private, nil, fmt.Errorf("encode one-time key: %w", err)
	}
	private, err = p.keep(raw)
	return private, key.PublicKey().Bytes(), err
}

// openHPKE opens a message to an HPKE key and calls f with it, inside Do.
func openHPKE(private hazmat.Secret, info, sealed []byte, f func([]byte) error) error {
	return private.Use(hazmat.Token{}, func(raw []byte) error {
		key, err := onetime.KEM().NewPrivateKey(raw)
		if err != nil {
			return fmt.Errorf("read one-time key: %w", err)
		}
		message, err := hpke.Open(key, onetime.KDF(), onetime.AEAD(), info, sealed)
		if err != nil {
			return claviger.Errorf(claviger.Invalid, "the message is not sealed to this one-time key", "ask for another and seal to that")
		}
		return f(message)
	})
}

// oneTimeKey makes a key for one import or one set of shares.
func (p *Process) oneTimeKey(req *frames.OneTimeKeyRequest) (*frames.OneTimeKeyResponse, error) {
	r := p.root.Load()
	switch {
	case req.Purpose == onetime.Import:
		if err := req.Binding.Validate(); err != nil {
			return nil, err
		}
		if req.Binding.Origin != claviger.Imported {
			return nil, claviger.Errorf(claviger.Invalid, "what is imported cannot be bound as generated", "bind it as imported")
		}
		if _, err := p.rooted(); err != nil {
			return nil, err
		}
	case req.Purpose != onetime.Share || !req.Binding.IsZero() || r == nil:
		return nil, claviger.Errorf(claviger.Invalid, "a one-time key is for an import, or for shares without a binding", "name one of the two purposes")
	}
	now, life := p.now(), onetime.Lifetime
	if req.Purpose == onetime.Share {
		life = onetime.ShareLifetime
	}
	k := &onetimeKey{statement: onetime.Key{
		ID: newOnetimeID(), Purpose: req.Purpose, Binding: req.Binding,
		Expires: now.Add(life).Truncate(time.Second).UTC(),
	}}
	resp := &frames.OneTimeKeyResponse{ID: k.statement.ID, Expires: uint64(k.statement.Expires.Unix()), Identity: r.public}
	p.onetime.mu.Lock()
	defer p.onetime.mu.Unlock()
	p.onetime.purge(now)
	if len(p.onetime.keys) >= maxOnetime {
		return nil, claviger.Errorf(claviger.Exhausted, "too many imports or challenges are under way", "finish one, or wait until they expire")
	}
	var err error
	hazmat.Do(func() {
		if k.private, k.statement.Public, err = p.newHPKE(); err == nil {
			resp.Signature, err = r.sign(k.statement.Statement())
		}
	})
	if err != nil {
		k.private.Release()
		return nil, err
	}
	resp.Public = k.statement.Public
	p.onetime.keys[k.statement.ID] = k
	k.expiry = time.AfterFunc(life+time.Second, func() {
		defer p.guard()
		p.onetime.mu.Lock()
		defer p.onetime.mu.Unlock()
		p.onetime.purge(p.now())
	})
	return resp, nil
}

func newOnetimeID() string {
	var b [15]byte
	_, _ = rand.Read(b[:])
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// purge releases what has expired. The caller holds mu.
func (o *onetimes) purge(now time.Time) {
	for id, k := range o.keys {
		if !now.Before(k.statement.Expires) {
			k.private.Release()
			delete(o.keys, id)
		}
	}
}

// take returns a key and forgets it: whatever comes of it, it was used.
func (p *Process) take(id, purpose string) (*onetimeKey, error) {
	p.onetime.mu.Lock()
	defer p.onetime.mu.Unlock()
	p.onetime.purge(p.now())
	k := p.onetime.keys[id]
	if k == nil || k.statement.Purpose != purpose {
		return nil, errSpent
	}
	delete(p.onetime.keys, id)
	k.expiry.Stop() // or spent keys would hold memory until they would have expired
	return k, nil
}

// adopt takes in sealed material.
func (p *Process) adopt(req *frames.AdoptRequest) (*frames.AdoptResponse, error) {
	r, err := p.rooted()
	if err != nil {
		return nil, err
	}
	k, err := p.take(req.OneTime, onetime.Import)
	if err != nil {
		return nil, err
	}
	defer k.private.Release()
	if k.statement.Binding != req.Binding {
		return nil, claviger.Errorf(claviger.Invalid, "the one-time key was made for another version", "ask for one for this version")
	}
	resp := &frames.AdoptResponse{}
	err = openHPKE(k.private, k.statement.Statement(), req.Sealed, func(secret []byte) (err error) {
		resp.Made, err = p.finish(r, req.Binding, secret)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

const joinInfo = "claviger join v1"

// newJoinKey returns the key to which another process may wrap the root.
func (p *Process) newJoinKey() (*frames.JoinKeyResponse, error) {
	p.rooting.Lock()
	defer p.rooting.Unlock()
	if p.handover == nil || p.joinKey == nil {
		return nil, errRooted
	}
	return &frames.JoinKeyResponse{Public: p.joinKey.statement.Public}, nil
}

// admit wraps the root to a join key, if the bundle lists it. What the server
// says does not matter: the list is written by the unsealing user alone.
func (p *Process) admit(req *frames.AdmitRequest) (*frames.AdmitResponse, error) {
	r, err := p.rooted()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(r.joiners, sha256.Sum256(req.JoinKey)) {
		return nil, claviger.Errorf(claviger.Denied, "the join key is not admitted", "admit it with 'claviger root admit' on this machine")
	}
	public, err := onetime.KEM().NewPublicKey(req.JoinKey)
	if err != nil {
		return nil, claviger.Errorf(claviger.Invalid, "the join key has a form that is not allowed", "copy it again")
	}
	resp := &frames.AdmitResponse{}
	hazmat.Do(func() {
		var encoded []byte
		if encoded, err = r.encoded(); err == nil {
			resp.Wrapped, err = hpke.Seal(public, onetime.KDF(), onetime.AEAD(), []byte(joinInfo), encoded)
		}
		clear(encoded)
	})
	if err != nil {
		return nil, fmt.Errorf("wrap root: %w", err)
	}
	return resp, nil
}

// encoded returns the bundle's encoding. It is called inside Do, and the
// caller clears the result.
func (r *root) encoded() ([]byte, error) {
	b, err := r.bundle()
	defer b.Zero()
	if err != nil {
		return nil, err
	}
	return b.Encode()
}
