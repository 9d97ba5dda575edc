//go:build cgo

package p11d

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/pubkey"
)

const (
	nonceSize = 12
	tagSize   = 16
)

// checkLabel is the message, or the associated data, from which the check
// value of a symmetric key comes.
const checkLabel = "claviger p11 check value 1\x00"

// key is a key of the token that is loaded. It does not change.
type key struct {
	scheme      scheme
	binding     frames.Binding
	fingerprint claviger.Fingerprint
	public      pubkey.Key // of a private key
	object      object
	link        uint64 // of which object is a handle
}

// prove shows that the token has the key's material and returns the
// fingerprint of what it has: a signature of a fresh challenge, or the check
// value.
func (d *device) prove(s session, k *key) (claviger.Fingerprint, error) {
	if k.scheme.class == pkcs11.CKO_SECRET_KEY {
		return d.check(s, k)
	}
	inputs, err := digests(k.scheme.algorithm.Hash(), [][]byte{challenge()}, false)
	if err != nil {
		return claviger.Fingerprint{}, err
	}
	if _, err := d.signAll(s, k, inputs); err != nil {
		return claviger.Fingerprint{}, err
	}
	return k.public.Fingerprint(), nil
}

// check computes the fingerprint of a symmetric key from its check value.
func (d *device) check(s session, k *key) (claviger.Fingerprint, error) {
	var value []byte
	var err error
	if k.scheme.use == pkcs11.CKM_AES_GCM {
		// Always the same nonce with the same, empty message: nothing is
		// learned from seeing it again, and no other message has this nonce.
		value, _, err = d.encrypt(s, k.object, make([]byte, nonceSize), nil, []byte(checkLabel))
	} else {
		value, err = d.signOne(s, k, []byte(checkLabel))
	}
	if err != nil {
		return claviger.Fingerprint{}, err
	}
	h := sha256.New()
	h.Write(k.binding.Append([]byte(checkLabel)))
	h.Write(value)
	return claviger.Fingerprint(h.Sum(nil)), nil
}

// recheck insists that a symmetric key is still the one that was authorised,
// before what it made is released.
func (d *device) recheck(s session, k *key) error {
	now, err := d.check(s, k)
	if err == nil && now != k.fingerprint {
		return errOther
	}
	return err
}

// signOne makes one signature or code as the token gives it.
func (d *device) signOne(s session, k *key, input []byte) ([]byte, error) {
	defer d.watch("C_Sign", useLimit)()
	if err := d.module.SignInit(s, k.scheme.mechanism(), k.object); err != nil {
		return nil, fmt.Errorf("start signing: %w", err)
	}
	raw, err := d.module.Sign(s, input)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return raw, nil
}

// signAll signs digests, or messages of Ed25519, and checks the first and the
// last signature with the public key that was authorised.
func (d *device) signAll(s session, k *key, inputs [][]byte) ([][]byte, error) {
	out := make([][]byte, len(inputs))
	for i, input := range inputs {
		raw, err := d.signOne(s, k, k.scheme.input(input))
		if err != nil {
			return nil, err
		}
		if out[i], err = k.scheme.signature(raw); err != nil {
			return nil, errOther.Wrap(err)
		}
	}
	for _, i := range slices.Compact([]int{0, len(inputs) - 1}) {
		if !k.verify(inputs[i], out[i]) {
			return nil, errOther
		}
	}
	return out, nil
}

func (k *key) verify(input, sig []byte) bool {
	if k.scheme.algorithm.Hash() == 0 {
		return k.public.Verify(input, sig, pubkey.ASN1)
	}
	return k.public.VerifyDigest(input, sig, pubkey.ASN1)
}

// digests returns what is signed for each input.
func digests(hash crypto.Hash, inputs [][]byte, prehashed bool) ([][]byte, error) {
	if prehashed {
		for _, in := range inputs {
			if hash == 0 || len(in) != hash.Size() {
				return nil, errPrehashed
			}
		}
		return inputs, nil
	}
	if hash == 0 {
		return inputs, nil
	}
	out, h := make([][]byte, len(inputs)), hash.New()
	for i, in := range inputs {
		h.Reset()
		h.Write(in)
		out[i] = h.Sum(nil)
	}
	return out, nil
}

// encrypt returns ciphertext || tag, and the nonce that the token really took:
// some put in their own.
func (d *device) encrypt(s session, o object, nonce, plaintext, data []byte) (sealed, used []byte, err error) {
	defer d.watch("C_Encrypt", useLimit)()
	p := pkcs11.NewGCMParams(nonce, data, tagSize*8)
	defer p.Free()
	if err := d.module.EncryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, o); err != nil {
		return nil, nil, fmt.Errorf("start encryption: %w", err)
	}
	if sealed, err = d.module.Encrypt(s, plaintext); err != nil {
		return nil, nil, fmt.Errorf("encrypt: %w", err)
	}
	if used = p.IV(); len(used) != nonceSize || len(sealed) != len(plaintext)+tagSize {
		return nil, nil, errOther.Wrap(errors.New("the token's AES-GCM has another form"))
	}
	return sealed, used, nil
}

func (d *device) decrypt(s session, o object, nonce, sealed, data []byte) ([]byte, error) {
	defer d.watch("C_Decrypt", useLimit)()
	p := pkcs11.NewGCMParams(nonce, data, tagSize*8)
	defer p.Free()
	if err := d.module.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, o); err != nil {
		return nil, fmt.Errorf("start decryption: %w", err)
	}
	plaintext, err := d.module.Decrypt(s, sealed)
	return plaintext, wrap("decrypt", err)
}

// sealOne encrypts under a fresh nonce: nonce || ciphertext || tag.
func (d *device) sealOne(s session, o object, plaintext, data []byte) ([]byte, error) {
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // crypto/rand.Read never fails
	sealed, used, err := d.encrypt(s, o, nonce[:], plaintext, data)
	if err != nil {
		return nil, err
	}
	return append(used, sealed...), nil
}

func (c *custodian) sign(req *frames.SignRequest) (resp *frames.SignResponse, err error) {
	err = c.use(req.Use, claviger.Sign, func(s session, k *key) error {
		inputs, err := digests(k.scheme.algorithm.Hash(), req.Inputs, req.Prehashed)
		if err != nil {
			return err
		}
		sigs, err := c.signAll(s, k, inputs)
		resp = &frames.SignResponse{Fingerprint: k.fingerprint, Signatures: sigs}
		return err
	})
	return resp, err
}

func (c *custodian) macs(u frames.Use, inputs [][]byte) (out [][]byte, f claviger.Fingerprint, err error) {
	err = c.use(u, claviger.MAC, func(s session, k *key) error {
		f, out = k.fingerprint, make([][]byte, len(inputs))
		for i, input := range inputs {
			var err error
			if out[i], err = c.signOne(s, k, input); err != nil {
				return err
			}
			if len(out[i]) != k.scheme.algorithm.Hash().Size() {
				return errOther
			}
		}
		return c.recheck(s, k)
	})
	return out, f, err
}

func (c *custodian) computeMAC(req *frames.MACRequest) (*frames.MACResponse, error) {
	out, f, err := c.macs(req.Use, req.Inputs)
	return &frames.MACResponse{Fingerprint: f, MACs: out}, err
}

func (c *custodian) verifyMAC(req *frames.VerifyMACRequest) (*frames.VerifyMACResponse, error) {
	out, f, err := c.macs(req.Use, req.Inputs)
	if err != nil {
		return nil, err
	}
	resp := &frames.VerifyMACResponse{Fingerprint: f, Valid: make([]bool, len(out))}
	for i := range out {
		resp.Valid[i] = subtle.ConstantTimeCompare(out[i], req.MACs[i]) == 1
		clear(out[i]) // the right code of a wrong message is for nobody
	}
	return resp, nil
}

func (c *custodian) seal(req *frames.SealRequest) (resp *frames.SealResponse, err error) {
	err = c.use(req.Use, claviger.Seal, func(s session, k *key) error {
		resp = &frames.SealResponse{Fingerprint: k.fingerprint, Sealed: make([][]byte, len(req.Items))}
		for i, item := range req.Items {
			var err error
			if resp.Sealed[i], err = c.sealOne(s, k.object, item.Plaintext, item.AssociatedData); err != nil {
				return err
			}
		}
		return c.recheck(s, k)
	})
	return resp, err
}

func (c *custodian) open(req *frames.OpenRequest) (resp *frames.OpenResponse, err error) {
	resp = &frames.OpenResponse{Opened: make([]frames.Opened, len(req.Items))}
	for at := 0; at < len(req.Items); {
		// An item that does not open may leave its operation open in the
		// session, which with replaces; then the next goes on.
		err = c.use(req.Use, claviger.Seal, func(s session, k *key) error {
			resp.Fingerprint = k.fingerprint
			for at < len(req.Items) {
				item := req.Items[at]
				if len(item.Sealed) < nonceSize+tagSize {
					at++
					continue
				}
				plaintext, err := c.decrypt(s, k.object, item.Sealed[:nonceSize], item.Sealed[nonceSize:], item.AssociatedData)
				if err != nil {
					return err
				}
				resp.Opened[at] = frames.Opened{OK: true, Plaintext: plaintext}
				at++
			}
			return c.recheck(s, k)
		})
		if !isForged(err) {
			return resp, err
		}
		at++
	}
	// The last did not open: was it for the key or for the text?
	err = c.use(req.Use, claviger.Seal, func(s session, k *key) error {
		resp.Fingerprint = k.fingerprint
		return c.recheck(s, k)
	})
	return resp, err
}

// isForged says that a text did not open. Modules tell it in several ways; that
// the key is as it was is checked apart.
func isForged(err error) bool {
	return slices.Contains([]uint{
		pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, pkcs11.CKR_GENERAL_ERROR,
		pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_SIGNATURE_INVALID, ckrAEADDecryptFailed,
	}, code(err))
}

// ckrAEADDecryptFailed is of PKCS#11 3.0.
const ckrAEADDecryptFailed = 0x42
