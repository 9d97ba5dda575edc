package recipe_test

import (
	"crypto/rand"
	"encoding/base64"
	"runtime"
	"strings"
	"testing"

	"claviger.dev/internal/recipe"
)

// hostileSize is how long a hostile item is, and hostileMemory what it may
// cost, both in bytes.
const (
	hostileSize   = 64 << 10
	hostileMemory = 1 << 20
)

// long returns items of hostileSize that the scheme is to check: those that
// were made with the key, where there are such, and those that hurt.
func long(t testing.TB, r recipe.Recipe, key []byte) (items []recipe.Item, genuine int) {
	it := input(r)
	it.Data = append(it.Data, strings.Repeat("A", hostileSize-recipe.Overhead-len(it.Data))...)
	if made, ok := r.Make(nil, key, rand.Reader, it); ok {
		switch {
		case r.Tags():
			items = append(items, recipe.Item{Data: it.Data, Aside: made})
		case r.Scheme == recipe.JWEGCM:
			items = append(items, recipe.Item{Data: made, Aside: recipe.JWEHeader(nil)})
		case r.Scheme == recipe.JWECBC:
			items = append(items, recipe.Item{Data: made[64:], Aside: recipe.JWEHeader(made[:64])})
		default:
			items = append(items, recipe.Item{Data: made, Aside: it.Aside})
		}
	}
	genuine = len(items)
	inner := strings.Repeat("AAA=--", hostileSize/8)
	for _, s := range []string{
		strings.Repeat("A", hostileSize), strings.Repeat("-_", hostileSize/2), strings.Repeat("=", hostileSize), strings.Repeat("\xff", hostileSize),
		strings.Repeat("\x00", hostileSize), strings.Repeat("é", hostileSize/2), strings.Repeat("://", hostileSize/3), "O:" + strings.Repeat("9", hostileSize-5) + `:"a`,
		base64.StdEncoding.EncodeToString([]byte(inner))[:hostileSize], strings.Repeat("a", 43) + "~:" + strings.Repeat("9", hostileSize-46) + ":",
	} {
		items = append(items, recipe.Item{Data: []byte(s)}, recipe.Item{Data: []byte(s), Aside: []byte(s[:32])}, recipe.Item{Data: []byte(s), Aside: []byte(s)})
	}
	return items, genuine
}

// TestBounds gives every scheme 64 KiB of what is genuine and of what is meant
// to hurt, and bounds the memory that a check takes, its answer with it.
func TestBounds(t *testing.T) {
	for set, all := range examples() {
		master := material(t, set)
		for _, r := range all {
			key, err := r.Key(master)
			if err != nil {
				t.Fatal(err)
			}
			items, genuine := long(t, r, key)
			if genuine == 0 && set != recipe.ASPNETLegacy {
				t.Errorf("%s: %s made nothing long", set, r.Scheme)
			}
			for i, it := range items {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, ok := r.Check(nil, key, it)
				runtime.ReadMemStats(&after)
				if got := after.TotalAlloc - before.TotalAlloc; got > hostileMemory || after.Mallocs-before.Mallocs > 256 {
					t.Errorf("%s: %s, item %d: %d KiB in %d objects", set, r.Scheme, i, got>>10, after.Mallocs-before.Mallocs)
				}
				if ok != (i < genuine) {
					t.Errorf("%s: %s, item %d: %v", set, r.Scheme, i, ok)
				}
			}
		}
	}
}

// BenchmarkHostile is what the items of TestBounds cost, the genuine one first.
func BenchmarkHostile(b *testing.B) {
	for set, all := range examples() {
		master := material(b, set)
		for _, r := range all {
			key, err := r.Key(master)
			if err != nil {
				b.Fatal(err)
			}
			items, genuine := long(b, r, key)
			b.Run(string(set)+"/"+string(r.Scheme), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					r.Check(nil, key, items[0])
				}
			})
			b.Run(string(set)+"/"+string(r.Scheme)+"/wrong", func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					r.Check(nil, key, items[genuine+i%(len(items)-genuine)])
				}
			})
		}
	}
}
