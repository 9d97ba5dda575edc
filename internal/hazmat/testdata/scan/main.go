// Command scan signs with keys that stand in an arena and then counts the
// copies of them in its own memory. The number of each goes to the standard
// output. With the argument "plain" it signs outside of hazmat.Do.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"claviger.dev/internal/hazmat"
)

// masked is a needle that is not itself a find.
type masked [32]byte

func mask(b []byte) (m masked) {
	for i := range m {
		m[i] = b[i] ^ 0x5a
	}
	return m
}

func main() {
	arena := check(hazmat.NewArena(hazmat.Config{Size: 64 << 10}))
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var seed, scalar masked
	random := func(m *masked) func(b []byte) error {
		return func(b []byte) error {
			rand.Read(b)
			b[0] = 1 // below the order of the curve
			*m = mask(b)
			return nil
		}
	}
	ed := check(arena.New(hazmat.Token{}, 32, random(&seed)))
	ec := check(arena.New(hazmat.Token{}, 32, random(&scalar)))
	message, digest := []byte("message"), sha256.Sum256([]byte("message"))
	signEd := func(b []byte) error {
		ed25519.Sign(ed25519.NewKeyFromSeed(b), message)
		return nil
	}
	signEC := func(b []byte) error {
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), b)
		if err != nil {
			return err
		}
		_, err = ecdsa.SignASN1(rand.Reader, key, digest[:])
		return err
	}
	for range 1000 {
		if len(os.Args) > 1 {
			plain(ed, signEd)
			plain(ec, signEC)
			continue
		}
		check(0, ed.Use(hazmat.Token{}, signEd))
		check(0, ec.Use(hazmat.Token{}, signEC))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	go arena.Collect(ctx, time.Millisecond)
	for after.NumForcedGC < before.NumForcedGC+3 {
		runtime.ReadMemStats(&after)
		time.Sleep(time.Millisecond)
	}
	counts := count(seed, scalar)
	fmt.Println(counts[0], counts[1])
}

// plain takes the key out, so that nothing erases what becomes of it.
func plain(s hazmat.Secret, sign func([]byte) error) {
	var key []byte
	check(0, s.Use(hazmat.Token{}, func(b []byte) error { key = append(key, b...); return nil }))
	check(0, sign(bytes.Clone(key)))
}

func check[T any](v T, errs ...error) T {
	for _, err := range errs {
		if err != nil {
			panic(err)
		}
	}
	return v
}

// count searches all memory of this process that can be read, but the buffer
// that it reads into.
func count(needles ...masked) []int {
	const chunk = 1 << 20
	buf := check(unix.Mmap(-1, 0, chunk+32, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS))
	mem := check(os.Open("/proc/self/mem"))
	maps := string(check(os.ReadFile("/proc/self/maps")))
	counts := make([]int, len(needles))
	own := uint64(uintptr(unsafe.Pointer(&buf[0])))
	for line := range strings.Lines(maps) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			panic(err)
		}
		if mode[0] != 'r' || strings.Contains(line, "[v") {
			continue // reserved, or the kernel's own
		}
		for at := from; at < to; at += chunk {
			if at < own+uint64(len(buf)) && own < at+chunk+32 {
				continue
			}
			n, err := mem.ReadAt(buf[:min(chunk+31, to-at)], int64(at))
			if err != nil {
				continue // secret pages, and what nobody mapped yet
			}
			for k, needle := range needles {
				counts[k] += find(buf[:n], needle)
			}
		}
	}
	return counts
}

// find counts the places of b that hold the needle; it compares in place.
func find(b []byte, needle masked) (n int) {
	for i := 0; i+len(needle) <= len(b); i++ {
		j := 0
		for j < len(needle) && b[i+j]^0x5a == needle[j] {
			j++
		}
		if j == len(needle) {
			n++
		}
	}
	return n
}
