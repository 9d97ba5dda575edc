package keyd

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/rootkey"
)

// A share is: label | set (16 bytes) | threshold (1) | Shamir id (32) and value
// (32) in the scalar field of ristretto255 | the bundle, AES-256-GCM encrypted
// under HKDF-SHA256 of the shared scalar. Shares of one set go together.
const (
	shareLabel  = "claviger share v1\x00"
	setSize     = 16
	scalarSize  = 32
	shareHeader = len(shareLabel) + setSize + 1 + 2*scalarSize
)

// handoverLimit bounds the wait for claviger-unseal to write the slots file; a
// person may be typing the passphrase of its first slot. The server waits a minute.
const handoverLimit = 50 * time.Second

var errShare = claviger.Errorf(claviger.Invalid, "a share has a form that is not allowed, or is of another set", "give shares of one set, each decrypted by its holder")

// shares splits the root for the holders that the bundle lists, and encrypts
// each share to its holder.
func (p *Process) shares() (*frames.SharesResponse, error) {
	r, err := p.rooted()
	if err != nil {
		return nil, err
	}
	if len(r.holders) == 0 {
		return nil, claviger.Errorf(claviger.Invalid, "there are no holders of recovery shares", "name them with 'claviger root holders' on this machine")
	}
	resp := &frames.SharesResponse{Threshold: uint32(r.threshold)}
	hazmat.Do(func() { resp.Shares, err = r.split() })
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (r *root) split() ([]frames.Share, error) {
	encoded, err := r.encoded()
	defer clear(encoded)
	if err != nil {
		return nil, err
	}
	head := append([]byte(shareLabel), make([]byte, setSize)...)
	_, _ = rand.Read(head[len(shareLabel):])
	head = append(head, byte(r.threshold))
	secret := group.Ristretto255.RandomNonZeroScalar(rand.Reader)
	aead, err := shareCipher(secret, head)
	if err != nil {
		return nil, err
	}
	sealed := aead.Seal(nil, nil, encoded, head)
	var out []frames.Share
	for i, s := range secretsharing.New(rand.Reader, uint(r.threshold-1), secret).Share(uint(len(r.holders))) {
		text := append([]byte(nil), head...)
		for _, scalar := range []group.Scalar{s.ID, s.Value} {
			b, err := scalar.MarshalBinary()
			if err != nil {
				return nil, fmt.Errorf("encode share: %w", err)
			}
			text = append(text, b...)
		}
		encrypted, err := encryptTo(r.holders[i].Recipient, append(text, sealed...))
		if err != nil {
			return nil, fmt.Errorf("encrypt share of %q: %w", r.holders[i].Name, err)
		}
		out = append(out, frames.Share{Holder: r.holders[i].Name, Encrypted: encrypted})
	}
	return out, nil
}

func shareCipher(secret group.Scalar, head []byte) (cipher.AEAD, error) {
	raw, err := secret.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("encode scalar: %w", err)
	}
	key, err := hkdf.Key(sha256.New, raw, head, "claviger recovery v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive recovery key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make recovery cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func encryptTo(recipient string, text []byte) ([]byte, error) {
	to, err := age.ParseRecipients(strings.NewReader(recipient))
	if err != nil {
		return nil, claviger.Errorf(claviger.Invalid, "the recipient of a holder is no age recipient", "correct it with 'claviger root holders'").Wrap(err)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// gathered are the shares of one set.
type gathered struct {
	head      []byte
	threshold int
	sealed    []byte
	shares    []secretsharing.Share
}

// add parses one share and adds it, unless it is there already.
func (g *gathered) add(text []byte) error {
	n := len(shareLabel) + setSize + 1
	if len(text) <= shareHeader || string(text[:len(shareLabel)]) != shareLabel || text[n-1] < 2 {
		return errShare
	}
	sealed := text[shareHeader:]
	if g.head == nil {
		g.head, g.threshold, g.sealed = bytes.Clone(text[:n]), int(text[n-1]), bytes.Clone(sealed)
	}
	if !bytes.Equal(g.head, text[:n]) || !bytes.Equal(g.sealed, sealed) {
		return errShare
	}
	s := secretsharing.Share{ID: group.Ristretto255.NewScalar(), Value: group.Ristretto255.NewScalar()}
	for i, scalar := range []group.Scalar{s.ID, s.Value} {
		raw := text[n+i*scalarSize : n+(i+1)*scalarSize]
		if err := scalar.UnmarshalBinary(raw); err != nil {
			return errShare
		}
		if again, err := scalar.MarshalBinary(); err != nil || !bytes.Equal(again, raw) {
			return errShare
		}
	}
	if s.ID.IsZero() {
		return errShare
	}
	for _, other := range g.shares {
		if other.ID.IsEqual(s.ID) {
			return nil
		}
	}
	g.shares = append(g.shares, s)
	return nil
}

// bundle restores the bundle from all the shares, so that a wrong one among
// them shows; nil when they are too few or do not fit.
func (g *gathered) bundle() *rootkey.Bundle {
	if len(g.shares) == 0 || len(g.shares) < g.threshold {
		return nil
	}
	secret, err := secretsharing.Recover(uint(len(g.shares)-1), g.shares)
	if err != nil {
		return nil
	}
	aead, err := shareCipher(secret, g.head)
	if err != nil {
		return nil
	}
	encoded, err := aead.Open(nil, nil, g.sealed, g.head)
	if err != nil {
		return nil
	}
	defer clear(encoded)
	b, err := rootkey.DecodeBundle(encoded)
	if err != nil {
		return nil
	}
	return b
}

// gather opens shares that were sealed to a one-time key and calls f with
// them, inside Do.
func (p *Process) gather(id string, sealed [][]byte, f func(*gathered) error) error {
	k, err := p.take(id, onetime.Share)
	if err != nil {
		return err
	}
	defer k.private.Release()
	hazmat.Do(func() {
		g := &gathered{}
		for _, s := range sealed {
			if err = openHPKE(k.private, k.statement.Statement(), s, g.add); err != nil {
				return
			}
		}
		err = f(g)
	})
	return err
}

// verifyShares tells whether shares restore the present root, every generation
// of it.
func (p *Process) verifyShares(req *frames.VerifySharesRequest) (*frames.VerifySharesResponse, error) {
	r, err := p.rooted()
	if err != nil {
		return nil, err
	}
	resp := &frames.VerifySharesResponse{}
	err = p.gather(req.OneTime, req.Sealed, func(g *gathered) error {
		resp.Count, resp.Threshold = uint32(len(g.shares)), uint32(g.threshold)
		got := g.bundle()
		defer got.Zero()
		want, err := r.bundle()
		defer want.Zero()
		resp.Restores = err == nil && got != nil && covers(got, want)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// covers reports whether got has the identity and every generation of want.
func covers(got, want *rootkey.Bundle) bool {
	have := map[rootkey.Generation]bool{}
	for _, g := range got.Generations {
		have[g] = true
	}
	for _, g := range want.Generations {
		if !have[g] {
			return false
		}
	}
	return got.Identity == want.Identity
}

// restore restores the root from shares.
func (p *Process) restore(req *frames.RestoreRequest) (*frames.RestoreResponse, error) {
	p.rooting.Lock()
	defer p.rooting.Unlock()
	if p.handover == nil || p.asked.Kind != rootkey.Restore {
		return nil, errRooted
	}
	err := p.gather(req.OneTime, req.Sealed, func(g *gathered) error {
		b := g.bundle()
		if b == nil {
			return claviger.Errorf(claviger.Invalid, "the shares do not restore a root key", "at least as many shares of one set are needed as the set's threshold says")
		}
		defer b.Zero()
		return p.arrive(b)
	})
	if err != nil {
		return nil, err
	}
	return &frames.RestoreResponse{}, nil
}

// join takes the root that another key process wrapped to the join key.
func (p *Process) join(req *frames.JoinRequest) (*frames.JoinResponse, error) {
	p.rooting.Lock()
	defer p.rooting.Unlock()
	if p.handover == nil || p.asked.Kind != rootkey.Join {
		return nil, errRooted
	}
	if p.joinKey == nil {
		return nil, errSpent
	}
	err := openHPKE(p.joinKey.private, []byte(joinInfo), req.Wrapped, func(encoded []byte) error {
		b, err := rootkey.DecodeBundle(encoded)
		if err != nil {
			return claviger.Errorf(claviger.Invalid, "the message holds no root key", "start the join again")
		}
		defer b.Zero()
		if b.Pin() != sha256.Sum256(req.Identity) {
			return errPin
		}
		return p.arrive(b)
	})
	if err != nil {
		return nil, err
	}
	p.joinKey.private.Release()
	p.joinKey = nil
	return &frames.JoinResponse{}, nil
}

var errPin = claviger.Errorf(claviger.Denied, "the root key is not of the key process that is pinned", "compare the pin with the one shown on the other machine")

// arrive gives a bundle that arrived to claviger-unseal and begins to serve
// with it once that has it on disk. The caller holds rooting.
func (p *Process) arrive(b *rootkey.Bundle) error {
	if p.asked.Pin != [32]byte{} && b.Pin() != p.asked.Pin {
		return errPin
	}
	limit := time.AfterFunc(handoverLimit, func() {
		p.arena.Wipe()
		p.exit(71)
	})
	defer limit.Stop()
	if err := rootkey.Send(p.handover, rootkey.Message{Kind: rootkey.Deliver, Bundle: b}); err != nil {
		return err
	}
	m, err := rootkey.Receive(p.handover)
	if err != nil {
		return err
	}
	if m.Kind != rootkey.Done {
		m.Bundle.Zero()
		return fmt.Errorf("message %q after handing the root over", byte(m.Kind))
	}
	if err := p.install(b); err != nil {
		return err
	}
	if c, ok := p.handover.(interface{ Close() error }); ok {
		_ = c.Close()
	}
	p.handover = nil
	return nil
}
