package custody_test

import (
	"bytes"
	"crypto/rand"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/rootkey"
)

// recipes has one of each way of deriving and of each cipher.
func recipes() map[recipe.Set]recipe.Recipe {
	concat := recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: recipe.SHA256, MAC: recipe.SHA256, Salt: "s"}
	label := concat
	label.Derivation = recipe.Label
	return map[recipe.Set]recipe.Recipe{
		recipe.Django: concat, recipe.Flask: label, recipe.Rails: custodytest.RailsCookie(), recipe.JWT: {Scheme: recipe.Tag, MAC: recipe.SHA512},
		recipe.Laravel: {Scheme: recipe.LaravelCBC, Salt: "name"}, recipe.Iron: {Scheme: recipe.IronSeal}, recipe.AuthJS: {Scheme: recipe.JWECBC, Derivation: recipe.HKDF},
		recipe.Plug:           {Scheme: recipe.PlugXChaCha, Derivation: recipe.PBKDF2, Hash: recipe.SHA256, Salt: "s", Iterations: 1000, Size: 32},
		recipe.ASPNET:         {Scheme: recipe.MachineKey, Derivation: recipe.Counter, MAC: recipe.SHA256, Salt: "User.MachineKey.Protect"},
		recipe.DataProtection: {Scheme: recipe.RingGCM, Derivation: recipe.Counter, Size: 32},
	}
}

// TestNoCopiesOfMachineKeys is TestNoCopiesInMemory for machine keys and for
// the keys that are derived from them.
func TestNoCopiesOfMachineKeys(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root can read another process's memory: nothing is tested")
		return
	}
	for _, control := range []bool{false, true} {
		t.Run(map[bool]string{false: "shipped", true: "control"}[control], func(t *testing.T) {
			s := &custodytest.Starter{Path: shipped, Message: rootkey.Message{Kind: rootkey.Deliver, Bundle: bundle(1)}}
			if control {
				s.Path, s.Args = leaky, []string{"-relax", "secret erasure"}
			}
			defer s.Close()
			c := custody.New(custody.Config{Source: s, Timeout: time.Minute})
			defer c.Close()
			all := map[string][]byte{}
			var group sync.WaitGroup
			for set, r := range recipes() {
				material, err := set.Fresh(rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				derived, err := r.Key(material)
				if err != nil {
					t.Fatal(err)
				}
				for i, part := range append(set.Parts(material), set.Parts(derived)...) {
					all[string(set)+": "+[]string{"secret", "second", "third", "fourth"}[i]] = bytes.Clone(part[:32])
				}
				k, err := custodytest.MachineKey(t, c, set, material)
				if err != nil {
					t.Fatal(err)
				}
				group.Go(func() { runOften(t, c, k, r) })
			}
			group.Wait()
			<-time.After(time.Second) // the second of rest that is promised
			found, scanned, refused := copies(t, s.PID(), all)
			total := 0
			for name, n := range found {
				if total += n; n > 0 && !control {
					t.Errorf("%d copies of %s", n, name)
				}
			}
			t.Logf("%d copies of %d keys in %d KiB", total, len(all), scanned>>10)
			if control && total == 0 {
				t.Error("the control has no copies: the search does not see them")
			}
			if scanned < 1<<20 || len(refused) != 1 || !strings.Contains(refused[0], "secretmem") {
				t.Errorf("read %d bytes; refused: %q, want the secret pages alone", scanned, refused)
			}
		})
	}
}

// runOften makes and checks with a recipe.
func runOften(t *testing.T, c *custody.Client, k custodytest.Key, r recipe.Recipe) {
	item := recipe.Item{Data: []byte("message")}
	if r.Scheme == recipe.IronSeal {
		item.Aside = []byte("*")
	}
	for range 300 {
		made, err := c.Recipe(t.Context(), k.Material, r, true, []recipe.Item{item})
		if err != nil || !made[0].OK {
			t.Errorf("%s: %v", k.Binding.Recipe, err)
			return
		}
		check := []recipe.Item{{Data: made[0].Output, Aside: item.Aside}, {Data: []byte("wrong"), Aside: []byte("*")}}
		if r.Tags() {
			check[0] = recipe.Item{Data: item.Data, Aside: made[0].Output}
		}
		if _, err := c.Recipe(t.Context(), k.Material, r, false, check); err != nil {
			t.Errorf("%s: %v", k.Binding.Recipe, err)
			return
		}
	}
}
