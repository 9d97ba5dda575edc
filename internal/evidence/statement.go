package evidence

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

// The types that statements name (in-toto Statement v1, DSSE v1).
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://claviger.dev/evidence/v1"
	PayloadType   = "application/vnd.in-toto+json"
)

// MaxStatement is the most bytes of a statement's file: base64 of a run and of
// its subjects.
const MaxStatement = 2 * MaxRun

// Statement is what is signed: an in-toto Statement v1 about every version of
// a run, in the order of its results.
type Statement struct {
	Type          string    `json:"_type"`
	Subject       []Digests `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     *Run      `json:"predicate"`
}

// Digests is a subject of a statement: a version such as "prod/app/x#3" and
// its fingerprint. For an asymmetric key that is the SHA-256 of the algorithm's
// name, a zero byte and the raw public key.
type Digests struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// Envelope is a DSSE envelope with one signature.
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []Signature `json:"signatures"`
}

// Signature is a signature by ECDSA P-256 with SHA-256, in DER, or by Ed25519,
// with the certificates that say whose it is: DER, the signer's first, without
// the root.
type Signature struct {
	KeyID string   `json:"keyid"` // SHA-256 of the signer's public key (PKIX, DER), hex
	Sig   []byte   `json:"sig"`
	X5C   [][]byte `json:"x5c"`
}

// Statement returns the payload of the statement that a judged run makes: what
// is to be signed is its PAE.
func (r *Run) Statement() ([]byte, error) {
	if _, err := r.Encode(); err != nil {
		return nil, err
	}
	return json.Marshal(Statement{Type: StatementType, Subject: r.subjects(), PredicateType: PredicateType, Predicate: r})
}

func (r *Run) subjects() []Digests {
	out := make([]Digests, len(r.Results))
	for i, res := range r.Results {
		out[i] = Digests{Name: res.String(), Digest: map[string]string{"sha256": res.Fingerprint}}
	}
	return out
}

// PAE returns the bytes that a DSSE signature is over: the pre-authentication
// encoding of PayloadType and a payload (DSSE v1, protocol.md).
func PAE(payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(PayloadType), PayloadType, len(payload)), payload...)
}

// Envelop returns the file of a statement: its payload, the signature over its
// PAE, and the certificates of the signer, DER, the signer's first.
func Envelop(payload, signature []byte, chain ...[]byte) ([]byte, error) {
	if len(chain) == 0 {
		return nil, invalid("a statement needs the certificate of its signer")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("parse certificate of the signer: %w", err)
	}
	return json.Marshal(Envelope{PayloadType: PayloadType, Payload: payload, Signatures: []Signature{{KeyID: keyID(leaf), Sig: signature, X5C: chain}}})
}

func keyID(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// documentSigning is id-kp-documentSigning (RFC 9336, section 3.1). It tells
// the signer of statements from every other holder of a certificate of the CA.
func documentSigning() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 36}
}

// SignerTemplate is the certificate of a signer of statements: for document
// signing and nothing else.
func SignerTemplate(serial *big.Int, from, to time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "claviger evidence"}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{documentSigning()}, BasicConstraintsValid: true,
	}
}

// Open reads the file of a statement and checks what needs no clock and no
// opinion but the roots: form, signature, and that the signer may sign. What
// the statement says may still be more than it shows: see Verify. It returns
// the chain of the signer, the root last.
func Open(file []byte, roots *x509.CertPool) (*Run, []*x509.Certificate, error) {
	if len(file) > MaxStatement {
		return nil, nil, claviger.Errorf(claviger.TooLarge, fmt.Sprintf("the file has more than %d bytes", MaxStatement), "give the file of one statement")
	}
	var compact bytes.Buffer // a statement may have been indented on its way
	if err := json.Compact(&compact, file); err != nil {
		return nil, nil, invalid("the file is not JSON: %v", err)
	}
	var e Envelope
	if err := strictly(compact.Bytes(), MaxStatement, &e); err != nil {
		return nil, nil, err
	}
	if e.PayloadType != PayloadType || len(e.Signatures) != 1 {
		return nil, nil, invalid("a payload of type %.80q with %d signatures, not %s with one", e.PayloadType, len(e.Signatures), PayloadType)
	}
	var s Statement
	if err := strictly(e.Payload, MaxStatement, &s); err != nil {
		return nil, nil, err
	}
	if s.Type != StatementType || s.PredicateType != PredicateType || s.Predicate == nil {
		return nil, nil, invalid("a %.80q with a predicate of type %.80q", s.Type, s.PredicateType)
	}
	if err := s.Predicate.check(); err != nil {
		return nil, nil, err
	}
	same := func(a, b Digests) bool {
		return a.Name == b.Name && len(a.Digest) == 1 && a.Digest["sha256"] == b.Digest["sha256"]
	}
	if !slices.EqualFunc(s.Subject, s.Predicate.subjects(), same) {
		return nil, nil, invalid("its subjects are not the versions that it speaks of")
	}
	chain, err := e.Signatures[0].check(PAE(e.Payload), roots, s.Predicate.Finished)
	return s.Predicate, chain, err
}

// check returns the chain of the signer, the root last.
func (s Signature) check(signed []byte, roots *x509.CertPool, at time.Time) ([]*x509.Certificate, error) {
	if len(s.X5C) == 0 || len(s.X5C) > 4 {
		return nil, invalid("%d certificates beside the signature, of 1 to 4", len(s.X5C))
	}
	between := x509.NewCertPool()
	var leaf *x509.Certificate
	for i, der := range s.X5C {
		c, err := x509.ParseCertificate(der)
		switch {
		case err != nil:
			return nil, invalid("a certificate beside the signature cannot be read")
		case i == 0:
			leaf = c
		default:
			between.AddCert(c)
		}
	}
	if s.KeyID != keyID(leaf) {
		return nil, invalid("the certificate is not of the key that the signature names")
	}
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) > 0 ||
		len(leaf.UnknownExtKeyUsage) != 1 || !leaf.UnknownExtKeyUsage[0].Equal(documentSigning()) {
		return nil, denied("the certificate of the signer is not for signing statements", "the statement may be forged by somebody who holds another certificate of the same authority: ask its server for it again")
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, denied("the certificate of the signer leads to none of the roots, or was not valid when the run ended", "give the CA of the server that made the statement: 'claviger server info'").Wrap(err)
	}
	if !signs(leaf, signed, s.Sig) {
		return nil, denied("the signature does not fit the statement", "it was changed after it was signed: ask its server for it again")
	}
	return chains[0], nil
}

// signs reports whether a signature is one of the certificate's key.
func signs(leaf *x509.Certificate, signed, sig []byte) bool {
	switch public := leaf.PublicKey.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(public, signed, sig)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(signed)
		return public.Curve == elliptic.P256() && ecdsa.VerifyASN1(public, digest[:], sig)
	}
	return false
}

// denied is the refusal of a statement that is well formed.
func denied(msg, hint string) *claviger.Error {
	return claviger.Errorf(claviger.Denied, "evidence: "+strings.TrimSpace(msg), hint)
}
