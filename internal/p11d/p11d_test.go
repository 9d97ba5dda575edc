//go:build cgo

package p11d_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/p11d/p11dtest"
)

// program is claviger-p11d, module what misbehaves when told.
var program, module string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "p11d")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if program, err = p11dtest.Build(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if module, err = buildModule(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// start returns a client of a real device process on a fresh token.
func start(t testing.TB) (*custody.Client, *p11dtest.Token) {
	t.Helper()
	k := p11dtest.NewToken(t)
	c, _ := p11dtest.Client(t, program, k.Args("")...)
	return c, k
}

func generate(t testing.TB, c *custody.Client, a claviger.Algorithm) (custody.Material, custody.Made) {
	t.Helper()
	b := custodytest.Binding(a, claviger.Generated)
	made, err := c.Generate(t.Context(), b)
	if err != nil {
		t.Fatalf("generate %s: %v", a, err)
	}
	return custody.Material{Binding: b, Blob: made.Blob, Fingerprint: made.Fingerprint}, made
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	c, _ := start(t)
	about, err := c.Device(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !about.Software || about.Kind != claviger.P11 || about.Manufacturer != "SoftHSM project" || len(about.Algorithms) != 7+18 {
		t.Errorf("%+v", about)
	}
	for _, a := range about.Algorithms {
		if p, ok := a.RSA(); ok && (p.Bits != 2048 && a != "rsa-3072-pss-sha384") {
			continue // making them is slow
		}
		m, made := generate(t, c, a)
		if made.Level != claviger.Isolated || made.Generation != frames.DeviceGeneration || made.Reference == "" {
			t.Errorf("%s: %+v", a, made)
		}
		messages := [][]byte{nil, []byte("one"), bytes.Repeat([]byte("x"), 5000)}
		switch a.Protects() {
		case claviger.Sign:
			sigs, err := c.Sign(t.Context(), m, messages, false)
			if err != nil {
				t.Errorf("%s: %v", a, err)
				continue
			}
			for i := range sigs {
				if !custodytest.Verify(a, made.Public, messages[i], sigs[i]) {
					t.Errorf("%s: signature %d does not verify", a, i)
				}
			}
		case claviger.MAC:
			macs, err := c.MAC(t.Context(), m, messages)
			if err != nil {
				t.Errorf("%s: %v", a, err)
				continue
			}
			macs[1] = bytes.Clone(macs[1])
			macs[1][0] ^= 1
			ok, err := c.VerifyMAC(t.Context(), m, messages, macs)
			if err != nil || !ok[0] || ok[1] || !ok[2] {
				t.Errorf("%s: %v, %v", a, ok, err)
			}
		default:
			testSeal(t, c, m)
		}
	}
}

func testSeal(t *testing.T, c *custody.Client, m custody.Material) {
	t.Helper()
	items := []custody.Plain{{}, {Plaintext: []byte("text"), AssociatedData: []byte("for")}, {Plaintext: bytes.Repeat([]byte("z"), frames.MaxInput)}}
	sealed, err := c.Seal(t.Context(), m, items)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(sealed[1])
	flipped[20] ^= 1
	opened, err := c.Open(t.Context(), m, []custody.Sealed{
		{Sealed: sealed[0]}, {Sealed: flipped, AssociatedData: []byte("for")}, {Sealed: sealed[1], AssociatedData: []byte("for")},
		{Sealed: sealed[1]}, {Sealed: sealed[2]}, {Sealed: sealed[0][:27]},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true, false, true, false} {
		if opened[i].OK != want {
			t.Errorf("item %d opened: %v", i, opened[i].OK)
		}
	}
	if string(opened[2].Plaintext) != "text" || !bytes.Equal(opened[4].Plaintext, items[2].Plaintext) {
		t.Error("other texts came out")
	}
}
