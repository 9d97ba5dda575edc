package custody_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/rootkey"
)

// wire speaks frames to a real key process by hand.
func wire(t *testing.T) (ask func(frames.Request) (frames.Response, error), conn net.Conn) {
	t.Helper()
	s := &custodytest.Starter{Path: shipped, Message: rootkey.Message{Kind: rootkey.Deliver, Bundle: bundle(1)}}
	conn, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return func(r frames.Request) (frames.Response, error) {
		t.Helper()
		b, err := frames.AppendRequest(nil, 1, r)
		if err != nil {
			t.Fatal(err)
		}
		return talk(t, conn, b)
	}, conn
}

func talk(t *testing.T, conn net.Conn, b []byte) (frames.Response, error) {
	t.Helper()
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	f, err := frames.Read(bufio.NewReader(conn))
	if err != nil {
		t.Fatal(err)
	}
	return frames.ParseResponse(f)
}

func TestSlots(t *testing.T) {
	ask, _ := wire(t)
	b := custodytest.Binding(claviger.Ed25519, claviger.Generated)
	resp, err := ask(&frames.GenerateRequest{Binding: b})
	if err != nil {
		t.Fatal(err)
	}
	made := resp.(*frames.GenerateResponse).Made
	resp, err = ask(&frames.LoadRequest{Binding: b, Blob: made.Blob})
	if err != nil {
		t.Fatal(err)
	}
	slot := resp.(*frames.LoadResponse).Slot
	sign := func(change func(*frames.Use)) error {
		use := frames.Use{Slot: slot, Fingerprint: made.Fingerprint}
		change(&use)
		_, err := ask(&frames.SignRequest{Use: use, Inputs: [][]byte{nil}})
		return err
	}
	if err := sign(func(*frames.Use) {}); err != nil {
		t.Errorf("the right slot: %v", err)
	}
	if err := sign(func(u *frames.Use) { u.Slot.Epoch++ }); !errors.Is(err, frames.ErrNotLoaded) {
		t.Errorf("slot of another process: %v", err)
	}
	if err := sign(func(u *frames.Use) { u.Slot.Number++ }); !errors.Is(err, frames.ErrNotLoaded) {
		t.Errorf("another slot: %v", err)
	}
	if err := sign(func(u *frames.Use) { u.Fingerprint[31] ^= 1 }); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("another fingerprint: %v", err)
	}
	stale := slot
	stale.Epoch++
	for _, s := range []frames.Slot{stale, slot, slot} {
		if _, err := ask(&frames.UnloadRequest{Slot: s}); err != nil {
			t.Error(err)
		}
	}
	if err := sign(func(*frames.Use) {}); !errors.Is(err, frames.ErrNotLoaded) {
		t.Errorf("an unloaded slot: %v", err)
	}
}

func TestUnknownAndMalformedRequests(t *testing.T) {
	ask, conn := wire(t)
	if _, err := talk(t, conn, []byte{0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 9, 200, 0}); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("unknown verb: %v", err)
	}
	if _, err := talk(t, conn, []byte{0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 9, byte(frames.VerbIdentity), 0, 7}); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("body left over: %v", err)
	}
	if _, err := ask(&frames.IdentityRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := conn.Write([]byte{0xff, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := frames.Read(bufio.NewReader(conn)); !errors.Is(err, io.EOF) {
		t.Errorf("an oversized frame does not end the process: %v", err)
	}
}
