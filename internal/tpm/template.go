package tpm

import (
	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
)

var (
	errAlgorithm = claviger.Errorf(claviger.Unsupported, "this TPM makes no keys of this algorithm", "see 'claviger doctor' for what it offers, such as ecdsa-p256-sha256")
	errOperation = claviger.Errorf(claviger.Unsupported, "the key's algorithm does not have this operation", "use an operation of the key's algorithm")
)

// attributes are those of every key that is made: made here, never to leave,
// used by authorisation, and outside the lockout, which is for passwords that
// people choose.
func attributes() tpm2.TPMAObject {
	return tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
		UserWithAuth: true, NoDA: true, SignEncrypt: true,
	}
}

// keyTemplate is the public area to make a key of the algorithm with. Its
// scheme confines the key to the algorithm.
func keyTemplate(a claviger.Algorithm) (tpm2.TPMTPublic, error) {
	p := tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes()}
	switch a {
	case claviger.ECDSAP256:
		p.Type, p.Parameters, p.Unique = eccArea(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, nil)
		return p, nil
	case claviger.ECDSAP384:
		p.Type, p.Parameters, p.Unique = eccArea(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384, nil)
		return p, nil
	case claviger.HMACSHA256, claviger.HMACSHA384, claviger.HMACSHA512:
		p.Type = tpm2.TPMAlgKeyedHash
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
			Scheme:  tpm2.TPMAlgHMAC,
			Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: hashOf(a.Hash())}),
		}})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{})
		return p, nil
	}
	params, ok := a.RSA()
	if !ok {
		return p, errAlgorithm
	}
	scheme := tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA}
	if params.PSS {
		scheme.Scheme = tpm2.TPMAlgRSAPSS
		scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: hashOf(params.Hash)})
	} else {
		scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hashOf(params.Hash)})
	}
	p.Type = tpm2.TPMAlgRSA
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}, Scheme: scheme, KeyBits: tpm2.TPMKeyBits(params.Bits),
	})
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	return p, nil
}

// eccArea are the parts of a public area of ECDSA on a curve. unique tells
// primary keys of one template apart.
func eccArea(curve tpm2.TPMECCCurve, hash tpm2.TPMAlgID, unique []byte) (tpm2.TPMAlgID, tpm2.TPMUPublicParms, tpm2.TPMUPublicID) {
	return tpm2.TPMAlgECC,
		tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
			},
			CurveID: curve,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: unique}})
}

// akTemplate is that of the attestation key.
func akTemplate() tpm2.TPMTPublic {
	p := tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes()}
	p.ObjectAttributes.Restricted = true
	p.Type, p.Parameters, p.Unique = eccArea(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, []byte("claviger attestation key"))
	return p
}
