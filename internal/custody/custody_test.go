package custody_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"testing"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/rootkey"
)

// paths of the key process, as it ships and without erasure.
var shipped, leaky string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "custody")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if shipped, err = custodytest.Build(dir, true); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if leaky, err = custodytest.Build(dir, false); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// bundle is a root bundle of so many generations.
func bundle(generations int) *rootkey.Bundle {
	b := &rootkey.Bundle{Identity: [32]byte(bytes.Repeat([]byte{9}, 32))}
	for i := range generations {
		b.Generations = append(b.Generations, rootkey.Generation{Number: uint32(i + 1), Key: [32]byte(bytes.Repeat([]byte{byte(i + 1)}, 32))})
	}
	return b
}

// start returns a client of a real key process with all hardening on.
func start(t testing.TB, change ...func(*custodytest.Starter)) (*custody.Client, *custodytest.Starter) {
	t.Helper()
	s := &custodytest.Starter{Path: shipped, Message: rootkey.Message{Kind: rootkey.Deliver, Bundle: bundle(1)}}
	for _, f := range change {
		f(s)
	}
	c := custody.New(custody.Config{Source: s})
	t.Cleanup(s.Close)
	t.Cleanup(c.Close)
	return c, s
}

func TestKeyProcess(t *testing.T) {
	custodytest.Run(t, func(t *testing.T) *custody.Client {
		c, _ := start(t)
		return c
	})
}

func TestIdentity(t *testing.T) {
	c, _ := start(t)
	who, err := c.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32))[32:]
	if !bytes.Equal(who.Public, want) || who.Generation != 1 || who.Joining {
		t.Errorf("%+v", who)
	}
}

func TestEvidence(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: the process shares the uid of the test")
	}
	c, s := start(t, func(s *custodytest.Starter) {
		if os.Getuid() == 0 {
			s.UID, s.Args = 61234, []string{"-others", "0,61235"}
		}
	})
	e, err := c.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e.PID != s.PID() {
		t.Errorf("pid %d, want %d", e.PID, s.PID())
	}
	on := map[string]bool{}
	for _, m := range e.Measures {
		on[m.Name] = m.State == "on"
		t.Logf("%-18s %-12s %s", m.Name, m.State, m.Detail)
	}
	for _, name := range []string{"not dumpable", "no core", "secret pages", "secret erasure", "no new privileges", "seccomp"} {
		if !on[name] {
			t.Errorf("%s is not on", name)
		}
	}
	made, err := c.Generate(t.Context(), custodytest.Binding(claviger.Ed25519, claviger.Generated))
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]claviger.Level{true: claviger.Isolated, false: claviger.Exposed}[on["own uid"]]; e.Level != want || made.Level != want {
		t.Errorf("level %s, of a key %s; want %s", e.Level, made.Level, want)
	}
	if os.Getuid() == 0 && !on["own uid"] {
		t.Error("own uid is not on")
	}
}
