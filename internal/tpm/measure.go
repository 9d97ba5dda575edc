package tpm

import (
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
)

// Rate is how fast a device signs, in signatures per second.
type Rate struct {
	Direct     float64 `json:"direct"`     // go-tpm alone: a key that stays loaded, its authorisation in clear, nothing checked
	Authorised float64 `json:"authorised"` // the same with a salted session
	Library    float64 `json:"library"`    // through Device.Sign: salted session, each signature checked
}

// Measure signs with a P-256 key that dies with the call, in turns directly
// and through the library in batches, for about span each way.
func (d *Device) Measure(batch int, span time.Duration) (rate Rate, err error) {
	if batch < 1 || batch > 1000 {
		return rate, claviger.Errorf(claviger.Invalid, "a batch has 1 to 1000 items", "try 50")
	}
	auth := [32]byte(random())
	k, err := d.Create(claviger.ECDSAP256, auth)
	if err != nil {
		return rate, err
	}
	digests := make([][]byte, batch)
	for i := range digests {
		digests[i] = random()
	}
	const rounds = 4 // in turns, so that a busy machine slows all
	for range rounds {
		direct, err := d.direct(k, digests[0], tpm2.PasswordAuth(k.auth[:]), span/rounds)
		if err != nil {
			return rate, err
		}
		authorised, err := d.direct(k, digests[0], nil, span/rounds)
		if err != nil {
			return rate, err
		}
		library, err := perSecond(span/rounds, batch, func() error { _, err := d.Sign(k, digests); return err })
		if err != nil {
			return rate, err
		}
		rate.Direct, rate.Authorised, rate.Library = rate.Direct+direct/rounds, rate.Authorised+authorised/rounds, rate.Library+library/rounds
	}
	return rate, nil
}

// direct signs as any program does that calls the device library itself, with
// the key's salted session when auth is nil.
func (d *Device) direct(k *Key, digest []byte, auth tpm2.Session, span time.Duration) (rate float64, err error) {
	err = d.do(func(s *session) error {
		handle, err := s.use(k)
		if err != nil {
			return err
		}
		if auth != nil {
			handle.Auth = auth
		}
		rate, err = perSecond(span, 1, func() error {
			_, err := tpm2.Sign{
				KeyHandle: handle, Digest: tpm2.TPM2BDigest{Buffer: digest}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
				Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
			}.Execute(s.link)
			return err
		})
		return err
	})
	return rate, err
}

// perSecond is the rate of f, which signs so many, over a span.
func perSecond(span time.Duration, each int, f func() error) (float64, error) {
	began := time.Now()
	for signed := 0; ; signed += each {
		if spent := time.Since(began); spent >= span {
			return float64(signed) / spent.Seconds(), nil
		}
		if err := f(); err != nil {
			return 0, fmt.Errorf("sign: %w", err)
		}
	}
}
