package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
	"claviger.dev/internal/tpm"
	"claviger.dev/internal/tpm/tpmtest"
)

// bus is a wire to a TPM that can be listened to and cut.
type bus struct {
	device string
	seen   atomic.Value // func(command []byte) (response []byte, cut bool)
	flip   atomic.Value // func(command, response []byte), which may change the response
	text   []byte       // everything that went over it, when the test is over
}

func wire(t *testing.T, s *tpmtest.TPM) *bus {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b := &bus{device: "unix:" + path}
	b.on(func([]byte) ([]byte, bool) { return nil, false })
	b.change(0, 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.relay(conn, s.Socket)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return b
}

// on sets what becomes of a command: an answer of the test's own, nothing (it
// goes to the TPM), or a cut wire.
func (b *bus) on(f func(command []byte) ([]byte, bool)) { b.seen.Store(f) }

// change flips a bit of the responses to a command, at a place from their start
// or, when negative, from their end.
func (b *bus) change(to tpm2.TPMCC, at int) {
	b.flip.Store(func(command, response []byte) {
		if code(command) != to {
			return
		}
		at := at
		if at < 0 {
			at += len(response)
		}
		response[at] ^= 1
	})
}

func (b *bus) relay(conn net.Conn, socket string) {
	there, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer there.Close()
	for {
		command, err := message(conn)
		if err != nil {
			return
		}
		b.text = append(b.text, command...)
		answer, cut := b.seen.Load().(func([]byte) ([]byte, bool))(command)
		if cut {
			return
		}
		if answer == nil {
			if _, err := there.Write(command); err != nil {
				return
			}
			if answer, err = message(there); err != nil {
				return
			}
		}
		b.flip.Load().(func(_, _ []byte))(command, answer)
		b.text = append(b.text, answer...)
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// message reads a command or a response.
func message(r io.Reader) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < 10 || size > 1<<16 {
		return nil, errors.New("impossible size")
	}
	rest := make([]byte, size-10)
	_, err := io.ReadFull(r, rest)
	return append(head, rest...), err
}

func code(command []byte) tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) }

func answer(rc tpm2.TPMRC) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, uint32(rc))
}

func over(t *testing.T, b *bus) *tpm.Device {
	t.Helper()
	d, err := tpm.Open(b.device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func digests(n int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = bytes.Repeat([]byte{byte(i)}, 32)
	}
	return all
}

// TestUnplugged takes the TPM away in the middle of a batch and brings it back.
func TestUnplugged(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	b := wire(t, s)
	d := over(t, b)
	k := create(t, d, claviger.ECDSAP256)
	signed := 0
	b.on(func(command []byte) ([]byte, bool) {
		if code(command) == tpm2.TPMCCSign {
			if signed++; signed == 20 {
				s.Kill()
			}
		}
		return nil, false
	})
	sigs, err := d.Sign(k, digests(50))
	if claviger.CodeOf(err) != claviger.Unavailable || sigs != nil {
		t.Errorf("%d signatures, %v", len(sigs), err)
	}
	var known *claviger.Error
	if !errors.As(err, &known) || known.Hint == "" {
		t.Errorf("no hint: %v", err)
	}
	if _, err := d.Sign(k, digests(1)); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("without a TPM: %v", err)
	}
	s.Restart(t)
	if sigs, err := d.Sign(k, digests(50)); err != nil || len(sigs) != 50 {
		t.Errorf("after it came back: %d signatures, %v", len(sigs), err)
	}
}

// TestReset resets the TPM behind a connection that stays open, as a resource
// manager keeps it: what was loaded is gone.
func TestReset(t *testing.T) {
	t.Parallel()
	b := wire(t, tpmtest.Start(t))
	d := over(t, b)
	k := create(t, d, claviger.ECDSAP256)
	once := true
	b.on(func(command []byte) ([]byte, bool) {
		if code(command) == tpm2.TPMCCSign && once {
			once = false
			return answer(tpm2.TPMRCReferenceH0), false
		}
		return nil, false
	})
	if _, err := d.Sign(k, digests(3)); err != nil || once {
		t.Errorf("after a reset: %v", err)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"unix:/nonexistent/socket", "/dev/nonexistent", "/dev/../etc/passwd"} {
		d, err := tpm.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Info(); claviger.CodeOf(err) != claviger.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "tpm0", "unix:", "unix:s", "tcp:localhost:2321"} {
		if _, err := tpm.Open(name); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestRefusals counts how often a command is sent that the TPM refuses.
func TestRefusals(t *testing.T) {
	t.Parallel()
	b := wire(t, tpmtest.Start(t))
	d := over(t, b)
	k := create(t, d, claviger.ECDSAP256)
	for name, test := range map[string]struct {
		rc   tpm2.TPMRC
		want claviger.Code
		sent int
	}{
		"lockout":   {tpm2.TPMRCLockout, claviger.Unavailable, 1},
		"auth fail": {tpm2.TPMRCAuthFail, claviger.Invalid, 1},
		"bad auth":  {tpm2.TPMRCBadAuth, claviger.Invalid, 1},
		"retry":     {tpm2.TPMRCRetry, claviger.Unavailable, 6},
		"yielded":   {tpm2.TPMRCYielded, claviger.Unavailable, 6},
		"failure":   {tpm2.TPMRCFailure, claviger.Unavailable, 1},
		"unknown":   {tpm2.TPMRCSensitive, claviger.Internal, 1},
	} {
		sent := 0
		b.on(func(command []byte) ([]byte, bool) {
			if code(command) != tpm2.TPMCCSign {
				return nil, false
			}
			sent++
			return answer(test.rc), false
		})
		_, err := d.Sign(k, digests(3))
		if claviger.CodeOf(err) != test.want || sent != test.sent {
			t.Errorf("%s: sent %d times, want %d; %v", name, sent, test.sent, err)
		}
	}
	busy := 3
	b.on(func(command []byte) ([]byte, bool) {
		if busy--; busy >= 0 {
			return answer(tpm2.TPMRCRetry), false
		}
		return nil, false
	})
	if _, err := d.Sign(k, digests(3)); err != nil {
		t.Errorf("after it was busy for a while: %v", err)
	}
}

// TestGarbage answers what no TPM answers.
func TestGarbage(t *testing.T) {
	t.Parallel()
	b := wire(t, tpmtest.Start(t))
	d := over(t, b)
	k := create(t, d, claviger.ECDSAP256)
	for name, text := range map[string][]byte{
		"huge":       {0x80, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0},
		"tiny":       {0x80, 1, 0, 0, 0, 3, 0, 0, 0, 0},
		"more":       append([]byte{0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0}, 1, 2, 3),
		"no session": answer(tpm2.TPMRCSuccess),
	} {
		b.on(func(command []byte) ([]byte, bool) {
			if code(command) == tpm2.TPMCCSign {
				return text, false
			}
			return nil, false
		})
		if sigs, err := d.Sign(k, digests(2)); err == nil || sigs != nil {
			t.Errorf("%s: %d signatures", name, len(sigs))
		}
	}
	b.on(func([]byte) ([]byte, bool) { return nil, false })
	if _, err := d.Sign(k, digests(2)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestForged changes bytes of a response on the wire: the session sees it, and
// nothing is released.
func TestForged(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	b := wire(t, s)
	d := over(t, b)
	sign, mac := create(t, d, claviger.ECDSAP256), create(t, d, claviger.HMACSHA256)
	use := func() (n int, err error) {
		sigs, err := d.Sign(sign, digests(1))
		if err != nil {
			return len(sigs), err
		}
		macs, err := d.MAC(mac, digests(1))
		return len(macs), err
	}
	for _, code := range []tpm2.TPMCC{tpm2.TPMCCSign, tpm2.TPMCCHMAC} {
		// In the tag, the size of the parameters, those, the last byte of the session's code.
		for _, at := range []int{1, 13, 14, 24, -1} {
			b.change(code, at)
			if n, err := use(); claviger.CodeOf(err) != claviger.Unavailable || n != 0 {
				t.Errorf("%#x, byte %d: %d results, %v", code, at, n, err)
			}
			b.change(0, 0)
			if _, err := use(); err != nil {
				t.Errorf("%#x, byte %d, afterwards: %v", code, at, err)
			}
		}
	}
}

// TestBus listens to the wire: no secret and no authorisation is on it.
func TestBus(t *testing.T) {
	t.Parallel()
	b := wire(t, tpmtest.Start(t))
	d := over(t, b)
	auth := [32]byte(bytes.Repeat([]byte("authorisation!!!"), 2))
	k, err := d.Create(claviger.HMACSHA256, auth)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.MAC(k, [][]byte{[]byte("input"), bytes.Repeat([]byte("long input "), 200)}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Attest(k, auth[:]); err != nil { // the nonce is no secret, and shows that the test can hear
		t.Fatal(err)
	}
	for _, pcrs := range [][]uint{nil, {7}} {
		secret := bytes.Repeat([]byte("a sealed secret!"), 2)
		blob, err := d.Seal(secret, pcrs)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.Unseal(blob)
		if err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("%x, %v", got, err)
		}
		if bytes.Contains(b.text, secret[:16]) {
			t.Errorf("registers %v: the sealed secret was on the wire", pcrs)
		}
	}
	if n := bytes.Count(b.text, auth[:]); n != 2 { // the nonce, there and in what was signed
		t.Errorf("the authorisation was on the wire %d times", n-2)
	}
}

// TestShared uses one software TPM, which serves one connection at a time,
// from two processes' worth of devices.
func TestShared(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	one, two := open(t, s), open(t, s)
	a, b := create(t, one, claviger.ECDSAP256), create(t, two, claviger.ECDSAP256)
	done := make(chan error)
	go func() {
		for range 5 {
			if _, err := one.Sign(a, digests(20)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 5 {
		if _, err := two.Sign(b, digests(20)); err != nil {
			t.Error(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestOverwritten replaces a key in its slot behind the library's back.
func TestOverwritten(t *testing.T) {
	t.Parallel()
	d := open(t, tpmtest.Start(t))
	k, other := create(t, d, claviger.ECDSAP256), create(t, d, claviger.ECDSAP256)
	if err := d.Overwrite(k, other); err != nil {
		t.Fatal(err)
	}
	if sigs, err := d.Sign(k, digests(5)); err == nil || sigs != nil {
		t.Errorf("%d signatures by a key in another's slot", len(sigs))
	}
	if err := d.Relabel(other, k); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 5} {
		if sigs, err := d.Sign(k, digests(n)); claviger.CodeOf(err) != claviger.Internal || sigs != nil {
			t.Errorf("%d signatures of another key: %v", len(sigs), err)
		}
	}
}
