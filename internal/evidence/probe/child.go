package probe

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"claviger.dev/internal/evidence/probe/within"
)

// order tells a child what to be.
type order struct {
	Attack []target `json:"attack,omitempty"` // the attacker of these; nobody: the weak process
}

const maxOrder = 1 << 20 // bytes

// Child is the body of the process that Soft starts by Config.Child: the
// attacker, or the weak process on which every attempt must succeed. It is a
// process of its own because tracing and weakening are a whole process's. It
// reads its order, one line, from in, and answers on out.
func Child(in io.Reader, out io.Writer) error {
	var o order
	dec := json.NewDecoder(io.LimitReader(in, maxOrder))
	if err := dec.Decode(&o); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	if len(o.Attack) == 0 {
		return stand(in, out)
	}
	answers := make([][]outcome, len(o.Attack))
	for i, t := range o.Attack {
		answers[i] = attack(t)
	}
	if err := json.NewEncoder(out).Encode(answers); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// stand is the weak process: dumpable, with a key on its heap, the same key in a
// descriptor left open, core files unlimited, nothing filtered.
func stand(in io.Reader, out io.Writer) error {
	r := within.Report{PID: os.Getpid()}
	key := make([]byte, 32)
	for len(r.Public) == 0 {
		_, _ = rand.Read(key) // it never fails
		if scalar, err := ecdh.P256().NewPrivateKey(key); err == nil {
			r.Public = scalar.PublicKey().Bytes()
		}
	}
	r.Address, r.Digest = within.Address(key), sha256.Sum256(key)
	if err := weaken(key); err != nil {
		return err
	}
	r.Forked, r.Descriptors = within.Fork(key), within.Descriptors(3)
	r.Calls = within.Calls()
	err := within.Stand(struct {
		io.Reader
		io.Writer
	}{in, out}, r)
	runtime.KeepAlive(key)
	return err
}

// weaken undoes what protects any process.
func weaken(key []byte) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become dumpable: %w", err)
	}
	_ = unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0) // where there is Yama: anyone may trace
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err == nil {
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_CORE, &limit) // where it stays 0 the control of core files shows it
	}
	fd, err := unix.MemfdCreate("probe", 0)
	if err != nil {
		return fmt.Errorf("leave a descriptor open: %w", err)
	}
	if _, err := unix.Write(fd, key); err != nil {
		return fmt.Errorf("leave a descriptor open: %w", err)
	}
	return nil
}
