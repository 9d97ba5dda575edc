package tpm

import (
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
)

// Rate is how fast a device signs, in signatures per second.
type Rate struct {
	Direct  float64 `json:"direct"`  // TPM2_Sign alone, a key that stays loaded, its authorisation in clear, nothing checked
	Library float64 `json:"library"` // through Device.Sign: salted session, each signature checked
}

// Measure signs with a P-256 key that dies with the call, in turns directly
// and through the library in batches, for about d each way.
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
	const rounds = 4 // in turns, so that a busy machine slows both
	var direct, library time.Duration
	var directs, signed int
	for range rounds {
		n, spent, err := d.direct(k, digests[0], span/rounds)
		if err != nil {
			return rate, err
		}
		directs, direct = directs+n, direct+spent
		for began := time.Now(); ; signed += batch {
			if spent := time.Since(began); spent > span/rounds {
				library += spent
				break
			}
			if _, err := d.Sign(k, digests); err != nil {
				return rate, err
			}
		}
	}
	return Rate{Direct: float64(directs) / direct.Seconds(), Library: float64(signed) / library.Seconds()}, nil
}

// direct signs as any program does that calls the device library itself.
func (d *Device) direct(k *Key, digest []byte, span time.Duration) (n int, spent time.Duration, err error) {
	err = d.do(func(s *session) error {
		handle, err := s.use(k)
		if err != nil {
			return err
		}
		handle.Auth = tpm2.PasswordAuth(k.auth[:])
		began := time.Now()
		for n = 0; time.Since(began) < span; n++ {
			_, err := tpm2.Sign{
				KeyHandle: handle, Digest: tpm2.TPM2BDigest{Buffer: digest}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
				Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
			}.Execute(s.link)
			if err != nil {
				return fmt.Errorf("sign: %w", err)
			}
		}
		spent = time.Since(began)
		return nil
	})
	return n, spent, err
}
