// Package attest checks what a TPM 2.0 says of its keys, without a TPM.
//
// It owns the rules by which a key counts as one that cannot leave its TPM,
// the names and public halves of TPM keys, and the challenge that binds an
// attestation key to an endorsement key. It promises that whatever Verify
// accepts was said by the attestation key about that very key, in answer to
// that nonce. It knows no device, keeps nothing, and never takes the word of a
// public area that no TPM has signed.
package attest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/pubkey"
)

// Clock is what a TPM says of its time. Its counters never go backwards in one
// TPM, so they tell a copied or rolled-back state from the original.
type Clock struct {
	Milliseconds uint64 `json:"milliseconds"` // while powered, since the TPM was last cleared
	Resets       uint32 `json:"resets"`       // since the TPM was last cleared
	Restarts     uint32 `json:"restarts"`     // since the last reset
	Safe         bool   `json:"safe"`         // no later clock was ever told
}

// Follows reports whether c can be later than last, or at the same time, in
// one TPM that was not cleared in between.
func (c Clock) Follows(last Clock) bool {
	if c.Resets != last.Resets {
		return c.Resets > last.Resets && (c.Milliseconds >= last.Milliseconds || !c.Safe)
	}
	return c.Restarts >= last.Restarts && c.Milliseconds >= last.Milliseconds
}

// Attested is what a checked attestation says.
type Attested struct {
	Algorithm   claviger.Algorithm
	Public      []byte // raw public key, as package pubkey reads it; empty for a symmetric key
	Fingerprint claviger.Fingerprint
	Name        []byte // TPM 2.0 part 1, 16: of the key,
	AKName      []byte // of the attestation key that said so,
	EKName      []byte // and of the endorsement key that was named with it; only a challenge shows that it is the same TPM's
	Clock       Clock
	Firmware    uint64 // vendor's own numbering
}

func invalid(msg, hint string) error { return claviger.Errorf(claviger.Invalid, msg, hint) }

const (
	hintWeak   = "do not call this key non-extractable: make another through Claviger"
	hintForged = "take no level from this attestation; attest the key again with a fresh nonce"
)

// Verify checks an attestation completely: the attestation key is a restricted
// signing key that cannot leave its TPM; its signature is over a certification
// (magic and type) with this nonce, of this key, whose name is that of its
// public area; and the key was made in the TPM and cannot leave it. The
// endorsement key must have an endorsement key's attributes.
//
// The attestation key's own attributes are what came with it: a TPM, or a
// program, that lies about them can sign anything. That they are true, and that
// the endorsement key is the same TPM's, is for Challenge to show. Errors are
// claviger.Invalid.
func Verify(a frames.AttestResponse, nonce []byte) (Attested, error) {
	var v Attested
	if len(nonce) < 16 || len(nonce) > 64 {
		return v, invalid("a nonce has 16 to 64 bytes", "make one of 32 random bytes")
	}
	key, err := keyOf(a.KeyPublic)
	if err != nil {
		return v, err
	}
	ak, err := akOf(a.AKPublic)
	if err != nil {
		return v, err
	}
	if len(a.EKPublic) > 0 {
		ek, err := ekOf(a.EKPublic)
		if err != nil {
			return v, err
		}
		v.EKName = ek.name
	}
	said, err := certified(a.Attest, a.Signature, ak)
	if err != nil {
		return v, err
	}
	if !bytes.Equal(said.QualifiedSigner.Buffer, qualified(ak)) {
		return v, invalid("the public area of the attestation key is not that of the key which signed, or the key is no primary key of the endorsement hierarchy", hintForged)
	}
	if subtle.ConstantTimeCompare(said.ExtraData.Buffer, nonce) != 1 {
		return v, invalid("the attestation answers another nonce: it is replayed or was made for somebody else", hintForged)
	}
	info, err := said.Attested.Certify()
	if err != nil {
		return v, invalid("the attestation is not a certification of a key", hintForged)
	}
	if !bytes.Equal(info.Name.Buffer, key.name) {
		return v, invalid("the attestation is of another key than the public area that came with it", hintForged)
	}
	v.Algorithm, v.Public, v.Fingerprint = key.algorithm, key.raw, key.fingerprint
	v.Name, v.AKName, v.Firmware = key.name, ak.name, said.FirmwareVersion
	v.Clock = Clock{said.ClockInfo.Clock, said.ClockInfo.ResetCount, said.ClockInfo.RestartCount, bool(said.ClockInfo.Safe)}
	return v, nil
}

// certified checks the signature over a TPMS_ATTEST and its magic and type.
func certified(attest, signature []byte, ak object) (*tpm2.TPMSAttest, error) {
	sig, err := parse[tpm2.TPMTSignature](signature)
	if err != nil {
		return nil, invalid("the attestation's signature cannot be read", hintForged)
	}
	raw, err := Signature(ak.algorithm, sig)
	if err != nil {
		return nil, err
	}
	if !ak.public.Verify(attest, raw, pubkey.ASN1) {
		return nil, invalid("the attestation key did not sign this attestation", hintForged)
	}
	said, err := parse[tpm2.TPMSAttest](attest)
	if err != nil {
		return nil, invalid("the attestation cannot be read", hintForged)
	}
	if said.Magic != tpm2.TPMGeneratedValue || said.Type != tpm2.TPMSTAttestCertify {
		return nil, invalid("what was signed is not a certification made by a TPM", hintForged)
	}
	return said, nil
}

// qualified is the qualified name of a primary key of the endorsement
// hierarchy (TPM 2.0 part 1, 26.5).
func qualified(o object) []byte {
	alg, err := o.area.NameAlg.Hash()
	if err != nil {
		return nil
	}
	h := alg.New()
	h.Write(tpm2.PrimaryHandleName(tpm2.TPMRHEndorsement))
	h.Write(o.name)
	return h.Sum(bytes.Clone(o.name[:2]))
}

// Describe reads the TPMT_PUBLIC of a key of Claviger's: its algorithm, raw
// public key (empty for a symmetric key), fingerprint and name. It judges no
// attribute.
func Describe(public []byte) (a claviger.Algorithm, raw []byte, f claviger.Fingerprint, name []byte, err error) {
	o, err := read(public)
	if err == nil && o.algorithm == "" {
		err = invalid("the TPM key has no algorithm that Claviger offers", "use a key that Claviger made")
	}
	return o.algorithm, o.raw, o.fingerprint, o.name, err
}

// CheckKey returns an error unless the TPMT_PUBLIC is that of a signing or MAC
// key that was made in its TPM and cannot leave it. A public area can claim
// anything: it means something only under a certification.
func CheckKey(public []byte) error {
	_, err := keyOf(public)
	return err
}

// AKName checks the attributes of an attestation key's TPMT_PUBLIC and returns
// its name.
func AKName(public []byte) ([]byte, error) {
	o, err := akOf(public)
	return o.name, err
}

// EKName checks the attributes of an endorsement key's TPMT_PUBLIC and returns
// its name.
func EKName(public []byte) ([]byte, error) {
	o, err := ekOf(public)
	return o.name, err
}

// Challenge encrypts a secret so that only the TPM that holds both the
// endorsement key and the attestation key of that name gives it back
// (TPM2_MakeCredential, in software). Both keys are TPMT_PUBLIC and their
// attributes are checked. credential is a TPM2B_ID_OBJECT and encrypted a
// TPM2B_ENCRYPTED_SECRET, as custody.Client.Activate takes them.
func Challenge(ekPublic, akPublic []byte, secret [32]byte) (credential, encrypted []byte, err error) {
	ak, err := akOf(akPublic)
	if err != nil {
		return nil, nil, err
	}
	ek, err := ekOf(ekPublic)
	if err != nil {
		return nil, nil, err
	}
	to, err := tpm2.ImportEncapsulationKey(ek.area)
	if err != nil {
		return nil, nil, invalid("nothing can be encrypted to the endorsement key", "use a TPM with an endorsement key of P-256 or RSA-2048")
	}
	id, sealed, err := tpm2.CreateCredential(rand.Reader, to, ak.name, secret[:])
	if err != nil {
		return nil, nil, invalid("nothing can be encrypted to the endorsement key", "use a TPM with an endorsement key of P-256 or RSA-2048")
	}
	return tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: id}), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: sealed}), nil
}

// fingerprintOf identifies a symmetric key by its name, which is all that may
// be known of it.
func fingerprintOf(a claviger.Algorithm, name []byte) claviger.Fingerprint {
	return sha256.Sum256(append([]byte("claviger tpm fingerprint 1\x00"+string(a)+"\x00"), name...))
}
