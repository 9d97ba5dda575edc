package tpm

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"

	"claviger.dev/internal/tpm/attest"
)

// The commands that every use makes are written and read here. go-tpm finds
// the form of a command by reflection each time, for which a TPM waits as long
// as for a part of the signature. What the session computes is go-tpm's.

// command has the device do something with a loaded key, which its session
// authorises, and returns the parameters of the response once the session
// vouches for them. They are not encrypted: what is signed and signatures are
// no secrets, and the authorisation does not go over the wire.
func (s *session) command(code tpm2.TPMCC, key tpm2.AuthHandle, parameters []byte) (cryptobyte.String, error) {
	if err := key.Auth.NewNonceCaller(); err != nil {
		return nil, err
	}
	names := []tpm2.TPM2BName{key.Name}
	auth, err := key.Auth.Authorize(code, parameters, nil, names, 0)
	if err != nil {
		return nil, err
	}
	if auth.Attributes != continued {
		return nil, fmt.Errorf("the session of %#x is for one command", key.Handle)
	}
	order := binary.BigEndian
	authSize := 4 + 2 + len(auth.Nonce.Buffer) + 1 + 2 + len(auth.Authorization.Buffer)
	size := 10 + 4 + 4 + authSize + len(parameters)
	b := order.AppendUint16(make([]byte, 0, size), uint16(tpm2.TPMSTSessions))
	b = order.AppendUint32(b, uint32(size))
	b = order.AppendUint32(b, uint32(code))
	b = order.AppendUint32(b, uint32(key.Handle))
	b = order.AppendUint32(b, uint32(authSize))
	b = order.AppendUint32(b, uint32(auth.Handle))
	b = append2B(b, auth.Nonce.Buffer)
	b = append(b, continuedBit)
	b = append2B(b, auth.Authorization.Buffer)
	response, err := s.link.Send(append(b, parameters...))
	if err != nil {
		return nil, err
	}
	return authentic(key.Auth, code, names, response)
}

// continued are the attributes of the session of a key that stays loaded: it
// goes on, and encrypts nothing.
var continued = tpm2.TPMASession{ContinueSession: true}

const continuedBit = 1

// authentic returns the parameters of a response that the session vouches for.
func authentic(session tpm2.Session, code tpm2.TPMCC, names []tpm2.TPM2BName, response []byte) (cryptobyte.String, error) {
	in := cryptobyte.String(response)
	var tag uint16
	var size, rc, length uint32
	var attributes uint8
	var parameters []byte
	var nonce, mac cryptobyte.String
	if !in.ReadUint16(&tag) || !in.ReadUint32(&size) || !in.ReadUint32(&rc) {
		return nil, errForm
	}
	if tpm2.TPMRC(rc) != tpm2.TPMRCSuccess {
		return nil, tpm2.TPMRC(rc)
	}
	if tpm2.TPMST(tag) != tpm2.TPMSTSessions || !in.ReadUint32(&length) || !in.ReadBytes(&parameters, int(length)) ||
		!in.ReadUint16LengthPrefixed(&nonce) || !in.ReadUint8(&attributes) || attributes != continuedBit ||
		!in.ReadUint16LengthPrefixed(&mac) || !in.Empty() {
		return nil, errForm
	}
	err := session.Validate(tpm2.TPMRCSuccess, code, parameters, names, 0, &tpm2.TPMSAuthResponse{
		Nonce: tpm2.TPM2BNonce{Buffer: nonce}, Attributes: continued, Authorization: tpm2.TPM2BData{Buffer: mac},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	return parameters, nil
}

// errForm is of a response that no TPM gives, so there is none at the other end.
var errForm = fmt.Errorf("%w: a response of another form", errLost)

// append2B appends what stands behind its size in two bytes.
func append2B(b, value []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(value))), value...)
}

func (s *session) sign(k *Key, digest []byte) ([]byte, error) {
	handle, err := s.use(k)
	if err != nil {
		return nil, err
	}
	order := binary.BigEndian
	b := append2B(make([]byte, 0, 80), digest)
	b = order.AppendUint16(b, uint16(tpm2.TPMAlgNull)) // the key's own scheme
	b = order.AppendUint16(b, uint16(tpm2.TPMSTHashCheck))
	b = order.AppendUint32(b, uint32(tpm2.TPMRHNull))
	b = append2B(b, nil) // no proof that the TPM hashed it
	r, err := s.command(tpm2.TPMCCSign, handle, b)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	signature, err := parseSignature(r)
	if err != nil {
		return nil, err
	}
	return attest.Signature(k.Algorithm, signature)
}

// parseSignature reads a TPMT_SIGNATURE.
func parseSignature(in cryptobyte.String) (*tpm2.TPMTSignature, error) {
	var scheme, hash uint16
	var first, second cryptobyte.String
	if !in.ReadUint16(&scheme) || !in.ReadUint16(&hash) || !in.ReadUint16LengthPrefixed(&first) {
		return nil, errForm
	}
	sig := &tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgID(scheme)}
	rsa := tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgID(hash), Sig: tpm2.TPM2BPublicKeyRSA{Buffer: first}}
	switch sig.SigAlg {
	case tpm2.TPMAlgECDSA:
		if !in.ReadUint16LengthPrefixed(&second) {
			return nil, errForm
		}
		sig.Signature = tpm2.NewTPMUSignature(sig.SigAlg, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgID(hash),
			SignatureR: tpm2.TPM2BECCParameter{Buffer: first}, SignatureS: tpm2.TPM2BECCParameter{Buffer: second},
		})
	case tpm2.TPMAlgRSASSA:
		sig.Signature = tpm2.NewTPMUSignature(sig.SigAlg, &rsa)
	case tpm2.TPMAlgRSAPSS:
		sig.Signature = tpm2.NewTPMUSignature(sig.SigAlg, &rsa)
	default:
		return nil, errForm
	}
	if !in.Empty() {
		return nil, errForm
	}
	return sig, nil
}
