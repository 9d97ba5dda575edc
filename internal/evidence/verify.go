package evidence

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"claviger.dev"
)

// DefaultMaxAge is how old a statement may be, unless said otherwise.
const DefaultMaxAge = 7 * 24 * time.Hour

// clockSkew is how far the clock of a statement may be ahead.
const clockSkew = 5 * time.Minute

// Options say what a statement has to hold against.
type Options struct {
	Roots   *x509.CertPool // the CAs of the servers whose word is taken; required
	Devices DeviceRoots    // what vouches for TPMs
	Nonce   []byte         // that the run must have; nil for any
	MaxAge  time.Duration  // since the run ended; 0 for DefaultMaxAge, negative for any
	Now     time.Time      // required
}

// Verified is a statement that held.
type Verified struct {
	Run    *Run
	Signer []*x509.Certificate // the signer's first, the root last
	Tests  []string            // the test roots on which a level rests; they vouch for no hardware
}

// Verify checks the file of a statement with nothing but roots: its form, that
// its signer may sign statements and leads to a root, its subjects, nonce and
// age; the attestation of every TPM key again, with its endorsement
// certificate up to the given roots; and every level, which must follow from
// what the statement itself has. It refuses the whole file if any level or
// finding says more good than that.
//
// That a run happened, and that its attempts gave what it says, rests on the
// word of the signer, as does the binding of a TPM's attestation key to its
// endorsement key, which nobody can check but who challenged it.
func Verify(file []byte, o Options) (*Verified, error) {
	run, signer, err := Open(file, o.Roots)
	if err != nil {
		return nil, err
	}
	if o.Nonce != nil && !bytes.Equal(o.Nonce, run.Nonce) {
		return nil, denied("the statement answers another nonce", "it is of another run, or replayed: ask for a run with your nonce")
	}
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	switch age := o.Now.Sub(run.Finished); {
	case age < -clockSkew:
		return nil, denied(fmt.Sprintf("the run ends %v in the future", -age.Round(time.Second)), "check the clocks")
	case o.MaxAge > 0 && age > o.MaxAge:
		return nil, denied(fmt.Sprintf("the run ended %v ago, more than %v", age.Round(time.Second), o.MaxAge), "make a new one with 'claviger evidence run', or allow more with --max-age")
	}
	v := &Verified{Run: run, Signer: signer}
	proofs := map[string]bool{}
	prove := func(res *Result, rep *Report) Proof {
		p := res.Prove(run, rep, o.Devices)
		if p.Test && !proofs[p.Root] {
			proofs[p.Root] = true
			v.Tests = append(v.Tests, p.Root)
		}
		return p
	}
	for i := range run.Results {
		res := &run.Results[i]
		level, finding := run.judge(res, prove)
		if lower(level, res.Level) != res.Level {
			hint := "the statement says more than it shows: do not trust its server"
			if res.Level == claviger.Attested {
				hint = "give the roots of the TPM's manufacturer with --tpm-roots, or test roots with --tpm-test-roots"
			}
			return nil, denied(fmt.Sprintf("%s is said to be %s, and what the statement has shows %s: %s", res, res.Level, level, finding), hint)
		}
		if res.Finding == "" && finding != "" {
			return nil, denied(fmt.Sprintf("%s has a finding that the statement does not name: %s", res, finding), "the statement hides what it shows: do not trust its server")
		}
	}
	return v, nil
}

// Root is a certificate that vouches for TPMs.
type Root struct {
	Certificate *x509.Certificate
	Name        string // that outputs show; "" for the certificate's subject
	Test        bool   // it is for tests, and vouches for no hardware
}

// DeviceRoots are the roots that vouch for TPMs.
type DeviceRoots []Root

// named returns how outputs name the root: by its name, and the beginning of
// the SHA-256 of the certificate.
func (r Root) named() string {
	sum := sha256.Sum256(r.Certificate.Raw)
	name := r.Name
	if name == "" {
		name = r.Certificate.Subject.String()
	}
	return fmt.Sprintf("%s (SHA-256 %s)", plain(name), hex.EncodeToString(sum[:8]))
}
