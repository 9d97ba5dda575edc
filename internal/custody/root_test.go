package custody_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/rootkey"
)

// with starts the process with another bundle.
func with(change func(*rootkey.Bundle)) func(*custodytest.Starter) {
	return func(s *custodytest.Starter) { change(s.Message.Bundle) }
}

// without starts the process without a bundle.
func without(kind rootkey.Kind, pin [32]byte) func(*custodytest.Starter) {
	return func(s *custodytest.Starter) { s.Message = rootkey.Message{Kind: kind, Pin: pin} }
}

func mustSign(t *testing.T, c *custody.Client, k custodytest.Key) {
	t.Helper()
	sigs, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false)
	if err != nil || !custodytest.Verify(k.Binding.Algorithm, k.Public, nil, sigs[0]) {
		t.Errorf("sign: %v", err)
	}
}

func TestGenerations(t *testing.T) {
	first, _ := start(t)
	k := custodytest.Generate(t, first, claviger.ECDSAP256)
	second, _ := start(t, with(func(b *rootkey.Bundle) { *b = *bundle(2) }))
	mustSign(t, second, k)
	blob, generation, err := second.Rewrap(t.Context(), k.Binding, k.Blob)
	if err != nil || generation != 2 {
		t.Fatalf("rewrap: generation %d, %v", generation, err)
	}
	only, _ := start(t, with(func(b *rootkey.Bundle) { *b = *bundle(2); b.Generations = b.Generations[1:] }))
	if _, err := only.Sign(t.Context(), k.Material, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("a blob of a retired generation: %v", err)
	}
	k.Blob = blob
	mustSign(t, only, k)
	mac, err := custodytest.Import(t, only, claviger.HMACSHA256, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	again, err := custodytest.Import(t, first, claviger.HMACSHA256, make([]byte, 32))
	if err != nil || mac.Fingerprint != again.Fingerprint {
		t.Errorf("the fingerprint of a symmetric key changed with the root: %v", err)
	}
}

// holders makes three holders, the last with a post-quantum recipient.
func holders(t *testing.T) (ids []age.Identity, list []rootkey.Holder) {
	t.Helper()
	for _, name := range []string{"ann", "bob"} {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		ids, list = append(ids, id), append(list, rootkey.Holder{Name: name, Recipient: id.Recipient().String()})
	}
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return append(ids, id), append(list, rootkey.Holder{Name: "eve", Recipient: id.Recipient().String()})
}

func decrypt(t *testing.T, text []byte, id age.Identity) []byte {
	t.Helper()
	r, err := age.Decrypt(bytes.NewReader(text), id)
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sealed seals texts to a one-time key for shares.
func sealed(t *testing.T, c *custody.Client, texts ...[]byte) (string, [][]byte) {
	t.Helper()
	k, err := c.OneTimeKey(t.Context(), onetime.Share, frames.Binding{})
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, text := range texts {
		s, err := k.Seal(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return k.ID, out
}

func TestShares(t *testing.T) {
	ids, list := holders(t)
	held := func(b *rootkey.Bundle) { b.Holders, b.Threshold = list, 2 }
	c, _ := start(t, with(held))
	k := custodytest.Generate(t, c, claviger.ECDSAP256)
	got, err := c.Shares(t.Context())
	if err != nil || got.Threshold != 2 || len(got.Shares) != 3 {
		t.Fatalf("%d shares, threshold %d: %v", len(got.Shares), got.Threshold, err)
	}
	var share [][]byte
	for i, s := range got.Shares {
		if s.Holder != list[i].Name {
			t.Errorf("share %d is for %s", i, s.Holder)
		}
		share = append(share, decrypt(t, s.Encrypted, ids[i]))
		if secret := bundle(1).Generations[0].Key; bytes.Contains(share[i], secret[:]) {
			t.Error("a share contains the root key")
		}
	}
	other, err := c.Shares(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	otherSet := decrypt(t, other.Shares[0].Encrypted, ids[0])
	wrong := bytes.Clone(share[1])
	wrong[len("claviger share v1\x00")+17+32] ^= 1 // of the value
	for name, test := range map[string]struct {
		shares   [][]byte
		restores bool
		count    int
	}{
		"two": {share[:2], true, 2}, "other two": {share[1:], true, 2}, "all": {share, true, 3},
		"one": {share[:1], false, 1}, "one twice": {[][]byte{share[0], share[0]}, false, 1},
		"a wrong one": {[][]byte{share[0], wrong}, false, 2}, "a wrong one of three": {[][]byte{share[0], wrong, share[2]}, false, 3},
	} {
		id, texts := sealed(t, c, test.shares...)
		restores, count, threshold, err := c.VerifyShares(t.Context(), id, texts)
		if err != nil || restores != test.restores || count != test.count || threshold != 2 {
			t.Errorf("%s: restores %v, %d of %d (%v)", name, restores, count, threshold, err)
		}
		if _, _, _, err := c.VerifyShares(t.Context(), id, texts); claviger.CodeOf(err) != claviger.NotFound {
			t.Errorf("%s: the one-time key was used twice: %v", name, err)
		}
	}
	for name, texts := range map[string][][]byte{
		"of two sets": {share[0], otherSet}, "cut": {share[0][:80]}, "nothing": {nil}, "longer": {append(bytes.Clone(share[0]), 1), share[1]},
	} {
		id, s := sealed(t, c, texts...)
		if _, _, _, err := c.VerifyShares(t.Context(), id, s); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	rotated, _ := start(t, with(func(b *rootkey.Bundle) { *b = *bundle(2); held(b) }))
	id, texts := sealed(t, rotated, share...)
	if restores, _, _, err := rotated.VerifyShares(t.Context(), id, texts); err != nil || restores {
		t.Errorf("shares of before the rotation restore: %v, %v", restores, err)
	}
	restore(t, share, k)
}

// arrive plays claviger-unseal while a root arrives, and returns the bundle.
func arrive(t *testing.T, s *custodytest.Starter) <-chan *rootkey.Bundle {
	got := make(chan *rootkey.Bundle, 1)
	talk := s.Talk()
	go func() {
		m, err := rootkey.Receive(talk)
		if err != nil || m.Kind != rootkey.Deliver {
			t.Errorf("the root was not handed over: %q, %v", byte(m.Kind), err)
			close(got)
			return
		}
		if err := rootkey.Send(talk, rootkey.Message{Kind: rootkey.Done}); err != nil {
			t.Error(err)
		}
		got <- m.Bundle
	}()
	return got
}

func restore(t *testing.T, share [][]byte, k custodytest.Key) {
	t.Helper()
	c, s := start(t, without(rootkey.Restore, [32]byte{}))
	who, err := c.Identity(t.Context())
	if err != nil || !who.Joining {
		t.Fatalf("%+v, %v", who, err)
	}
	if s.Shown() != sha256.Sum256(who.Public) {
		t.Error("claviger-unseal was shown another identity than the server: a holder could not tell a server's own")
	}
	for name, f := range map[string]func() error{
		"sign":     func() error { _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); return err },
		"generate": func() error { _, err := c.Generate(t.Context(), k.Binding); return err },
		"shares":   func() error { _, err := c.Shares(t.Context()); return err },
		"admit":    func() error { _, err := c.Admit(t.Context(), []byte("x")); return err },
	} {
		if err := f(); claviger.CodeOf(err) != claviger.Unavailable {
			t.Errorf("%s without a root: %v", name, err)
		}
	}
	id, texts := sealed(t, c, share[0])
	if err := c.Restore(t.Context(), id, texts); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("restore from one share: %v", err)
	}
	got := arrive(t, s)
	id, texts = sealed(t, c, share[2], share[0])
	if err := c.Restore(t.Context(), id, texts); err != nil {
		t.Fatal(err)
	}
	if b := <-got; b == nil || b.Pin() != bundle(1).Pin() || b.Generations[0] != bundle(1).Generations[0] || b.Threshold != 2 {
		t.Error("another bundle was handed over")
	}
	mustSign(t, c, k)
	id, texts = sealed(t, c, share...)
	if err := c.Restore(t.Context(), id, texts); claviger.CodeOf(err) != claviger.Conflict {
		t.Errorf("restored twice: %v", err)
	}
	pinned, _ := start(t, without(rootkey.Restore, [32]byte{1}))
	id, texts = sealed(t, pinned, share...)
	if err := pinned.Restore(t.Context(), id, texts); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("restored another root than is pinned: %v", err)
	}
}

func TestSharesNeedHolders(t *testing.T) {
	c, _ := start(t)
	if _, err := c.Shares(t.Context()); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("%v", err)
	}
	bad, _ := start(t, with(func(b *rootkey.Bundle) {
		b.Holders = []rootkey.Holder{{Name: "a", Recipient: "age1" + strings.Repeat("q", 58)}, {Name: "b", Recipient: "age1xx"}}
		b.Threshold = 2
	}))
	if _, err := bad.Shares(t.Context()); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("recipients that are none: %v", err)
	}
}

func TestJoin(t *testing.T) {
	pin := bundle(1).Pin()
	newcomer, s := start(t, without(rootkey.Join, pin))
	key, err := newcomer.JoinKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Shown() != sha256.Sum256(key) {
		t.Error("claviger-unseal was shown another join key than the server: a person could not tell a server's own")
	}
	again, err := newcomer.JoinKey(t.Context())
	if err != nil || !bytes.Equal(key, again) {
		t.Errorf("another join key when asked again: %v", err)
	}
	closed, _ := start(t)
	if _, err := closed.Admit(t.Context(), key); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("a join key that nobody admitted: %v", err)
	}
	if _, err := closed.JoinKey(t.Context()); claviger.CodeOf(err) != claviger.Conflict {
		t.Errorf("a join key of a process with a root: %v", err)
	}
	old, _ := start(t, with(func(b *rootkey.Bundle) { b.Joiners = [][32]byte{sha256.Sum256(key)} }))
	k := custodytest.Generate(t, old, claviger.Ed25519)
	wrapped, err := old.Admit(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	who, err := old.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := newcomer.Join(t.Context(), wrapped, bytes.Repeat([]byte{1}, 32)); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("another identity than expected: %v", err)
	}
	damaged := slices.Clone(wrapped)
	damaged[len(damaged)-1] ^= 1
	if err := newcomer.Join(t.Context(), damaged, who.Public); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("damaged: %v", err)
	}
	got := arrive(t, s)
	if err := newcomer.Join(t.Context(), wrapped, who.Public); err != nil {
		t.Fatal(err)
	}
	if b := <-got; b == nil || b.Pin() != pin {
		t.Error("another bundle was handed over")
	}
	mustSign(t, newcomer, k)
	if err := newcomer.Join(t.Context(), wrapped, who.Public); claviger.CodeOf(err) != claviger.Conflict {
		t.Errorf("joined twice: %v", err)
	}
	// A root of another identity than claviger-unseal pinned is refused,
	// whatever the server says.
	pinned, _ := start(t, without(rootkey.Join, [32]byte{1}))
	key, err = pinned.JoinKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old, _ = start(t, with(func(b *rootkey.Bundle) { b.Joiners = [][32]byte{sha256.Sum256(key)} }))
	if wrapped, err = old.Admit(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if err := pinned.Join(t.Context(), wrapped, who.Public); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("a root of another identity than is pinned: %v", err)
	}
}
