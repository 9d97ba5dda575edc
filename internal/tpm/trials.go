package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/pubkey"
)

func (p *prober) unseal() trial {
	return trial{
		probe: "tpm.unseal", tried: "TPM2_Unseal of the key",
		attempt: func() (string, error) {
			h, err := p.use(p.key)
			if err != nil {
				return "", err
			}
			return p.unsealed(h)
		},
		control: func() (string, error) {
			area := tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true, UserWithAuth: true},
				Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
					Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
				}),
				Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
			}
			return p.throwaway(area, []byte("sealed, to be told"), func(h tpm2.NamedHandle, _ *tpm2.TPMTPublic) (string, error) {
				return p.unsealed(tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: p.plain(nil)})
			})
		},
	}
}

func (p *prober) unsealed(h tpm2.AuthHandle) (string, error) {
	r, err := tpm2.Unseal{ItemHandle: h}.Execute(p.link)
	if err != nil {
		return "", err
	}
	defer clear(r.OutData.Buffer)
	return fmt.Sprintf("%d bytes in clear", len(r.OutData.Buffer)), nil
}

// agree uses a signing key for what is not signing: an oracle for its scalar
// or its exponent.
func (p *prober) agree() trial {
	t := trial{
		probe: "tpm.ecdh-zgen", tried: "TPM2_ECDH_ZGen with the key and a point of our own, or TPM2_RSA_Decrypt",
		not: "a symmetric key has no such command",
	}
	switch p.key.area.Type {
	case tpm2.TPMAlgECC:
		curve := tpm2.TPMECCNistP256
		if p.key.Algorithm == claviger.ECDSAP384 {
			curve = tpm2.TPMECCNistP384
		}
		t.attempt = func() (string, error) {
			h, err := p.use(p.key)
			if err != nil {
				return "", err
			}
			return p.multiply(h, curve)
		}
	case tpm2.TPMAlgRSA:
		t.attempt = func() (string, error) {
			h, err := p.use(p.key)
			if err != nil {
				return "", err
			}
			modulus, err := p.key.area.Unique.RSA()
			if err != nil {
				return "", err
			}
			text := bytes.Repeat([]byte{7}, len(modulus.Buffer))
			text[0] = 0 // less than the modulus
			r, err := tpm2.RSADecrypt{
				KeyHandle: h, CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: text}, InScheme: tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgNull},
			}.Execute(p.link)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%d bytes of a private operation", len(r.Message.Buffer)), nil
		}
	}
	t.control = func() (string, error) {
		area := weakArea(func(a *tpm2.TPMAObject) { a.SignEncrypt, a.Decrypt = false, true })
		area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
			CurveID: tpm2.TPMECCNistP256, KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		})
		return p.throwaway(area, nil, func(h tpm2.NamedHandle, _ *tpm2.TPMTPublic) (string, error) {
			return p.multiply(tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: p.plain(nil)}, tpm2.TPMECCNistP256)
		})
	}
	return t
}

func (p *prober) multiply(h tpm2.AuthHandle, curve tpm2.TPMECCCurve) (string, error) {
	c := elliptic.P256()
	if curve == tpm2.TPMECCNistP384 {
		c = elliptic.P384()
	}
	_, point, err := software(c)
	if err != nil {
		return "", err
	}
	r, err := tpm2.ECDHZGen{KeyHandle: h, InPoint: tpm2.New2B(point)}.Execute(p.link)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("the product of the scalar and our point, %d bytes", len(r.OutPoint.Bytes())), nil
}

// software makes a key outside the TPM.
func software(c elliptic.Curve) (scalar []byte, point tpm2.TPMSECCPoint, err error) {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		return nil, point, err
	}
	if scalar, err = k.Bytes(); err != nil {
		return nil, point, err
	}
	public, err := k.PublicKey.Bytes()
	half := 1 + len(public)/2
	return scalar, tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: public[1:half]}, Y: tpm2.TPM2BECCParameter{Buffer: public[half:]}}, err
}

// altered loads the key with a public area that lets it leave.
func (p *prober) altered() trial {
	load := func(change func(*tpm2.TPMAObject)) (string, error) {
		area := *p.key.area
		change(&area.ObjectAttributes)
		r, err := tpm2.Load{ParentHandle: p.parent(), InPrivate: p.key.private, InPublic: tpm2.New2B(area)}.Execute(p.link)
		if err != nil {
			return "", err
		}
		return "loaded", p.flush(r.ObjectHandle)
	}
	return trial{
		probe: "tpm.altered-public", tried: "TPM2_Load of the key with fixedTPM and fixedParent cleared in its public area",
		attempt: func() (string, error) {
			return load(func(a *tpm2.TPMAObject) { a.FixedTPM, a.FixedParent = !a.FixedTPM, !a.FixedParent })
		},
		control: func() (string, error) { return load(func(*tpm2.TPMAObject) {}) },
	}
}

// imported brings in a key that the TPM did not make, as if it had.
func (p *prober) imported() trial {
	bring := func(change func(*tpm2.TPMAObject)) (string, error) {
		scalar, point, err := software(elliptic.P256())
		if err != nil {
			return "", err
		}
		area := weakArea(change)
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &point)
		inner := tpm2.Marshal(tpm2.TPMTSensitive{
			SensitiveType: tpm2.TPMAlgECC,
			Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: scalar}),
		})
		_, err = tpm2.Import{
			ParentHandle: p.parent(), ObjectPublic: tpm2.New2B(area), Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
			Duplicate: tpm2.TPM2BPrivate{Buffer: tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: inner})},
		}.Execute(p.link)
		if err != nil {
			return "", err
		}
		if attest.CheckKey(tpm2.Marshal(area)) == nil {
			return "taken in, and it looks made here", nil
		}
		return "taken in as made here, by sensitiveDataOrigin alone; the verifier asks for fixedTPM", nil
	}
	return trial{
		probe: "tpm.import-claim", tried: "TPM2_Import of a key made outside that claims fixedTPM",
		attempt: func() (string, error) {
			return bring(func(a *tpm2.TPMAObject) { a.FixedTPM, a.FixedParent = true, true })
		},
		control: func() (string, error) { return bring(nil) },
	}
}

// external loads a key from outside, as if the TPM had made it.
func (p *prober) external() trial {
	load := func(change func(*tpm2.TPMAObject)) (string, error) {
		scalar, point, err := software(elliptic.P256())
		if err != nil {
			return "", err
		}
		area := weakArea(change)
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &point)
		r, err := tpm2.LoadExternal{
			InPrivate: tpm2.New2B(tpm2.TPMTSensitive{
				SensitiveType: tpm2.TPMAlgECC,
				Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: scalar}),
			}),
			InPublic: tpm2.New2B(area), Hierarchy: tpm2.TPMRHNull,
		}.Execute(p.link)
		if err != nil {
			return "", err
		}
		return "loaded", p.flush(r.ObjectHandle)
	}
	return trial{
		probe: "tpm.load-external-claim", tried: "TPM2_LoadExternal of a key made outside that claims fixedTPM",
		attempt: func() (string, error) {
			return load(func(a *tpm2.TPMAObject) { a.FixedTPM, a.FixedParent = true, true })
		},
		control: func() (string, error) { return load(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }) },
	}
}

// wrongAuthorisation uses the key with the authorisation of another binding.
// The key is outside the lockout, so it counts nothing.
func (p *prober) wrongAuthorisation() trial {
	use := func(auth [32]byte) (string, error) {
		k := *p.key
		k.auth = auth
		var err error
		if k.Algorithm.Asymmetric() {
			_, err = p.sign(&k, make([]byte, k.Algorithm.Hash().Size()))
		} else {
			_, err = p.mac(&k, []byte("claviger tpm check 1"))
		}
		return "it was used", err
	}
	t := trial{
		probe: "tpm.wrong-authorisation", tried: "use the key with the authorisation of another binding",
		control: func() (string, error) { return use(p.key.auth) },
		not:     "the key is not outside the lockout, so this would count",
	}
	if p.key.area.ObjectAttributes.NoDA {
		t.attempt = func() (string, error) { return use([32]byte(bytes.Repeat([]byte{1}, 32))) }
	}
	return t
}

// certify has the attestation key certify a key for a fresh nonce.
func (p *prober) certify(k *Key) (a frames.AttestResponse, nonce []byte, err error) {
	nonce = random()
	a, err = p.attest(k, nonce)
	return a, nonce, err
}

// forged has an unrestricted key sign an attestation that it made up.
func (p *prober) forged() trial {
	forge := func(judge func(a frames.AttestResponse, nonce []byte) error) (string, error) {
		area := weakArea(func(a *tpm2.TPMAObject) { a.FixedTPM, a.FixedParent = true, true })
		return p.throwaway(area, nil, func(h tpm2.NamedHandle, area *tpm2.TPMTPublic) (string, error) {
			nonce := random()
			said := tpm2.Marshal(tpm2.TPMSAttest{
				Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify,
				QualifiedSigner: h.Name, ExtraData: tpm2.TPM2BData{Buffer: nonce},
				Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{
					Name: tpm2.TPM2BName{Buffer: p.key.Name}, QualifiedName: tpm2.TPM2BName{Buffer: p.key.Name},
				}),
			})
			r, err := p.signDigest(tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: p.plain(nil)}, said)
			if err != nil {
				return "", err
			}
			return "the forged attestation is believed", judge(frames.AttestResponse{
				KeyPublic: p.key.Area, Attest: said, Signature: tpm2.Marshal(r), AKPublic: tpm2.Marshal(area),
			}, nonce)
		})
	}
	return trial{
		probe: "tpm.forged-attestation", tried: "sign a made-up attestation of the key by an unrestricted key, and offer it to the verifier",
		attempt: func() (string, error) {
			return forge(func(a frames.AttestResponse, nonce []byte) error { _, err := attest.Verify(a, nonce); return err })
		},
		control: func() (string, error) {
			// A verifier that looks at the signature alone.
			return forge(func(a frames.AttestResponse, _ []byte) error {
				algorithm, raw, _, _, err := attest.Describe(a.AKPublic)
				if err != nil {
					return err
				}
				public, err := pubkey.Parse(algorithm, raw)
				if err != nil {
					return err
				}
				s, err := tpm2.Unmarshal[tpm2.TPMTSignature](a.Signature)
				if err != nil {
					return err
				}
				sig, err := attest.Signature(algorithm, s)
				if err != nil || !public.Verify(a.Attest, sig, pubkey.ASN1) {
					return errRefused
				}
				return nil
			})
		},
	}
}

func (p *prober) signDigest(h tpm2.AuthHandle, message []byte) (tpm2.TPMTSignature, error) {
	digest := sha256.Sum256(message)
	r, err := tpm2.Sign{
		KeyHandle: h, Digest: tpm2.TPM2BDigest{Buffer: digest[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(p.link)
	if err != nil {
		return tpm2.TPMTSignature{}, err
	}
	return r.Signature, nil
}

// restricted has the attestation key sign what looks like an attestation.
func (p *prober) restricted() trial {
	forged := append([]byte{0xFF, 'T', 'C', 'G', 0x80, 0x17}, random()...)
	hashAndSign := func(data []byte) (string, error) {
		ak, _, err := p.ak()
		if err != nil {
			return "", err
		}
		if _, err := p.signDigest(ak, data); err == nil {
			return "signed without a ticket", nil
		}
		r, err := tpm2.Hash{Data: tpm2.TPM2BMaxBuffer{Buffer: data}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: tpm2.TPMRHOwner}.Execute(p.link)
		if err != nil {
			return "", err
		}
		_, err = tpm2.Sign{
			KeyHandle: ak, Digest: r.OutHash, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, Validation: r.Validation,
		}.Execute(p.link)
		return "signed", err
	}
	return trial{
		probe: "tpm.restricted-sign", tried: "have the attestation key sign a digest of ours, and data that begins with TPM_GENERATED through TPM2_Hash",
		attempt: func() (string, error) { return hashAndSign(forged) },
		control: func() (string, error) { return hashAndSign(random()) },
	}
}

// replayed offers the verifier an attestation that answered another nonce.
func (p *prober) replayed() trial {
	offer := func(nonce func([]byte) []byte) (string, error) {
		a, asked, err := p.certify(p.key)
		if err != nil {
			return "", err
		}
		_, err = attest.Verify(a, nonce(asked))
		return "believed", err
	}
	return trial{
		probe: "tpm.replayed-nonce", tried: "offer the verifier an attestation that answered another nonce",
		attempt: func() (string, error) { return offer(func([]byte) []byte { return random() }) },
		control: func() (string, error) { return offer(func(asked []byte) []byte { return asked }) },
	}
}

// renamed offers the verifier another public area than the certified one.
func (p *prober) renamed() trial {
	offer := func(change func(*tpm2.TPMTPublic)) (string, error) {
		a, nonce, err := p.certify(p.key)
		if err != nil {
			return "", err
		}
		area := *p.key.area
		change(&area)
		a.KeyPublic = tpm2.Marshal(area)
		_, err = attest.Verify(a, nonce)
		return "believed", err
	}
	return trial{
		probe: "tpm.other-name", tried: "offer the verifier a public area that differs from the certified one",
		attempt: func() (string, error) {
			return offer(func(area *tpm2.TPMTPublic) { area.AuthPolicy.Buffer = random() })
		},
		control: func() (string, error) { return offer(func(*tpm2.TPMTPublic) {}) },
	}
}

// lockout gives one wrong authorisation for a throw-away object, and sees
// whether the TPM counts it. It stays two below what would lock.
func (p *prober) lockout(loud bool) (claviger.Attempt, error) {
	a := claviger.Attempt{Probe: "tpm.lockout", Tried: "one wrong authorisation of a throw-away object, which the TPM must count"}
	not := func(reason string) (claviger.Attempt, error) {
		a.Verdict, a.Reason = claviger.NotAttempted, reason
		return a, nil
	}
	if !loud {
		return not("it counts against the TPM's lockout: ask for loud attempts")
	}
	before, err := p.properties(tpm2.TPMPTLockoutCounter, 2)
	if err != nil {
		return a, err
	}
	if before[tpm2.TPMPTLockoutCounter]+2 >= before[tpm2.TPMPTMaxAuthFail] {
		return not("the TPM is too near to its lockout")
	}
	counted := func(auth []byte) (string, error) {
		area := weakArea(func(o *tpm2.TPMAObject) { o.NoDA = false })
		return p.throwaway(area, nil, func(h tpm2.NamedHandle, _ *tpm2.TPMTPublic) (string, error) {
			_, err := p.signDigest(tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: p.plain(auth)}, random())
			return "it was used, and nothing counted", err
		})
	}
	if a, err = p.run(trial{
		probe: a.Probe, tried: a.Tried,
		attempt: func() (string, error) { return counted([]byte("wrong")) },
		control: func() (string, error) { return counted(nil) },
	}); err != nil {
		return a, err
	}
	after, err := p.properties(tpm2.TPMPTLockoutCounter, 2)
	if err == nil && a.Verdict == claviger.Held && after[tpm2.TPMPTLockoutCounter] <= before[tpm2.TPMPTLockoutCounter] {
		a.Verdict, a.Result = claviger.Leaked, "refused, but not counted: authorisations can be guessed without end"
	}
	return a, err
}
