package keyd

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	claviger "claviger.dev"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/rootkey"
)

// root is the root bundle, its secrets in the arena.
type root struct {
	public      [32]byte      // identity
	identity    hazmat.Secret // 64 bytes: seed and public key
	fingerprint hazmat.Secret // 32 bytes: what symmetric fingerprints are made with
	generations []generation  // ascending; empty while there is no root
	joiners     [][32]byte
	holders     []rootkey.Holder
	threshold   int
}

type generation struct {
	number uint32
	key    hazmat.Secret
}

var (
	errNoRoot = claviger.Errorf(claviger.Unavailable, "the key process has no root key yet", "finish the join or the restore first")
	errRooted = claviger.Errorf(claviger.Conflict, "the key process has a root key already", "joining and restoring are for a process that was started without one")
)

// rooted returns the root, or an error while there is none.
func (p *Process) rooted() (*root, error) {
	if r := p.root.Load(); r != nil && len(r.generations) > 0 {
		return r, nil
	}
	return nil, errNoRoot
}

// install puts the bundle's secrets into the arena. It is called inside Do.
func (p *Process) install(b *rootkey.Bundle) error {
	r, err := p.identify(b.Identity[:])
	if err != nil {
		return err
	}
	for i := range b.Generations {
		key, err := p.keep(b.Generations[i].Key[:])
		if err != nil {
			return err
		}
		r.generations = append(r.generations, generation{b.Generations[i].Number, key})
	}
	r.joiners = append([][32]byte(nil), b.Joiners...)
	r.holders, r.threshold = append([]rootkey.Holder(nil), b.Holders...), b.Threshold
	p.root.Store(r)
	return nil
}

// installStranger gives a process without a root an identity for the while, so
// that shares can be sealed to it.
func (p *Process) installStranger() error {
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed)
	r, err := p.identify(seed)
	p.root.Store(r)
	return err
}

// introduce makes what a process without a root is known by until it has one,
// and tells claviger-unseal its fingerprint: of the join key, or of the identity
// to which shares are sealed. It is called inside Do, by a holder of rooting.
func (p *Process) introduce() error {
	if err := p.installStranger(); err != nil {
		return err
	}
	public := p.root.Load().public
	answer := rootkey.Message{Kind: p.asked.Kind, Pin: sha256.Sum256(public[:])}
	if p.asked.Kind == rootkey.Join {
		k := &onetimeKey{}
		var err error
		if k.private, k.statement.Public, err = p.newHPKE(); err != nil {
			return err
		}
		p.joinKey, answer.Pin = k, sha256.Sum256(k.statement.Public)
	}
	return rootkey.Send(p.handover, answer)
}

func (p *Process) identify(seed []byte) (*root, error) {
	r := &root{}
	private := ed25519.NewKeyFromSeed(seed)
	copy(r.public[:], private[ed25519.SeedSize:])
	var err error
	if r.identity, err = p.keep(private); err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, seed, nil, "claviger fingerprint v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive fingerprint key: %w", err)
	}
	r.fingerprint, err = p.keep(key)
	return r, err
}

// bundle puts the bundle together again. It is called inside Do, and the
// caller zeroes the result.
func (r *root) bundle() (*rootkey.Bundle, error) {
	b := &rootkey.Bundle{
		Generations: make([]rootkey.Generation, len(r.generations)),
		Joiners:     r.joiners, Holders: r.holders, Threshold: r.threshold,
	}
	err := r.identity.Use(hazmat.Token{}, func(key []byte) error { copy(b.Identity[:], key); return nil })
	for i, g := range r.generations {
		b.Generations[i].Number = g.number
		if err == nil {
			err = g.key.Use(hazmat.Token{}, func(key []byte) error { copy(b.Generations[i].Key[:], key); return nil })
		}
	}
	return b, err
}

// keep copies a secret into the arena.
func (p *Process) keep(secret []byte) (hazmat.Secret, error) {
	return p.slots.room(len(secret), func(b []byte) error { copy(b, secret); return nil })
}

// sign signs a statement with the identity key.
func (r *root) sign(statement []byte) (sig [ed25519.SignatureSize]byte, err error) {
	err = r.identity.Use(hazmat.Token{}, func(key []byte) error {
		copy(sig[:], ed25519.Sign(append(ed25519.PrivateKey(nil), key...), statement))
		return nil
	})
	return sig, err
}
