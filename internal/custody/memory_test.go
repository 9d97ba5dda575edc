package custody_test

import (
	"bufio"
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/rootkey"
)

// uses is how often each key is used before its copies are counted.
const uses = 5000

// needles are the forms in which a key may lie in memory.
func needles(t *testing.T, a claviger.Algorithm, material []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	both := func(name string, b []byte) {
		reversed := bytes.Clone(b)
		slices.Reverse(reversed)
		out[name], out[name+", reversed"] = b, reversed
	}
	if _, ok := a.RSA(); ok {
		k, err := x509.ParsePKCS1PrivateKey(material)
		if err != nil {
			t.Fatal(err)
		}
		for name, n := range map[string]*big.Int{"p": k.Primes[0], "q": k.Primes[1], "d": k.D, "dP": k.Precomputed.Dp, "dQ": k.Precomputed.Dq} {
			both(name, n.Bytes())
		}
		return out
	}
	both("material", material)
	if a == claviger.Ed25519 {
		h := sha512.Sum512(material)
		both("prefix", h[32:])
		h[0] &= 248
		h[31] = h[31]&127 | 64
		both("scalar", bytes.Clone(h[:32]))
		slices.Reverse(h[:32])
		order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
		both("reduced scalar", new(big.Int).Mod(new(big.Int).SetBytes(h[:32]), order).FillBytes(make([]byte, 32)))
	}
	return out
}

// copies counts needles in the readable memory of a process, and returns how
// many bytes were read and how many mappings refused to be.
func copies(t *testing.T, pid int, needles map[string][]byte) (found map[string]int, scanned int64, refused []string) {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	found = map[string]int{}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil {
			t.Fatal(err)
		}
		if rights[0] != 'r' || strings.Contains(lines.Text(), "[v") { // vdso and the like are the kernel's
			continue
		}
		region := make([]byte, to-from)
		n, err := io.ReadFull(io.NewSectionReader(mem, int64(from), int64(to-from)), region)
		if err != nil {
			refused = append(refused, lines.Text())
		}
		scanned += int64(n)
		for name, needle := range needles {
			found[name] += bytes.Count(region[:n], needle)
		}
	}
	return found, scanned, refused
}

// TestNoCopiesInMemory uses keys that it knows and, after a second of rest,
// looks for them in the memory of the key process, as root can. The control is
// the same program built without runtime/secret: there it must find them.
func TestNoCopiesInMemory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root can read another process's memory: nothing is tested")
		return
	}
	materials := map[claviger.Algorithm][]byte{}
	for _, a := range custodytest.Algorithms() {
		materials[a] = custodytest.Material(t, a)
	}
	for _, control := range []bool{false, true} {
		t.Run(map[bool]string{false: "shipped", true: "control"}[control], func(t *testing.T) {
			s := &custodytest.Starter{Path: shipped, Message: rootkey.Message{Kind: rootkey.Deliver, Bundle: bundle(1)}}
			if control {
				s.Path, s.Args = leaky, []string{"-relax", "secret erasure"}
			}
			defer s.Close()
			c := custody.New(custody.Config{Source: s, Timeout: time.Minute}) // all keys at once on a busy machine
			defer c.Close()
			all := map[string][]byte{}
			var group sync.WaitGroup
			for a, material := range materials {
				k, err := custodytest.Import(t, c, a, material)
				if err != nil {
					t.Fatal(err)
				}
				for name, n := range needles(t, a, material) {
					all[string(a)+": "+name] = n
				}
				group.Go(func() { useOften(t, c, k, control) })
			}
			group.Wait()
			<-time.After(time.Second) // the second of rest that is promised
			found, scanned, refused := copies(t, s.PID(), all)
			total := 0
			for name, n := range found {
				total += n
				if n > 0 && !control {
					t.Errorf("%d copies of %s", n, name)
				}
			}
			t.Logf("%d copies in %d KiB; not readable: %q", total, scanned>>10, refused)
			if control && total == 0 {
				t.Error("the control has no copies: the search does not see them")
			}
			if scanned < 1<<20 || len(refused) != 1 || !strings.Contains(refused[0], "secretmem") {
				t.Errorf("read %d bytes; refused: %q, want the secret pages alone", scanned, refused)
			}
		})
	}
}

// useOften uses a key one input at a time and in batches. The control, and RSA
// beyond one kind of 2048 bits, are used less: they show it sooner, or take
// long.
func useOften(t *testing.T, c *custody.Client, k custodytest.Key, control bool) {
	n := uses
	if _, ok := k.Binding.Algorithm.RSA(); control || ok && k.Binding.Algorithm != "rsa-2048-pss-sha256" {
		n /= 20
	}
	for i := 0; i < n; {
		in := inputs(1)
		if i%10 == 0 {
			in = inputs(20)
		}
		i += len(in)
		var err error
		switch k.Binding.Algorithm.Protects() {
		case claviger.Sign:
			_, err = c.Sign(t.Context(), k.Material, in, false)
		case claviger.MAC:
			_, err = c.MAC(t.Context(), k.Material, in)
		default:
			_, err = c.Seal(t.Context(), k.Material, make([]custody.Plain, len(in)))
		}
		if err != nil {
			t.Errorf("%s: %v", k.Binding.Algorithm, err)
			return
		}
	}
}
