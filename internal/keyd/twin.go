package keyd

import (
	"crypto/rand"
	"crypto/sha256"
	"os"

	"claviger.dev/internal/evidence/probe/within"
	"claviger.dev/internal/hazmat"
)

// Twin hardens this process as Main does, puts a throw-away key into the arena,
// attempts from within what the hardening is there against, and reports on
// descriptor 3. It serves nothing and never has a root key.
func Twin(o Options) error {
	control := os.NewFile(framesFD, "control")
	r := within.Report{PID: os.Getpid()}
	arena, measures, err := o.harden([]int{framesFD}, func(arena *hazmat.Arena) error {
		r.Descriptors = within.Descriptors(framesFD + 1)
		secret, err := arena.New(hazmat.Token{}, 32, func(b []byte) error { _, err := rand.Read(b); return err })
		if err != nil {
			return err
		}
		return secret.Use(hazmat.Token{}, func(b []byte) error {
			r.Address, r.Digest, r.Forked = within.Address(b), sha256.Sum256(b), within.Fork(b)
			return nil
		})
	})
	r.Measures = measures
	if err != nil {
		r.Err = err.Error()
	} else {
		defer arena.Wipe()
		r.Calls = within.Calls()
	}
	return within.Stand(control, r)
}
