package hunt_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
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

// TestMixtureIsACode checks the same of the mixture: no source has more than it
// may, and what it gives to all windows of two bytes together is at most 1.
func TestMixtureIsACode(t *testing.T) {
	t.Parallel()
	f := hunt.NewFilters("prod/billing/session-cookie", "prod/shop/api")
	for i, sum := range f.SourceSums() {
		if sum > 1+1e-9 {
			t.Fatalf("row %d sums up to %g", i, sum)
		}
	}
	total := 0.0
	for a := range 256 {
		for b := range 256 {
			total += f.Probability([]byte{byte(a), byte(b)})
		}
	}
	if total > 1 || total < 0.5 {
		t.Errorf("all windows together have the probability %g", total)
	}
	// However long a window is: 512 bytes are less than a float64 can say.
	long := noise(9, 512)
	if p := f.Skip(long, 14); p {
		t.Error("noise of 512 bytes is skipped")
	}
	if copy(long, bytes.Repeat([]byte("06h02mzeqn4f6k7smwkjwhp710\x00\x01"), 512/28)); !f.Skip(long, 14) {
		t.Error("identifiers of 512 bytes are not skipped")
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
	// Two models and their mixture, 2^-43 each, and text.
	three := math.Log2(3) - 43
	for name, bits := range map[string]float64{
		"P-256":            sum(three, text(32)+1e-6),
		"P-384":            sum(three, text(48)+1e-6),
		"seed":             sum(three, text(32)),
		"clamped Ed25519":  sum(three, text(30)+math.Log2(12.0/32)+math.Log2(63.0/64)),
		"reduced Ed25519":  sum(three, text(31)+math.Log2(3.0/16)),
		"RSA-2048 factors": sum(three, text(128)+14),
	} {
		// In base64 also by its characters: the model of text, the mixture, and hex
		// digits alone; and in three other phases by the mixture, with three bits more.
		if total := sum(sum(sum(bits, -42), 43*math.Log2(22.0/64)+14), math.Log2(3)-46); total > -40 {
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
	f := hunt.NewFilters("prod/billing/session-cookie", "prod/shop/api")
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
			if f.Skip(kind.window, kind.bias) {
				skipped++
			}
		}
		if text := base64.RawStdEncoding.EncodeToString(scalar); f.SkipBase64([]byte(text), 32, 1) {
			skipped++
		}
		if i%100 == 0 {
			inside := base64.RawStdEncoding.EncodeToString(append(append([]byte{window[0], 'a'}, scalar...), "and more"...))
			if f.SkipShifted([]byte(inside), 2, 32, 1) {
				skipped++
			}
		}
		if i%10 == 0 {
			clamped, err := edwards25519.NewScalar().SetBytesWithClamping(window)
			if err != nil {
				t.Fatal(err)
			}
			if f.Skip(clamped.Bytes(), 6) || f.Skip(expanded(ed25519.NewKeyFromSeed(window)), 6) {
				skipped++
			}
		}
	}
	if skipped > 0 {
		t.Errorf("%d of a million keys are skipped", skipped)
	}
	// The filters do filter.
	for _, window := range []string{"the quick brown fox jumps over t", "\x00\x10\x03\x00\xc0\x00\x00\x00\x40\x22\x01\x00\xc0\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x18\x10\x03\x00\xc0\x00\x00\x00"} {
		if !f.Skip([]byte(window), 1) {
			t.Errorf("%q is not skipped", window)
		}
	}
	prose := base64.RawStdEncoding.EncodeToString([]byte("it is said that keys are kept here, but not in which place"))
	if !f.SkipShifted([]byte("x"+prose), 8, 32, 6) {
		t.Error("prose taken up at the wrong character is not skipped")
	}
	// What stands in the rows of a database without anything between is no base64.
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("dev/bench/key-%05d", i))
	}
	named := hunt.NewFilters(names...)
	for _, characters := range []string{"A306h02my76ykncqg2s21hz2khgrdev/bench/key-0", "dev/bench/key-00990dev/bench/key-00990bench"} {
		if !named.SkipBase64([]byte(characters), 32, 6) {
			t.Errorf("%q is not skipped", characters)
		}
	}
}
