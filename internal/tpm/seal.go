package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/crypto/cryptobyte"

	claviger "claviger.dev"
)

// A sealed blob is sealedMagic, the Name of the storage root key (TPM2B_NAME),
// the number of platform registers, their numbers in ascending order (a byte
// each), and the TPM's public and private areas. The registers are there to be
// named to the TPM; it checks them against the policy of the public area. The
// Name is what the device must have now: the session in which the secret comes
// is salted to that key, and would tell it to who stands before the TPM with a
// key of his own. Blobs of firstMagic have no Name.
const (
	sealedMagic = "claviger tpm sealed 2\x00"
	firstMagic  = "claviger tpm sealed 1\x00"
)

const maxPCR = 23

var errOtherRoot = claviger.Errorf(claviger.Denied, "the TPM's storage root key is not the one that the secret was sealed under",
	"the TPM was cleared or exchanged, or something stands before it: open the root key with another slot, and look into it")

var errSealed = claviger.Errorf(claviger.Invalid, "this is nothing that a TPM sealed for Claviger", "use the blob as it was made")

// Seal encrypts a secret of 32 to 64 bytes so that this TPM alone gives it
// back, and only while the SHA-256 platform registers listed (0 to 23, none
// for no condition) are as they are now.
func (d *Device) Seal(secret []byte, pcrs []uint) ([]byte, error) {
	if len(secret) < 32 || len(secret) > 64 {
		return nil, claviger.Errorf(claviger.Invalid, "a TPM seals 32 to 64 bytes", "seal a key, and encrypt the rest with it")
	}
	pcrs = slices.Compact(slices.Sorted(slices.Values(pcrs)))
	if len(pcrs) > 0 && pcrs[len(pcrs)-1] > maxPCR {
		return nil, claviger.Errorf(claviger.Invalid, "the platform registers are 0 to 23", "name some of those, such as 7 for the boot keys")
	}
	var blob []byte
	err := d.do(func(s *session) error {
		area := tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true, UserWithAuth: len(pcrs) == 0},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
				Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
			}),
			Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
		}
		if len(pcrs) > 0 {
			digest, err := s.policyOf(pcrs)
			if err != nil {
				return err
			}
			area.AuthPolicy.Buffer = digest
		}
		s.evict(slots - 1)
		r, err := tpm2.Create{
			ParentHandle: s.parent(),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
			}},
			InPublic: tpm2.New2B(area),
		}.Execute(s.link)
		if err != nil {
			return fmt.Errorf("seal: %w", err)
		}
		blob = append(append2B([]byte(sealedMagic), s.srk.Name.Buffer), byte(len(pcrs)))
		for _, pcr := range pcrs {
			blob = append(blob, byte(pcr))
		}
		blob = append(append(blob, tpm2.Marshal(r.OutPublic)...), tpm2.Marshal(r.OutPrivate)...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return blob, nil
}

// Unseal returns what Seal encrypted. When the platform registers have changed
// it is claviger.Denied, as when the storage root key is another; a blob of
// another TPM is claviger.Invalid.
func (d *Device) Unseal(blob []byte) (secret []byte, err error) {
	root, pcrs, public, private, err := parseSealed(blob)
	if err != nil {
		return nil, err
	}
	err = d.do(func(s *session) error {
		if root != nil && !bytes.Equal(root, s.srk.Name.Buffer) {
			return errOtherRoot
		}
		s.evict(slots - 1)
		r, err := tpm2.Load{ParentHandle: s.parent(), InPrivate: *private, InPublic: *public}.Execute(s.link)
		if err != nil {
			return fmt.Errorf("load sealed: %w", err)
		}
		out := s.salted(tpm2.AESEncryption(128, tpm2.EncryptOut))
		auth := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, out...)
		if len(pcrs) > 0 {
			auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(t transport.TPM, handle tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
				_, err := tpm2.PolicyPCR{PolicySession: handle, Pcrs: selection(pcrs)}.Execute(t)
				return err
			}, out...)
		}
		u, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: r.ObjectHandle, Name: r.Name, Auth: auth}}.Execute(s.link)
		if err != nil {
			return errors.Join(fmt.Errorf("unseal: %w", err), s.flush(r.ObjectHandle))
		}
		secret = u.OutData.Buffer
		return s.flush(r.ObjectHandle)
	})
	return secret, err
}

// parseSealed takes a blob apart; root is nil where the blob names none.
func parseSealed(blob []byte) (root []byte, pcrs []uint, public *tpm2.TPM2BPublic, private *tpm2.TPM2BPrivate, err error) {
	rest, ok := bytes.CutPrefix(blob, []byte(firstMagic))
	if in, named := bytes.CutPrefix(blob, []byte(sealedMagic)); named {
		named := cryptobyte.String(in)
		var name cryptobyte.String
		if ok = named.ReadUint16LengthPrefixed(&name) && len(name) > 0; ok {
			root, rest = name, named
		}
	}
	if !ok || len(blob) > maxBlob || len(rest) < 1 || int(rest[0]) > maxPCR+1 || len(rest) < 1+int(rest[0]) {
		return nil, nil, nil, nil, errSealed
	}
	for _, pcr := range rest[1 : 1+rest[0]] {
		if pcr > maxPCR || len(pcrs) > 0 && uint(pcr) <= pcrs[len(pcrs)-1] {
			return nil, nil, nil, nil, errSealed
		}
		pcrs = append(pcrs, uint(pcr))
	}
	rest = rest[1+rest[0]:]
	if public, err = tpm2.Unmarshal[tpm2.TPM2BPublic](rest); err != nil {
		return nil, nil, nil, nil, errSealed
	}
	if _, err := public.Contents(); err != nil {
		return nil, nil, nil, nil, errSealed
	}
	head := tpm2.Marshal(public)
	if !bytes.HasPrefix(rest, head) {
		return nil, nil, nil, nil, errSealed
	}
	private, err = tpm2.Unmarshal[tpm2.TPM2BPrivate](rest[len(head):])
	if err != nil || !bytes.Equal(tpm2.Marshal(private), rest[len(head):]) {
		return nil, nil, nil, nil, errSealed
	}
	return root, pcrs, public, private, nil
}

func selection(pcrs []uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...),
	}}}
}

// policyOf asks the TPM for the policy "the registers are as they are now".
func (s *session) policyOf(pcrs []uint) ([]byte, error) {
	trial, end, err := tpm2.PolicySession(s.link, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		return nil, fmt.Errorf("start trial session: %w", err)
	}
	_, err = tpm2.PolicyPCR{PolicySession: trial.Handle(), Pcrs: selection(pcrs)}.Execute(s.link)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("policy of registers: %w", err), end())
	}
	r, err := tpm2.PolicyGetDigest{PolicySession: trial.Handle()}.Execute(s.link)
	if err = errors.Join(err, end()); err != nil {
		return nil, fmt.Errorf("digest of policy: %w", err)
	}
	return r.PolicyDigest.Buffer, nil
}
