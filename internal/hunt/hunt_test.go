package hunt_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf16"

	"filippo.io/mldsa"
	"golang.org/x/crypto/ssh"

	"claviger.dev"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// secret is a key whose private half the test knows.
type secret struct {
	hunt.Key
	signer crypto.Signer
	raw    []byte // scalar, seed or prime factor
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newSecret(t testing.TB, alg claviger.Algorithm) secret {
	t.Helper()
	s := secret{Key: hunt.Key{Name: "test/hunt/" + string(alg)}}
	var err error
	switch alg {
	case claviger.Ed25519:
		var key ed25519.PrivateKey
		_, key, err = ed25519.GenerateKey(rand.Reader)
		s.signer, s.raw = key, key.Seed()
	case claviger.ECDSAP256, claviger.ECDSAP384:
		curve := elliptic.P256()
		if alg == claviger.ECDSAP384 {
			curve = elliptic.P384()
		}
		var key *ecdsa.PrivateKey
		if key, err = ecdsa.GenerateKey(curve, rand.Reader); err == nil {
			s.signer = key
			s.raw, err = key.Bytes()
		}
	case claviger.MLDSA65:
		var key *mldsa.PrivateKey
		if key, err = mldsa.GenerateKey(mldsa.MLDSA65()); err == nil {
			s.signer, s.raw = key, key.Bytes()
		}
	default:
		var key *rsa.PrivateKey
		if key, err = rsaKey(); err == nil {
			s.signer, s.raw = key, key.Primes[1].FillBytes(make([]byte, 128))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if s.Public, err = pubkey.FromStd(alg, s.signer.Public()); err != nil {
		t.Fatal(err)
	}
	return s
}

const rsa2048 = claviger.Algorithm("rsa-2048-pss-sha256")

func algorithms() []claviger.Algorithm {
	return []claviger.Algorithm{claviger.ECDSAP256, claviger.ECDSAP384, claviger.Ed25519, claviger.MLDSA65, rsa2048}
}

func reversed(b []byte) []byte {
	b = slices.Clone(b)
	slices.Reverse(b)
	return b
}

func (s secret) der(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s.signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// wrapped breaks text into lines of n characters, with what stands between.
func wrapped(text string, n int, between string) []byte {
	var out []string
	for len(text) > n {
		out, text = append(out, text[:n]), text[n:]
	}
	return []byte(strings.Join(append(out, text), between))
}

// colons writes bytes as openssl -text does.
func colons(b []byte) []byte {
	var out strings.Builder
	for i, c := range b {
		if i%15 == 0 {
			out.WriteString("\n    ")
		}
		fmt.Fprintf(&out, "%02x:", c)
	}
	return []byte("priv:" + strings.TrimSuffix(out.String(), ":") + "\npub:\n")
}

// wide writes text in UTF-16.
func wide(text string, order binary.AppendByteOrder) []byte {
	var out []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		out = order.AppendUint16(out, unit)
	}
	return out
}

// forms are the ways in which the private half might stand somewhere.
func (s secret) forms(t testing.TB) map[string][]byte {
	t.Helper()
	raw64 := base64.RawURLEncoding.EncodeToString
	out := map[string][]byte{
		"raw":         s.raw,
		"hex":         []byte(hex.EncodeToString(s.raw)),
		"hex upper":   []byte(strings.ToUpper(hex.EncodeToString(s.raw))),
		"hex colons":  colons(s.raw),
		"jwk":         []byte(`{"kty":"EC","crv":"P-256","d":"` + raw64(s.raw) + `","use":"sig"}`),
		"octets":      append([]byte{4, byte(len(s.raw))}, s.raw...),
		"double":      []byte(base64.StdEncoding.EncodeToString([]byte(`{"d":"` + raw64(s.raw) + `"}`))),
		"utf-16 hex":  wide(hex.EncodeToString(s.raw), binary.LittleEndian),
		"utf-16 json": wide(`{"d":"`+raw64(s.raw)+`"}`, binary.BigEndian),
		"powershell":  []byte(base64.StdEncoding.EncodeToString(wide(`$key = "`+raw64(s.raw)+`"`, binary.LittleEndian))),
		"environment": []byte("KEY=" + hex.EncodeToString(s.raw) + "\x00PATH=/bin\x00"),
	}
	for shift := range 4 {
		padded := append(bytes.Repeat([]byte{0xa7}, shift), s.raw...)
		for name, enc := range map[string]*base64.Encoding{"std": base64.StdEncoding, "url": base64.RawURLEncoding} {
			text := enc.EncodeToString(padded)
			out[fmt.Sprintf("base64 %s %d", name, shift)] = []byte(`"` + text + `"`)
			out[fmt.Sprintf("base64 %s %d lines", name, shift)] = append(wrapped(text, 32+shift, "\r\n    "), '\n')
		}
	}
	if len(s.raw) > 127 {
		delete(out, "octets")
	}
	if s.Public.Algorithm() != claviger.Ed25519 && s.Public.Algorithm() != claviger.MLDSA65 {
		out["little-endian"] = reversed(s.raw)
	}
	if s.Public.Algorithm() == claviger.MLDSA65 {
		return out
	}
	der := s.der(t)
	out["pkcs8"] = der
	block, err := ssh.MarshalPrivateKey(s.signer, "a comment")
	if err != nil {
		t.Fatal(err)
	}
	out["openssh"] = pem.EncodeToMemory(block)
	out["pkcs8 pem"] = append([]byte("some text before\n"), pemOf("PRIVATE KEY", der)...)
	out["utf-16 pem"] = wide(string(pemOf("PRIVATE KEY", der)), binary.LittleEndian)
	out["utf-16 pem, crlf"] = wide(strings.ReplaceAll(string(pemOf("PRIVATE KEY", der)), "\n", "\r\n"), binary.BigEndian)
	out["pem in json"] = bytes.ReplaceAll(pemOf("PRIVATE KEY", der), []byte("\n"), []byte(`\n`))
	out["pem in yaml"] = bytes.ReplaceAll(pemOf("PRIVATE KEY", der), []byte("\n"), []byte("\n      "))
	out["secret"] = []byte("  tls.key: " + base64.StdEncoding.EncodeToString(pemOf("PRIVATE KEY", der)) + "\n")
	switch key := s.signer.(type) {
	case *ecdsa.PrivateKey:
		sec1, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		out["sec1"], out["sec1 pem"] = sec1, pemOf("EC PRIVATE KEY", sec1)
	case *rsa.PrivateKey:
		pkcs1 := x509.MarshalPKCS1PrivateKey(key)
		out["pkcs1"], out["pkcs1 pem"] = pkcs1, pemOf("RSA PRIVATE KEY", pkcs1)
		out["jwk d alone"] = []byte(`{"kty":"RSA","d":"` + raw64(key.D.FillBytes(make([]byte, 256))) + `"}`)
	case ed25519.PrivateKey:
		out["expanded"] = expanded(key)
	}
	return out
}

func run(t testing.TB, c hunt.Config, targets ...hunt.Target) *hunt.Report {
	t.Helper()
	r, err := hunt.Run(t.Context(), c, targets)
	if err != nil {
		t.Fatal(err)
	}
	for _, control := range r.Controls {
		if control.Planted == 0 || control.Found != control.Planted {
			t.Fatalf("control %+v", control)
		}
	}
	return r
}

func write(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestForms plants every form of every kind of key among text and among
// zeros, at every alignment of eight, and misses none.
func TestForms(t *testing.T) {
	t.Parallel()
	for _, alg := range algorithms() {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			s := newSecret(t, alg)
			aligns := []int{0, 5}
			if alg == claviger.ECDSAP256 {
				aligns = []int{0, 1, 2, 3, 4, 5, 6, 7}
			}
			dir, count := t.TempDir(), 0
			for name, form := range s.forms(t) {
				for _, align := range aligns {
					count += 2
					write(t, dir, fmt.Sprint("text", align, " ", name), slices.Concat(bytes.Repeat([]byte("word "), 7), bytes.Repeat([]byte{'.'}, align), []byte{'\n'}, form, []byte(" and on\n")))
					write(t, dir, fmt.Sprint("zeros", align, " ", name), slices.Concat(make([]byte, 100+align), form, make([]byte, 100)))
				}
			}
			r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: dir})
			missed, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Findings {
				missed = slices.DeleteFunc(missed, func(e os.DirEntry) bool { return e.Name() == filepath.Base(f.File) })
				if f.Key != s.Name || f.Fingerprint != s.Public.Fingerprint() || f.Offset < 0 || f.Form == "" || f.Encoding == "" {
					t.Errorf("%+v", f)
				}
			}
			if len(missed) > 0 || r.Verdict != hunt.Found || r.Searched.Files != count {
				t.Errorf("not found in %v; %d of %d files searched", missed, r.Searched.Files, count)
			}
		})
	}
}

// TestShortScalar plants a scalar where integers are written without a leading zero.
func TestShortScalar(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	for s.raw[0] != 0 || s.raw[1] >= 0x80 {
		s = newSecret(t, claviger.ECDSAP256)
	}
	block, err := ssh.MarshalPrivateKey(s.signer, "a comment")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "openssh", pem.EncodeToMemory(block))
	write(t, dir, "integer", slices.Concat(make([]byte, 100), []byte{2, 31}, s.raw[1:], make([]byte, 100)))
	if r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: dir}); len(r.Findings) != 2 {
		t.Errorf("found in %+v", r.Findings)
	}
}

// TestOffsets checks that findings name the byte at which the material begins.
func TestOffsets(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	dir := t.TempDir()
	write(t, dir, "raw", slices.Concat(make([]byte, 1000), s.raw))
	write(t, dir, "hex", []byte("key = "+hex.EncodeToString(s.raw)))
	write(t, dir, "base64", []byte("\n\n  "+base64.StdEncoding.EncodeToString(s.raw)))
	der := s.der(t)
	write(t, dir, "der", slices.Concat([]byte{0xff}, der))
	got := map[string]string{}
	for _, f := range run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: dir}).Findings {
		got[filepath.Base(f.File)] = fmt.Sprint(f.Offset, " ", f.Encoding, " ", f.Form)
	}
	want := map[string]string{
		"raw": "1000 raw scalar, big-endian", "hex": "6 hex scalar, big-endian", "base64": "4 base64 scalar, big-endian",
		"der": fmt.Sprint(1+bytes.Index(der, s.raw), " DER scalar, big-endian"),
	}
	for name, w := range want {
		if strings.Replace(got[name], " raw ", " DER ", 1) != strings.Replace(w, " raw ", " DER ", 1) {
			t.Errorf("%s: %q, want %q", name, got[name], w)
		}
	}
}

// noise is what looks random and repeats for a seed.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	out := make([]byte, n)
	_, _ = mrand.NewChaCha8(key).Read(out)
	return out
}

// TestChunks plants keys over every kind of boundary of a large file.
func TestChunks(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	const first, step = 280 << 10, 256 << 10 // where the first buffer ends; how far the next ones reach
	data := make([]byte, 3<<20)
	var want []int64
	form := base64.StdEncoding.EncodeToString(s.raw)
	for i := range 4 {
		for _, at := range []int{first + i*step, first - 16<<10 + i*step} {
			want = append(want, int64(at-16))
			copy(data[at-16:], s.raw)
		}
		at := first - 8<<10 + i*step
		want = append(want, int64(at-21))
		copy(data[at-21:], form)
	}
	// Base64 lines that began long before a boundary.
	long := wrapped(strings.Repeat("QUJD", 6000)+base64.StdEncoding.EncodeToString(s.raw), 64, "\n")
	copy(data[2<<20:], long)
	want = append(want, int64(2<<20+bytes.Index(data[2<<20:], []byte(wrapped(form, 64, "\n")[:20]))))
	path := write(t, t.TempDir(), "image", data)
	r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: path})
	for _, offset := range want {
		if !slices.ContainsFunc(r.Findings, func(f hunt.Finding) bool { return f.Offset == offset }) {
			t.Errorf("nothing at %d", offset)
		}
	}
	if len(r.Findings) != len(want) {
		t.Errorf("%d findings, want %d", len(r.Findings), len(want))
	}
}

func tarOf(t testing.TB, members map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range members {
			if !yield(n) {
				return
			}
		}
	}) {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Size: int64(len(members[name])), Mode: 0o600, Typeflag: tar.TypeReg}), func() error { _, err := w.Write(members[name]); return err }()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zlibbed(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipped(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	w, err := z.Create(name)
	if err == nil {
		_, err = w.Write(data)
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestArchives plants a key in containers and containers within them.
func TestArchives(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	key := pemOf("PRIVATE KEY", s.der(t))
	layer := gzipped(t, tarOf(t, map[string][]byte{"etc/app/key.pem": key, "etc/hosts": []byte("127.0.0.1 localhost\n")}))
	for _, test := range []struct {
		name, member string
		data         []byte
	}{
		{"gzip", "gunzip", gzipped(t, key)},
		{"git object", "inflate", zlibbed(t, append([]byte("blob 241\x00"), key...))},
		{"tar", "a/key.pem", tarOf(t, map[string][]byte{"a/key.pem": key})},
		{"tar.gz", "gunzip!a/key.pem", gzipped(t, tarOf(t, map[string][]byte{"a/key.pem": key}))},
		{"zip", "key.pem", zipped(t, "key.pem", key)},
		{"zip in tar", "backup.zip!key.pem", tarOf(t, map[string][]byte{"backup.zip": zipped(t, "key.pem", key)})},
		{"container image", "blobs/sha256/ab!gunzip!etc/app/key.pem", tarOf(t, map[string][]byte{"blobs/sha256/ab": layer, "index.json": []byte("{}")})},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, t.TempDir(), "archive", test.data)
			r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: path})
			if len(r.Findings) != 1 || r.Findings[0].Member != test.member || r.Findings[0].File != path || len(r.Gaps) > 0 {
				t.Errorf("findings %+v, gaps %+v", r.Findings, r.Gaps)
			}
		})
	}
}

// TestHostileArchives checks that what cannot be unpacked whole is bounded, and
// reported.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	key := pemOf("PRIVATE KEY", s.der(t))
	deep := key
	for range 9 {
		deep = gzipped(t, deep)
	}
	bomb := gzipped(t, make([]byte, 64<<20))
	whole := tarOf(t, map[string][]byte{"key.pem": key, "z": make([]byte, 4096)})
	for _, test := range []struct {
		name, reason string
		data         []byte
		found        bool
	}{
		{"bomb", "over the limit of what is unpacked from one file", bomb, false},
		{"bomb in zip", "over the limit of what is unpacked from one file", zipped(t, "bomb", make([]byte, 64<<20)), false},
		{"deep", "packed more than 6 deep", deep, false},
		{"truncated gzip", "gzip: truncated", gzipped(t, key)[:100], false},
		{"truncated tar", "tar: truncated", whole[:3000], true},
		{"damaged zip", "zip: damaged", append([]byte("PK\x03\x04"), key...), true},
		{"xz", "compressed with xz: searched as it is, not unpacked", append([]byte("\xfd7zXZ\x00"), key...), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, t.TempDir(), "archive", test.data)
			r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}, Unpacked: 16 << 20}, hunt.Target{Path: path})
			if r.GapCount[test.reason] == 0 {
				t.Errorf("gaps %v", r.GapCount)
			}
			if (len(r.Findings) > 0) != test.found {
				t.Errorf("findings %+v", r.Findings)
			}
			if r.Searched.Bytes > 40<<20 {
				t.Errorf("%d bytes were searched", r.Searched.Bytes)
			}
		})
	}
}

// TestNotSearched checks that nothing is left out silently.
func TestNotSearched(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.Ed25519)
	dir := t.TempDir()
	write(t, dir, "plain", []byte("nothing here"))
	if err := errors.Join(os.Symlink("plain", filepath.Join(dir, "link")), exec.CommandContext(t.Context(), "mkfifo", filepath.Join(dir, "pipe")).Run()); err != nil {
		t.Fatal(err)
	}
	r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: dir})
	if r.Verdict != hunt.Nothing || r.GapCount["symbolic link, not followed"] != 1 || r.GapCount["special file"] != 1 || len(r.Gaps) != 2 {
		t.Errorf("%+v", r)
	}
	for _, missing := range []hunt.Target{{Path: filepath.Join(dir, "missing")}, {Path: filepath.Join(dir, "link")}, {PID: 1 << 30}} {
		if r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: dir}, missing); r.Verdict != hunt.NotSearched {
			t.Errorf("%+v: %+v", missing, r)
		}
	}
	if _, err := hunt.Run(t.Context(), hunt.Config{}, []hunt.Target{{Path: dir}}); !errors.Is(err, claviger.Invalid) {
		t.Errorf("without a key: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := hunt.Run(ctx, hunt.Config{Keys: []hunt.Key{s.Key}}, []hunt.Target{{Path: dir}}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: %v", err)
	}
}

// TestMain is also the child whose memory is searched: it holds a key that it
// reads from its standard input, says so, and waits for the end of the input.
func TestMain(m *testing.M) {
	if os.Getenv("HUNT_CHILD") == "" {
		os.Exit(m.Run())
	}
	held := make([]byte, 64)
	if _, err := io.ReadFull(os.Stdin, held); err != nil {
		os.Exit(1)
	}
	fmt.Println("holding")
	_, _ = io.Copy(io.Discard, os.Stdin)
	fmt.Println(held[0])
}

// TestMemory searches the memory of a process for two keys that it holds and
// for one that it does not.
func TestMemory(t *testing.T) {
	t.Parallel()
	big, little, absent := newSecret(t, claviger.ECDSAP256), newSecret(t, claviger.ECDSAP256), newSecret(t, claviger.ECDSAP256)
	big.Name, little.Name, absent.Name = "big-endian", "little-endian", "absent"
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), "HUNT_CHILD=1")
	in, err1 := child.StdinPipe()
	out, err2 := child.StdoutPipe()
	if err := errors.Join(err1, err2, child.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = child.Wait() }()
	if _, err := in.Write(slices.Concat(big.raw, reversed(little.raw))); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("holding\n"))); err != nil {
		t.Fatal(err)
	}
	r := run(t, hunt.Config{Keys: []hunt.Key{big.Key, little.Key, absent.Key}}, hunt.Target{PID: child.Process.Pid})
	if r.Searched.Processes != 1 || r.Searched.Mappings < 3 {
		t.Errorf("%+v", r)
	}
	found := map[string]bool{}
	for _, f := range r.Findings {
		found[f.Key] = true
		if f.PID != child.Process.Pid || f.Offset < 4096 || !strings.HasSuffix(f.Form, f.Key) {
			t.Errorf("%+v", f)
		}
	}
	if !found["big-endian"] || !found["little-endian"] || len(found) != 2 {
		t.Errorf("found %v", found)
	}
}

// TestMany hunts for sixteen keys of every kind at once.
func TestMany(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var keys []hunt.Key
	for i := range 16 {
		s := newSecret(t, algorithms()[i%4])
		s.Name = strconv.Itoa(i)
		keys = append(keys, s.Key)
		write(t, dir, s.Name, s.raw)
	}
	for _, f := range run(t, hunt.Config{Keys: keys}, hunt.Target{Path: dir}).Findings {
		if f.Key != filepath.Base(f.File) {
			t.Errorf("%+v", f)
		}
	}
}

// TestNoFalseAlarm searches what has no key.
func TestNoFalseAlarm(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	dir := t.TempDir()
	write(t, dir, "random", noise(1, 1<<20))
	write(t, dir, "public.pem", s.Public.PEM())
	write(t, dir, "public.jwk", s.Public.JWK())
	if r := run(t, hunt.Config{Keys: []hunt.Key{s.Key}}, hunt.Target{Path: dir}, hunt.Target{Path: ".."}); r.Verdict != hunt.Nothing || len(r.Gaps) > 0 {
		t.Errorf("%+v", r)
	}
}
