package keyd

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/rootkey"
)

// rootedProcess returns a process with a root of one generation.
func rootedProcess(t testing.TB) *Process {
	t.Helper()
	p := process(t)
	b := &rootkey.Bundle{Identity: [32]byte{1}, Generations: []rootkey.Generation{{Number: 1, Key: [32]byte{2}}}}
	if err := p.install(b); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPanicZeroes(t *testing.T) {
	t.Parallel()
	p := process(t)
	var seen []byte
	secret, err := p.arena.New(hazmat.Token{}, 32, func(b []byte) error {
		copy(b, bytes.Repeat([]byte{0xaa}, 32))
		seen = b
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(seen, bytes.Repeat([]byte{0xaa}, 32)) {
		t.Fatal("the control does not see the secret")
	}
	status := make(chan int, 1)
	p.exit = func(n int) { status <- n }
	func() {
		defer p.guard()
		_ = secret.Use(hazmat.Token{}, func(b []byte) error { panic(string(b)) })
	}()
	if got := <-status; got == 0 {
		t.Error("exit status 0 after a panic")
	}
	if !bytes.Equal(seen, make([]byte, 32)) {
		t.Error("the arena is not zero after a panic")
	}
	if err := secret.Use(hazmat.Token{}, func([]byte) error { return nil }); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("use after a panic: %v", err)
	}
}

func TestPanicWhileServing(t *testing.T) {
	t.Parallel()
	p := rootedProcess(t)
	p.slots.table = nil // the next load writes to a nil map
	status := make(chan int, 4)
	forever := make(chan struct{})
	p.exit = func(n int) { status <- n; <-forever }
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() { _ = p.Serve(theirs) }()
	use := frames.Binding{KeyID: claviger.NewID(time.Now()), Version: 1, Algorithm: claviger.Ed25519, Recipe: claviger.PlainRecipe, Origin: claviger.Generated}
	made, err := p.generate(&frames.GenerateRequest{Binding: use})
	if err != nil {
		t.Fatal(err)
	}
	wire, err := frames.AppendRequest(nil, 1, &frames.LoadRequest{Binding: use, Blob: made.Blob})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write(wire); err != nil {
		t.Fatal(err)
	}
	if got := <-status; got == 0 {
		t.Error("exit status 0 after a panic")
	}
	if _, err := p.arena.New(hazmat.Token{}, 1, func([]byte) error { return nil }); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("the arena still serves: %v", err)
	}
}

func TestServeEndsWithItsPeer(t *testing.T) {
	t.Parallel()
	p := rootedProcess(t)
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- p.Serve(theirs) }()
	ours.Close()
	if err := <-done; err != nil {
		t.Errorf("the end of the peer: %v", err)
	}
	ours, theirs = net.Pipe()
	go func() { done <- p.Serve(theirs) }()
	if _, err := ours.Write([]byte{0, 0, 0, 12, 1}); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the end of the peer within a frame: %v", err)
	}
}

func TestOneTimeKeysExpire(t *testing.T) {
	t.Parallel()
	p := rootedProcess(t)
	now := time.Now()
	p.now = func() time.Time { return now }
	ask := &frames.OneTimeKeyRequest{Purpose: onetime.Share}
	resp, err := p.oneTimeKey(ask)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(onetime.ShareLifetime + time.Second)
	if _, err := p.take(resp.ID, onetime.Share); claviger.CodeOf(err) != claviger.NotFound {
		t.Errorf("after its time: %v", err)
	}
	for range maxOnetime {
		if _, err := p.oneTimeKey(ask); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.oneTimeKey(ask); claviger.CodeOf(err) != claviger.Exhausted {
		t.Errorf("one too many: %v", err)
	}
	_, used := p.arena.Size()
	now = now.Add(onetime.ShareLifetime + time.Second)
	if _, err := p.oneTimeKey(ask); err != nil {
		t.Errorf("after the others have expired: %v", err)
	}
	if _, now := p.arena.Size(); now >= used {
		t.Errorf("%d bytes in use, %d before: private halves are kept", now, used)
	}
}

// A server that makes and spends one-time keys for ever must not fill memory.
func TestSpentOneTimeKeyLeavesNothing(t *testing.T) {
	t.Parallel()
	p := rootedProcess(t)
	made, err := p.oneTimeKey(&frames.OneTimeKeyRequest{Purpose: onetime.Share})
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.take(made.ID, onetime.Share)
	if err != nil {
		t.Fatal(err)
	}
	if k.expiry.Stop() {
		t.Error("its timer was still running")
	}
}

// Material that is given up between the look-up of a slot and its use is
// loaded again: the caller does not see it.
func TestSlotGivenUpInBetween(t *testing.T) {
	t.Parallel()
	p := rootedProcess(t)
	b := frames.Binding{KeyID: claviger.NewID(time.Now()), Version: 1, Algorithm: claviger.Ed25519, Recipe: claviger.PlainRecipe, Origin: claviger.Generated}
	made, err := p.generate(&frames.GenerateRequest{Binding: b})
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := p.load(&frames.LoadRequest{Binding: b, Blob: made.Blob})
	if err != nil {
		t.Fatal(err)
	}
	p.slots.table[loaded.Slot.Number].secret.Release()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() { _ = p.Serve(theirs) }()
	wire, err := frames.AppendRequest(nil, 1, &frames.SignRequest{Use: frames.Use{Slot: loaded.Slot, Fingerprint: made.Fingerprint}, Inputs: [][]byte{{1}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write(wire); err != nil {
		t.Fatal(err)
	}
	f, err := frames.Read(bufio.NewReader(ours))
	if err != nil || f.Status != frames.NotLoaded {
		t.Errorf("status %d, %v; want that it is not loaded", f.Status, err)
	}
}

func TestUnsealRefuses(t *testing.T) {
	t.Parallel()
	for name, wire := range map[string]string{"nothing": "", "done": "\x00\x00\x00\x01E", "garbage": "GET / HTTP/1.1"} {
		p := process(t)
		if err := p.Unseal(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader([]byte(wire)), io.Discard}); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := p.rooted(); err == nil {
			t.Errorf("%s: it has a root", name)
		}
	}
}

func TestRaw(t *testing.T) {
	t.Parallel()
	p := process(t)
	for _, a := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.HMACSHA384, claviger.AES256GCM, "rsa-2048-pss-sha512"} {
		r, err := NewRaw(p.arena, a)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Do([][]byte{nil, []byte("x")}); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		plain, err := r.Unprotected()
		if err != nil {
			t.Fatal(err)
		}
		if err := plain([]byte("x")); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}
