package attest

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
	"claviger.dev/pubkey"
)

// maxStructure is the most bytes of a structure from outside.
const maxStructure = 4096

// object is a public area that was read. algorithm, raw and public are zero
// for a key that does nothing Claviger offers.
type object struct {
	area        *tpm2.TPMTPublic
	name        []byte
	algorithm   claviger.Algorithm
	raw         []byte
	public      pubkey.Key // zero for a symmetric key
	fingerprint claviger.Fingerprint
}

// parse reads a structure that has exactly one encoding: this.
func parse[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](b []byte) (*T, error) {
	if len(b) > maxStructure {
		return nil, errors.New("the structure is too large")
	}
	v, err := tpm2.Unmarshal[T, P](b)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(P(v)), b) {
		return nil, errors.New("the structure has another encoding")
	}
	return v, nil
}

func read(public []byte) (o object, err error) {
	unreadable := invalid("the TPM key's public area cannot be read", "send the TPMT_PUBLIC as the TPM gave it")
	if o.area, err = parse[tpm2.TPMTPublic](public); err != nil {
		return o, unreadable
	}
	if o.area.NameAlg != tpm2.TPMAlgSHA256 && o.area.NameAlg != tpm2.TPMAlgSHA384 {
		return o, invalid("the TPM key's name is not by SHA-256 or SHA-384", "use a key that Claviger made")
	}
	name, err := tpm2.ObjectName(o.area)
	if err != nil {
		return o, unreadable
	}
	o.name = name.Buffer
	if o.algorithm, o.raw, err = halves(o.area); err != nil || o.algorithm == "" {
		return o, err
	}
	if !o.algorithm.Asymmetric() {
		o.fingerprint = fingerprintOf(o.algorithm, o.name)
		return o, nil
	}
	if o.public, err = pubkey.Parse(o.algorithm, o.raw); err != nil {
		return o, err
	}
	o.fingerprint = o.public.Fingerprint()
	return o, nil
}

// halves returns the algorithm that a key is confined to by its scheme, "" for
// none of Claviger's, and its raw public key.
func halves(p *tpm2.TPMTPublic) (claviger.Algorithm, []byte, error) {
	switch p.Type {
	case tpm2.TPMAlgECC:
		parms, err := p.Parameters.ECCDetail()
		if err != nil {
			return "", nil, err
		}
		point, err := p.Unique.ECC()
		if err != nil {
			return "", nil, err
		}
		return ecc(parms, point)
	case tpm2.TPMAlgRSA:
		parms, err := p.Parameters.RSADetail()
		if err != nil {
			return "", nil, err
		}
		modulus, err := p.Unique.RSA()
		if err != nil {
			return "", nil, err
		}
		return rsaHalves(parms, modulus)
	case tpm2.TPMAlgKeyedHash:
		parms, err := p.Parameters.KeyedHashDetail()
		if err != nil {
			return "", nil, err
		}
		if parms.Scheme.Scheme != tpm2.TPMAlgHMAC {
			return "", nil, nil
		}
		scheme, err := parms.Scheme.Details.HMAC()
		if err != nil {
			return "", nil, err
		}
		return map[tpm2.TPMAlgID]claviger.Algorithm{
			tpm2.TPMAlgSHA256: claviger.HMACSHA256, tpm2.TPMAlgSHA384: claviger.HMACSHA384, tpm2.TPMAlgSHA512: claviger.HMACSHA512,
		}[scheme.HashAlg], nil, nil
	}
	return "", nil, nil
}

func ecc(parms *tpm2.TPMSECCParms, point *tpm2.TPMSECCPoint) (claviger.Algorithm, []byte, error) {
	if parms.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return "", nil, nil
	}
	scheme, err := parms.Scheme.Details.ECDSA()
	if err != nil {
		return "", nil, err
	}
	var a claviger.Algorithm
	size := 0
	switch {
	case parms.CurveID == tpm2.TPMECCNistP256 && scheme.HashAlg == tpm2.TPMAlgSHA256:
		a, size = claviger.ECDSAP256, 32
	case parms.CurveID == tpm2.TPMECCNistP384 && scheme.HashAlg == tpm2.TPMAlgSHA384:
		a, size = claviger.ECDSAP384, 48
	default:
		return "", nil, nil
	}
	raw := make([]byte, 1+2*size)
	raw[0] = 4 // uncompressed
	if len(point.X.Buffer) > size || len(point.Y.Buffer) > size {
		return "", nil, invalid("the TPM key's point is too long", "send the TPMT_PUBLIC as the TPM gave it")
	}
	copy(raw[1+size-len(point.X.Buffer):], point.X.Buffer)
	copy(raw[1+2*size-len(point.Y.Buffer):], point.Y.Buffer)
	return a, raw, nil
}

func rsaHalves(parms *tpm2.TPMSRSAParms, modulus *tpm2.TPM2BPublicKeyRSA) (claviger.Algorithm, []byte, error) {
	var padding string
	var hash tpm2.TPMAlgID
	switch parms.Scheme.Scheme {
	case tpm2.TPMAlgRSAPSS:
		s, err := parms.Scheme.Details.RSAPSS()
		if err != nil {
			return "", nil, err
		}
		padding, hash = "pss", s.HashAlg
	case tpm2.TPMAlgRSASSA:
		s, err := parms.Scheme.Details.RSASSA()
		if err != nil {
			return "", nil, err
		}
		padding, hash = "pkcs1", s.HashAlg
	default:
		return "", nil, nil
	}
	name := map[tpm2.TPMAlgID]string{tpm2.TPMAlgSHA256: "sha256", tpm2.TPMAlgSHA384: "sha384", tpm2.TPMAlgSHA512: "sha512"}[hash]
	a, err := claviger.ParseAlgorithm(fmt.Sprintf("rsa-%d-%s-%s", parms.KeyBits, padding, name))
	if err != nil {
		return "", nil, nil
	}
	e := 65537 // what 0 stands for
	if parms.Exponent != 0 {
		e = int(parms.Exponent)
	}
	return a, x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus.Buffer), E: e}), nil
}

// Signature returns the signature of a key of the algorithm as Claviger has
// it: DER for ECDSA, the bytes for RSA.
func Signature(a claviger.Algorithm, s *tpm2.TPMTSignature) ([]byte, error) {
	wrong := invalid("the TPM's signature is of another algorithm than the key", hintForged)
	params, isRSA := a.RSA()
	switch {
	case s.SigAlg == tpm2.TPMAlgECDSA && (a == claviger.ECDSAP256 || a == claviger.ECDSAP384):
		sig, err := s.Signature.ECDSA()
		if err != nil || !sameHash(a, sig.Hash) {
			return nil, wrong
		}
		return asn1.Marshal(struct{ R, S *big.Int }{
			new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
		})
	case isRSA && params.PSS && s.SigAlg == tpm2.TPMAlgRSAPSS:
		sig, err := s.Signature.RSAPSS()
		if err != nil || !sameHash(a, sig.Hash) {
			return nil, wrong
		}
		return sig.Sig.Buffer, nil
	case isRSA && !params.PSS && s.SigAlg == tpm2.TPMAlgRSASSA:
		sig, err := s.Signature.RSASSA()
		if err != nil || !sameHash(a, sig.Hash) {
			return nil, wrong
		}
		return sig.Sig.Buffer, nil
	}
	return nil, wrong
}

func sameHash(a claviger.Algorithm, id tpm2.TPMAlgID) bool {
	h, err := id.Hash()
	return err == nil && h == a.Hash()
}

// bound returns an error unless a key was made in its TPM and cannot leave it.
// fixedParent alone says nothing, nor does sensitiveDataOrigin: both are true
// of keys that left with their parent or came in by import.
func bound(what string, a tpm2.TPMAObject) error {
	switch {
	case !a.FixedTPM:
		return invalid("the "+what+" may leave its TPM: fixedTPM is not set", hintWeak)
	case !a.FixedParent:
		return invalid("the "+what+" may be moved: fixedParent is not set", hintWeak)
	case !a.SensitiveDataOrigin:
		return invalid("the "+what+" was not made in the TPM: sensitiveDataOrigin is not set", hintWeak)
	}
	return nil
}

func keyOf(public []byte) (object, error) {
	o, err := read(public)
	if err != nil {
		return o, err
	}
	a := o.area.ObjectAttributes
	if err := bound("key", a); err != nil {
		return o, err
	}
	if o.algorithm == "" || !a.SignEncrypt || a.Decrypt || a.Restricted {
		return o, invalid("the key is not confined to one algorithm of Claviger's", "make the key through Claviger")
	}
	return o, nil
}

func akOf(public []byte) (object, error) {
	o, err := read(public)
	if err != nil {
		return o, err
	}
	a := o.area.ObjectAttributes
	if err := bound("attestation key", a); err != nil {
		return o, err
	}
	if !a.Restricted {
		return o, invalid("the attestation key is not restricted, so it signs forged attestations as well", hintForged)
	}
	if !a.SignEncrypt || a.Decrypt || !o.algorithm.Asymmetric() || o.algorithm == "" {
		return o, invalid("the attestation key is not a signing key", hintForged)
	}
	return o, nil
}

func ekOf(public []byte) (object, error) {
	o, err := read(public)
	if err != nil {
		return o, err
	}
	a := o.area.ObjectAttributes
	if err := bound("endorsement key", a); err != nil {
		return o, err
	}
	if !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return o, invalid("the endorsement key is not a restricted decryption key", "use the TPM's own endorsement key")
	}
	return o, nil
}
