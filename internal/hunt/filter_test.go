package hunt_test

import (
	"crypto/sha512"
	"encoding/base64"
	"math"
	"math/big"
	"testing"

	"filippo.io/edwards25519"

	"crypto/ed25519"

	"claviger.dev/internal/hunt"
)

// expanded is the clamped scalar of an Ed25519 key.
func expanded(key ed25519.PrivateKey) []byte {
	h := sha512.Sum512(key.Seed())
	h[0] &= 248
	h[31] = h[31]&127 | 64
	return h[:32]
}

// TestModelIsACode checks the premise of the bound on skipping: every row of
// the model satisfies Kraft's inequality.
func TestModelIsACode(t *testing.T) {
	t.Parallel()
	trained, empty := hunt.OwnModel(false), write(t, t.TempDir(), "empty", nil)
	uniform, err := hunt.TrainOn(empty)
	if err != nil {
		t.Fatal(err)
	}
	skewed, err := hunt.TrainOn(write(t, t.TempDir(), "zeros", make([]byte, 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*hunt.Model{"own program": trained, "its text": hunt.OwnModel(true), "nothing": uniform, "zeros": skewed} {
		for before := range 256 {
			sum := 0.0
			for _, cost := range m.Costs(byte(before)) {
				sum += math.Exp2(-float64(cost) / 16)
			}
			if sum > 1 {
				t.Errorf("%s: the row of %d sums up to %g", name, before, sum)
			}
		}
	}
}

// TestSkipProbability adds up the bounds of the filters: below 2^-40 for every
// kind of material, whatever the model.
func TestSkipProbability(t *testing.T) {
	t.Parallel()
	text := func(width int) float64 { return float64(width) * math.Log2(98.0/256) }
	sum := func(a, b float64) float64 { return math.Log2(math.Exp2(a) + math.Exp2(b)) }
	// A clamped scalar has byte 0 a multiple of 8 (12 of 32 are text) and byte 31
	// from 0x40 to 0x7f (63 of 64 are). A reduced one has byte 31 at most 0x10, of
	// which tab, newline and return are text.
	// Two models, 2^-43 each, and text.
	for name, bits := range map[string]float64{
		"P-256":            sum(-42, text(32)+1e-6),
		"P-384":            sum(-42, text(48)+1e-6),
		"seed":             sum(-42, text(32)),
		"clamped Ed25519":  sum(-42, text(30)+math.Log2(12.0/32)+math.Log2(63.0/64)),
		"reduced Ed25519":  sum(-42, text(31)+math.Log2(3.0/16)),
		"RSA-2048 factors": sum(-42, text(128)+14),
	} {
		// In base64 also by its characters: the model of text, and hex digits alone.
		if total := sum(sum(bits, -43), 43*math.Log2(22.0/64)+14); total > -40 {
			t.Errorf("%s: 2^%.2f", name, total)
		}
	}
	// Primes of up to 2048 bits with their top bit set are at least one in 2^12 of
	// all numbers of that size: 1/(2 ln 2^2048).
	if density := -math.Log2(1 / (2 * 2048 * math.Ln2)); density > 14 {
		t.Errorf("primes: one in 2^%.2f", density)
	}
}

// TestNoKeyIsSkipped puts a million random keys through the filters.
func TestNoKeyIsSkipped(t *testing.T) {
	t.Parallel()
	m, words := hunt.OwnModel(false), hunt.OwnModel(true)
	random := noise(7, 1_000_000*32+16)
	order, _ := new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
	skipped, scalar := 0, make([]byte, 32)
	for i := range 1_000_000 {
		window := random[i*32 : i*32+32]
		new(big.Int).Mod(new(big.Int).SetBytes(window), order).FillBytes(scalar)
		for _, kind := range []struct {
			window []byte
			bias   int
		}{{scalar, 1}, {reversed(scalar), 1}, {window, 0}, {random[i*32 : i*32+48], 1}} {
			if hunt.Skips(m, words, kind.window, kind.bias) {
				skipped++
			}
		}
		if text := base64.RawStdEncoding.EncodeToString(scalar); hunt.SkipsBase64(words, []byte(text), 32, 1) {
			skipped++
		}
		if i%10 == 0 {
			clamped, err := edwards25519.NewScalar().SetBytesWithClamping(window)
			if err != nil {
				t.Fatal(err)
			}
			if hunt.Skips(m, words, clamped.Bytes(), 6) || hunt.Skips(m, words, expanded(ed25519.NewKeyFromSeed(window)), 6) {
				skipped++
			}
		}
	}
	if skipped > 0 {
		t.Errorf("%d of a million keys are skipped", skipped)
	}
	// The filters do filter.
	for _, window := range []string{"the quick brown fox jumps over t", "\x00\x10\x03\x00\xc0\x00\x00\x00\x40\x22\x01\x00\xc0\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x18\x10\x03\x00\xc0\x00\x00\x00"} {
		if !hunt.Skips(m, words, []byte(window), 1) {
			t.Errorf("%q is not skipped", window)
		}
	}
}
