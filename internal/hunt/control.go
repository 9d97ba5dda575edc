package hunt

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"filippo.io/mldsa"

	"claviger.dev"
	"claviger.dev/pubkey"
)

// controlKey is a throw-away key that a run plants for itself, to show that it
// would have found one.
type controlKey struct {
	public pubkey.Key
	secret []byte   // instead, of the symmetric control, which is the last
	forms  [][]byte // of the private half, as it might stand somewhere
	at     []int64  // where each was planted
}

// controlKeys makes one key of each algorithm that is hunted for; RSA by size;
// and a secret for the symmetric ones.
func controlKeys(config Config) ([]controlKey, error) {
	var out []controlKey
	done := map[string]bool{}
	for _, k := range config.Keys {
		alg := k.Public.Algorithm()
		kind := string(alg)
		if p, ok := alg.RSA(); ok {
			kind = fmt.Sprint("rsa", p.Bits)
		}
		if done[kind] {
			continue
		}
		done[kind] = true
		c, err := newControl(alg)
		if err != nil {
			return nil, err
		}
		if c.forms == nil {
			return nil, Symmetric(k.Name)
		}
		out = append(out, c)
	}
	if config.Symmetric != nil {
		secret := make([]byte, symmetricWidth)
		_, _ = rand.Read(secret)
		out = append(out, controlKey{secret: secret, forms: texts(secret)})
	}
	return out, nil
}

// texts are the bytes of a secret, raw and encoded.
func texts(raw []byte) [][]byte {
	return [][]byte{raw, []byte(hex.EncodeToString(raw)), []byte(base64.StdEncoding.EncodeToString(raw))}
}

func newControl(alg claviger.Algorithm) (controlKey, error) {
	var private crypto.Signer
	var raw []byte
	var err error
	params, isRSA := alg.RSA()
	switch {
	case alg == claviger.Ed25519:
		var key ed25519.PrivateKey
		_, key, err = ed25519.GenerateKey(rand.Reader)
		private, raw = key, key[:ed25519.SeedSize]
	case alg == claviger.ECDSAP256, alg == claviger.ECDSAP384:
		curve := elliptic.P256()
		if alg == claviger.ECDSAP384 {
			curve = elliptic.P384()
		}
		var key *ecdsa.PrivateKey
		if key, err = ecdsa.GenerateKey(curve, rand.Reader); err == nil {
			private = key
			raw, err = key.Bytes()
		}
	case alg == claviger.MLDSA65:
		var key *mldsa.PrivateKey
		if key, err = mldsa.GenerateKey(mldsa.MLDSA65()); err == nil {
			private, raw = key, key.Bytes()
		}
	case isRSA:
		var key *rsa.PrivateKey
		if key, err = rsa.GenerateKey(rand.Reader, params.Bits); err == nil {
			private, raw = key, key.Primes[0].FillBytes(make([]byte, params.Bits/16))
		}
	default:
		return controlKey{}, nil
	}
	if err != nil {
		return controlKey{}, fmt.Errorf("make a control key: %w", err)
	}
	c := controlKey{forms: texts(raw)}
	if der, err := x509.MarshalPKCS8PrivateKey(private); err == nil { // not of ML-DSA
		c.forms = append(c.forms, der, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	c.public, err = pubkey.FromStd(alg, private.Public())
	return c, err
}

// plant lays the forms of the keys into zeros, apart from each other and over
// the ends of chunks, and notes where.
func plant(keys []controlKey) []byte {
	const gap = 4096
	out := make([]byte, lead+chunk-16) // the first form crosses the first chunk's end
	for i, k := range keys {
		for _, form := range k.forms {
			keys[i].at = append(keys[i].at, int64(len(out)))
			out = append(out, form...)
			out = append(out, make([]byte, gap-len(form)%8)...)
		}
	}
	return out
}

// control plants the keys in a file of its own, and in memory where that is
// going to be searched, and hunts for them like for any others.
func (h *hunt) control(ctx context.Context, keys []controlKey, memory bool) (out []Control, err error) {
	dir, err := os.MkdirTemp("", "claviger-hunt-")
	if err != nil {
		return nil, fmt.Errorf("plant a control key: %w", err)
	}
	defer os.RemoveAll(dir)
	data := plant(keys)
	defer clear(data)
	at := Place{File: filepath.Join(dir, "control")}
	if err := os.WriteFile(at.File, data, 0o600); err != nil {
		return nil, fmt.Errorf("plant a control key: %w", err)
	}
	defer func() { _ = os.WriteFile(at.File, make([]byte, len(data)), 0o600) }() // the directory goes next

	resumed := h.state
	h.state = state{}
	err = h.file(ctx, at)
	places := []Place{at}
	if err == nil && memory {
		mapped := Place{PID: os.Getpid(), Mapping: at.File}
		places = append(places, mapped)
		err = h.controlMemory(ctx, mapped)
	}
	h.drain()
	h.state = resumed
	if err != nil {
		return nil, err
	}
	for i, k := range keys {
		c := Control{Algorithm: claviger.AES256GCM}
		if k.secret == nil {
			c.Algorithm = k.public.Algorithm()
		}
		for _, place := range places {
			for n, from := range k.at {
				c.Planted++
				if slices.ContainsFunc(h.planted[place][i], func(o int64) bool { return o >= from && o < from+int64(len(k.forms[n])) }) {
					c.Found++
				}
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// controlMemory maps the planted file and reads the mapping as the memory of a
// process. What it cannot do shows as keys that were not found.
func (h *hunt) controlMemory(ctx context.Context, at Place) error {
	f, err := os.Open(at.Mapping)
	if err != nil {
		return fmt.Errorf("map the control: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("map the control: %w", err)
	}
	mapped, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the control: %w", err)
	}
	defer func() { _ = syscall.Munmap(mapped) }()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return fmt.Errorf("read own memory: %w", err)
	}
	defer mem.Close()
	all, err := mappings(at.PID)
	if err != nil {
		return fmt.Errorf("read own memory: %w", err)
	}
	for _, m := range all {
		if m.name != at.Mapping {
			continue
		}
		if _, err := h.mapping(ctx, at, mem, m); err != nil {
			return err
		}
		h.controlOffset(at, m.from)
	}
	return nil
}

// controlOffset turns addresses into offsets, which is how plants are noted.
func (h *hunt) controlOffset(at Place, base int64) {
	h.drain()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, offsets := range h.planted[at] {
		for i := range offsets {
			offsets[i] -= base
		}
	}
}
