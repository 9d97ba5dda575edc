package hunt_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/hunt"
)

// TestBroken checks that a hunt that cannot see is called broken.
func TestBroken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, alg := range []claviger.Algorithm{claviger.ECDSAP256, claviger.Ed25519} {
		s := newSecret(t, alg)
		write(t, dir, string(alg), s.raw)
		r, err := hunt.Run(t.Context(), hunt.Blind(hunt.Config{Keys: []hunt.Key{s.Key}}), []hunt.Target{{Path: dir}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Verdict != hunt.Broken || len(r.Controls) != 1 || r.Controls[0].Planted == 0 || r.Controls[0].Found != 0 {
			t.Errorf("%+v", r)
		}
	}
}

// TestAnywhere plants keys at random offsets of what looks random, and in files
// made like those that keys are found in.
func TestAnywhere(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	seed := mrand.Uint64()
	t.Logf("seed %d", seed)
	random, dir := mrand.New(mrand.NewPCG(seed, 0)), t.TempDir()
	want := map[string]int64{}
	place := func(name string, data, form []byte, at, inside int) {
		copy(data[at:], form)
		write(t, dir, name, data)
		want[name] = int64(at + inside)
	}
	der := s.der(t)
	in := bytes.Index(der, s.raw)
	for i := range 3 {
		const size = 100 << 10
		at := random.IntN(size - 1000)
		place(fmt.Sprint("raw", i), noise(random.Uint64(), size), s.raw, at&^7, 0)
		place(fmt.Sprint("little", i), noise(random.Uint64(), size), reversed(s.raw), at&^7, 0)
		place(fmt.Sprint("der", i), noise(random.Uint64(), size), der, at, in)
		place(fmt.Sprint("hex", i), noise(random.Uint64(), size), []byte(" "+hex.EncodeToString(s.raw)+" "), at, 1)
	}
	// A log of a browser's database: records with a length, a key at an odd offset.
	log := make([]byte, 0, 700<<10)
	for i := range 5000 {
		log = binary.LittleEndian.AppendUint32(log, uint32(i*2654435761))
		log = append(log, byte(i), 1, 1)
		log = append(log, fmt.Sprintf("\x00\x02\x01\x01\x19name%d value of a record, which has some text\xff\x15", i)...)
	}
	place("000003.log", log, der, 300_001, in)
	// A core: an ELF header, pointers, the key where an allocator would put it.
	core := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 1<<20)...)
	for i := 64; i+8 < len(core); i += 8 {
		binary.LittleEndian.PutUint64(core[i:], 0xc000000000+uint64(i*48))
	}
	place("core.1234", core, reversed(s.raw), 500_000, 0)
	got := map[string]int64{}
	for _, f := range run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: dir}).Findings {
		got[filepath.Base(f.File)] = f.Offset
	}
	for name, at := range want {
		if offset, ok := got[name]; !ok || offset != at {
			t.Errorf("%s: found %v at %d, want %d", name, ok, offset, at)
		}
	}
	if len(got) != len(want) {
		t.Errorf("found in %d files, want %d", len(got), len(want))
	}
}

// TestCopies checks that many copies are all found: the first does not teach
// the filter to skip the others.
func TestCopies(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	data := make([]byte, 256<<10)
	for i := range 1000 {
		copy(data[i*256:], s.raw)
	}
	r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: write(t, t.TempDir(), "heap", data)})
	if len(r.Findings) != 1000 {
		t.Errorf("%d findings", len(r.Findings))
	}
}

func TestParsePublic(t *testing.T) {
	t.Parallel()
	for _, alg := range algorithms() {
		s := newSecret(t, alg)
		for form, text := range map[string][]byte{"PEM": s.Public.PEM(), "JWK": s.Public.JWK(), "spaces": append([]byte("\n "), s.Public.JWK()...)} {
			k, err := hunt.ParsePublic(text)
			if err != nil || !bytes.Equal(k.Raw(), s.Public.Raw()) {
				t.Errorf("%s of %s: %v", form, alg, err)
			}
		}
	}
	s := newSecret(t, claviger.ECDSAP256)
	for name, test := range map[string]struct {
		text string
		want claviger.Code
	}{
		"empty":         {"", claviger.Invalid},
		"text":          {"a key", claviger.Invalid},
		"private PEM":   {string(pemOf("PRIVATE KEY", s.der(t))), claviger.Invalid},
		"certificate":   {string(pemOf("CERTIFICATE", []byte{1})), claviger.Invalid},
		"not SPKI":      {string(pemOf("PUBLIC KEY", []byte{1})), claviger.Invalid},
		"symmetric JWK": {`{"kty":"oct","k":"AAAA"}`, claviger.Unsupported},
		"private JWK":   {`{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}`, claviger.Invalid},
		"no kind":       {`{"kty":"EC","crv":"P-521"}`, claviger.Invalid},
		"bad JSON":      {`{"kty":`, claviger.Invalid},
		"short point":   {`{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`, claviger.Invalid},
		"huge exponent": {`{"kty":"RSA","n":"AQAB","e":"__________________8"}`, claviger.Invalid},
		"small modulus": {`{"kty":"RSA","n":"AQAB","e":"AQAB"}`, claviger.Invalid},
	} {
		if _, err := hunt.ParsePublic([]byte(test.text)); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}

// TestResumeWithin goes on within a file, from the offset that was saved.
func TestResumeWithin(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	const size, first, second = 150 << 20, 10 << 20, 140 << 20
	path, saved := filepath.Join(t.TempDir(), "disk.img"), filepath.Join(t.TempDir(), "state")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err1 := f.WriteAt(s.raw, first)
	_, err2 := f.WriteAt(s.raw, second)
	if err := errors.Join(err1, err2, f.Truncate(size)); err != nil {
		t.Fatal(err)
	}
	config := hunt.Config{Keys: []hunt.Key{s.Key}, State: saved}
	whole := run(t, config, hunt.Target{Path: path})
	if len(whole.Findings) != 2 {
		t.Fatalf("%+v", whole.Findings)
	}
	text, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	state["target"], state["done"], state["current"], state["offset"] = 0, "", path, 100<<20 // as if it had been interrupted there
	state["report"] = map[string]any{"findings": []any{}}
	if text, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(saved), "state", text)
	again := run(t, config, hunt.Target{Path: path})
	if len(again.Findings) != 1 || again.Findings[0].Offset != second || again.Searched.Bytes > 60<<20 {
		t.Errorf("%d bytes, findings %+v", again.Searched.Bytes, again.Findings)
	}
}
