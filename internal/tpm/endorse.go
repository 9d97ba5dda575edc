package tpm

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

// The places of endorsement keys (TCG EK credential profile, 2.2.1.4 and
// 2.2.1.5) and of certificates above theirs (2.2.1.5.2).
const (
	rsaEKCertificate = 0x01C00002
	eccEKCertificate = 0x01C0000A
	chainFirst       = 0x01C00100
	chainLast        = 0x01C001FF
	rsaEK            = tpm2.TPMHandle(0x81010001)
	eccEK            = tpm2.TPMHandle(0x81010002)
	maxCertificate   = 8 << 10 // bytes in one index
)

// Attest has the attestation key certify that the key is in this TPM, with its
// attributes, in answer to a nonce of 16 to 64 bytes.
func (d *Device) Attest(k *Key, nonce []byte) (a frames.AttestResponse, err error) {
	if len(nonce) < 16 || len(nonce) > 64 {
		return a, claviger.Errorf(claviger.Invalid, "a nonce has 16 to 64 bytes", "make one of 32 random bytes")
	}
	err = d.do(func(s *session) error {
		a, err = s.attest(k, nonce)
		return err
	})
	return a, err
}

func (s *session) attest(k *Key, nonce []byte) (a frames.AttestResponse, err error) {
	a.KeyPublic = k.Area
	if err := s.endorsement(&a.AKPublic, &a.EKPublic, &a.EKCertificates); err != nil {
		return a, err
	}
	ak, _, err := s.ak()
	if err != nil {
		return a, err
	}
	handle, err := s.use(k)
	if err != nil {
		return a, err
	}
	r, err := tpm2.Certify{
		ObjectHandle: handle, SignHandle: ak,
		QualifyingData: tpm2.TPM2BData{Buffer: nonce}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(s.link)
	if err != nil {
		return a, fmt.Errorf("certify: %w", err)
	}
	a.Attest, a.Signature = r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature)
	return a, nil
}

// Endorse returns the attestation key, the endorsement key and its
// certificates. It prefers an endorsement key that has a certificate.
func (d *Device) Endorse() (e frames.EndorseResponse, err error) {
	err = d.do(func(s *session) error {
		e = frames.EndorseResponse{}
		return s.endorsement(&e.AKPublic, &e.EKPublic, &e.EKCertificates)
	})
	return e, err
}

func (s *session) endorsement(akPublic, ekPublic *[]byte, certificates *[][]byte) error {
	_, ak, err := s.ak()
	if err != nil {
		return err
	}
	if s.ekArea == nil {
		ek, err := s.ek()
		if err != nil {
			return err
		}
		defer ek.release()
	}
	*akPublic, *ekPublic, *certificates = tpm2.Marshal(ak), s.ekArea, s.ekChain
	return nil
}

// Activate opens what was encrypted to the endorsement key and the name of the
// attestation key: a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET. It refuses
// any secret but one of 32 bytes.
func (d *Device) Activate(credential, encrypted []byte) (secret []byte, err error) {
	bad := claviger.Errorf(claviger.Invalid, "the challenge is not for this TPM and its attestation key", "ask for a new challenge with what this TPM says of itself now")
	id, err := tpm2.Unmarshal[tpm2.TPM2BIDObject](credential)
	if err != nil || len(credential) != len(id.Buffer)+2 {
		return nil, bad
	}
	sealed, err := tpm2.Unmarshal[tpm2.TPM2BEncryptedSecret](encrypted)
	if err != nil || len(encrypted) != len(sealed.Buffer)+2 {
		return nil, bad
	}
	err = d.do(func(s *session) error {
		ak, _, err := s.ak()
		if err != nil {
			return err
		}
		ek, err := s.ek()
		if err != nil {
			return err
		}
		defer ek.release()
		r, err := tpm2.ActivateCredential{
			ActivateHandle: ak,
			KeyHandle: tpm2.AuthHandle{Handle: ek.handle.Handle, Name: ek.handle.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, ekPolicy,
				s.salted(tpm2.AESEncryption(128, tpm2.EncryptOut))...)},
			CredentialBlob: *id, Secret: *sealed,
		}.Execute(s.link)
		if errors.Is(err, errLost) || errors.Is(err, tpm2.TPMRCLockout) {
			return err
		}
		if err != nil {
			return bad.Wrap(err)
		}
		secret = r.CertInfo.Buffer
		return nil
	})
	if err == nil && len(secret) != 32 {
		return nil, bad
	}
	return secret, err
}

// ekPolicy satisfies the policy of the endorsement key templates: whoever may
// use the endorsement hierarchy.
func ekPolicy(t transport.TPM, handle tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: handle, NonceTPM: nonce}.Execute(t)
	return err
}

// endorser is the endorsement key in the device.
type endorser struct {
	handle  tpm2.NamedHandle
	release func()
}

// ek finds the endorsement key, or makes it in a slot that release empties. The
// same TPM makes the same one for ever.
func (s *session) ek() (endorser, error) {
	certificate, template, place := eccEKCertificate, tpm2.ECCEKTemplate, eccEK
	leaf, err := s.readNV(eccEKCertificate)
	if err != nil {
		return endorser{}, err
	}
	if leaf == nil {
		if leaf, err = s.readNV(rsaEKCertificate); err != nil {
			return endorser{}, err
		}
		if leaf != nil {
			certificate, template, place = rsaEKCertificate, tpm2.RSAEKTemplate, rsaEK
		}
	}
	ek, area, err := s.endorsementKey(template, place)
	if err != nil {
		return endorser{}, fmt.Errorf("endorsement key of %#x: %w", certificate, err)
	}
	if s.ekArea == nil {
		chain, err := s.chain(leaf)
		if err != nil {
			ek.release()
			return endorser{}, err
		}
		s.ekArea, s.ekChain = area, chain
	}
	return ek, nil
}

// endorsementKey takes the persistent key if it is of the template, or else
// makes one.
func (s *session) endorsementKey(template tpm2.TPMTPublic, place tpm2.TPMHandle) (endorser, []byte, error) {
	public, name, err := s.readPublic(place)
	if err == nil && public.Type == template.Type && public.ObjectAttributes == template.ObjectAttributes &&
		string(public.AuthPolicy.Buffer) == string(template.AuthPolicy.Buffer) {
		return endorser{tpm2.NamedHandle{Handle: place, Name: name}, func() {}}, tpm2.Marshal(public), nil
	}
	if err != nil && !errors.Is(err, tpm2.TPMRCHandle) {
		return endorser{}, nil, err
	}
	s.evict(slots - 1)
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(s.link)
	if err != nil {
		return endorser{}, nil, fmt.Errorf("make: %w", err)
	}
	return endorser{tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, func() { _ = s.flush(r.ObjectHandle) }}, r.OutPublic.Bytes(), nil
}

// chain returns the certificates of the endorsement key, leaf first.
func (s *session) chain(leaf []byte) ([][]byte, error) {
	if leaf == nil {
		return nil, nil
	}
	all := [][]byte{leaf}
	indices, err := s.handles(chainFirst)
	if err != nil {
		return nil, err
	}
	for _, index := range indices {
		if index > chainLast {
			break
		}
		more, err := s.readNV(index)
		if err != nil {
			return nil, err
		}
		for len(more) > 0 { // one certificate may follow another
			der, rest, ok := cutDER(more)
			if !ok {
				break
			}
			all, more = append(all, der), rest
		}
	}
	return all, nil
}

// cutDER cuts one certificate off; what follows it may be filling.
func cutDER(b []byte) (der, rest []byte, ok bool) {
	var raw asn1.RawValue
	rest, err := asn1.Unmarshal(b, &raw)
	if err != nil {
		return nil, nil, false
	}
	if _, err := x509.ParseCertificate(raw.FullBytes); err != nil {
		return nil, nil, false
	}
	return raw.FullBytes, rest, true
}

// readNV reads a certificate from an index that anybody may read, or returns
// nil when there is none.
func (s *session) readNV(index tpm2.TPMHandle) ([]byte, error) {
	p, err := tpm2.NVReadPublic{NVIndex: index}.Execute(s.link)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read NV index %#x: %w", index, err)
	}
	public, err := p.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("read NV index %#x: %w", index, err)
	}
	if public.DataSize > maxCertificate || !public.Attributes.Written || !public.Attributes.AuthRead {
		return nil, nil
	}
	at := tpm2.NamedHandle{Handle: index, Name: p.NVName}
	var data []byte
	for offset := uint16(0); offset < public.DataSize; {
		n := min(public.DataSize-offset, 512)
		r, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: p.NVName, Auth: tpm2.PasswordAuth(nil)}, NVIndex: at, Size: n, Offset: offset,
		}.Execute(s.link)
		if err != nil {
			return nil, fmt.Errorf("read NV index %#x: %w", index, err)
		}
		data, offset = append(data, r.Data.Buffer...), offset+n
	}
	if index > chainLast || index < chainFirst { // of a single certificate; what follows is filling
		der, _, ok := cutDER(data)
		if !ok {
			return nil, nil
		}
		return der, nil
	}
	return data, nil
}
