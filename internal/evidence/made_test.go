package evidence_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"claviger.dev"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/tpm/attest"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// must returns a value that cannot be missing in a test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(name string) authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour * 24 * 365),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, t, t, key.Public(), key))
	return authority{must(x509.ParseCertificate(der)), key}
}

func (a authority) issue(t *x509.Certificate, public crypto.PublicKey) []byte {
	return must(x509.CreateCertificate(rand.Reader, t, a.cert, public, a.key))
}

func (a authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// signer is a server's key for statements.
type signer struct {
	key  ed25519.PrivateKey
	cert []byte
}

func newSigner(ca authority, change func(*x509.Certificate)) signer {
	public, key, _ := ed25519.GenerateKey(rand.Reader)
	t := evidence.SignerTemplate(big.NewInt(2), now.Add(-time.Hour), now.Add(24*time.Hour))
	if change != nil {
		change(t)
	}
	return signer{key, ca.issue(t, public)}
}

// sign makes the file of any payload.
func (s signer) sign(payload []byte) []byte {
	return must(evidence.Envelop(payload, ed25519.Sign(s.key, evidence.PAE(payload)), s.cert))
}

// withECDSA makes the file as a server does, whose key is of P-256.
func (w *world) withECDSA() []byte {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	payload := must(w.run.Statement())
	digest := sha256.Sum256(evidence.PAE(payload))
	cert := w.ca.issue(evidence.SignerTemplate(big.NewInt(4), now.Add(-time.Hour), now.Add(time.Hour)), key.Public())
	return must(evidence.Envelop(payload, must(ecdsa.SignASN1(rand.Reader, key, digest[:])), cert))
}

// chip is a TPM as a verifier sees one: two keys and what they sign.
type chip struct {
	ak     *ecdsa.PrivateKey
	akArea tpm2.TPMTPublic
	ekArea tpm2.TPMTPublic
	ekCert []byte
}

var fixed = tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true}

func area(key *ecdsa.PublicKey, attributes tpm2.TPMAObject, scheme bool) tpm2.TPMTPublic {
	raw := must(key.Bytes())
	parms := tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}, KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull}}
	if scheme {
		parms.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}
	}
	return tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &parms),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: raw[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: raw[33:]}})}
}

func newChip(maker authority) *chip {
	ak, ek := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	sign, decrypt := fixed, fixed
	sign.Restricted, sign.SignEncrypt = true, true
	decrypt.Restricted, decrypt.Decrypt = true, true
	t := &x509.Certificate{SerialNumber: big.NewInt(3), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageKeyAgreement, BasicConstraintsValid: true}
	return &chip{ak, area(&ak.PublicKey, sign, true), area(&ek.PublicKey, decrypt, false), maker.issue(t, ek.Public())}
}

func (c *chip) report() evidence.Report {
	return evidence.Report{Device: claviger.Device{Kind: claviger.TPM, Manufacturer: "MAKR", Model: "chip"}, Level: claviger.Hardware,
		AKPublic: tpm2.Marshal(c.akArea), EKPublic: tpm2.Marshal(c.ekArea), EKCertificates: [][]byte{c.ekCert}, Bound: true}
}

// certify answers a nonce about a key.
func (c *chip) certify(key tpm2.TPMTPublic, nonce []byte) *evidence.Attestation {
	name := must(tpm2.ObjectName(&c.akArea)).Buffer
	primary := sha256.Sum256(append(tpm2.PrimaryHandleName(tpm2.TPMRHEndorsement), name...)) // TPM 2.0 part 1, 26.5
	said := tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, ExtraData: tpm2.TPM2BData{Buffer: nonce},
		QualifiedSigner: tpm2.TPM2BName{Buffer: append(name[:2:2], primary[:]...)},
		Attested:        tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: *must(tpm2.ObjectName(&key))})})
	digest := sha256.Sum256(said)
	r, s, err := ecdsa.Sign(rand.Reader, c.ak, digest[:])
	if err != nil {
		panic(err)
	}
	signature := tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256,
		SignatureR: tpm2.TPM2BECCParameter{Buffer: r.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s.Bytes()}})}
	return &evidence.Attestation{KeyPublic: tpm2.Marshal(key), Attest: said, Signature: tpm2.Marshal(signature)}
}

// tpmKey is a version in a chip; weak leaves it free to leave.
func tpmKey(weak bool) tpm2.TPMTPublic {
	attributes := fixed
	attributes.SignEncrypt = true
	if weak {
		attributes.FixedTPM = false
	}
	return area(&must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).PublicKey, attributes, true)
}

// newRun is a run over three soft versions and one in the chip.
func newRun(c *chip, key tpm2.TPMTPublic) *evidence.Run {
	nonce := make([]byte, evidence.NonceSize)
	_, _ = rand.Read(nonce)
	r := &evidence.Run{ID: claviger.NewID(now), Nonce: nonce, Started: now.Add(-time.Minute), Finished: now.Add(-30 * time.Second),
		Host: evidence.Host{Name: "host", Kernel: "6.18", Arch: "amd64", UID: 1000}, By: "operator",
		Reports: []evidence.Report{{Device: claviger.Device{Kind: claviger.Soft, Software: true}, Level: claviger.Isolated}, c.report()},
		Groups: []evidence.Group{
			{About: "the key process", Attempts: []claviger.Attempt{{Probe: "soft.proc-mem", Tried: "read /proc/PID/mem", Result: "permission denied", Control: "read 4096 bytes", Verdict: claviger.Held}}},
			{About: "tpm keys", Attempts: []claviger.Attempt{{Probe: "tpm.duplicate", Tried: "TPM2_Duplicate", Result: "TPM_RC_ATTRIBUTES", Control: "gave the scalar", Verdict: claviger.Held}}},
		},
		Scope: []string{"the data directory"},
	}
	for i := range 3 {
		r.Results = append(r.Results, evidence.Result{Groups: []int{0}, Reported: claviger.Isolated, Subject: evidence.Subject{Name: claviger.Name(fmt.Sprintf("prod/app/k%d", i)), KeyID: claviger.NewID(now), Version: 1,
			Algorithm: claviger.Ed25519, Custodian: claviger.Soft, Origin: claviger.Generated, Fingerprint: hex.EncodeToString(must(sha256Of(i)))}})
	}
	alg, _, fingerprint, name, err := attest.Describe(tpm2.Marshal(key))
	if err != nil {
		panic(err)
	}
	res := evidence.Result{Groups: []int{1}, Reported: claviger.Hardware, Subject: evidence.Subject{Name: "prod/app/tpm", KeyID: claviger.NewID(now), Version: 2,
		Algorithm: alg, Custodian: claviger.TPM, Origin: claviger.Generated, Fingerprint: fingerprint.String(), Reference: hex.EncodeToString(name)}}
	res.Attestation = c.certify(key, evidence.Challenge(nonce, res.KeyID, res.Version))
	r.Results = append(r.Results, res)
	return r
}

func sha256Of(i int) ([]byte, error) {
	sum := sha256.Sum256(fmt.Append(nil, i))
	return sum[:], nil
}

// world is everything that a statement needs.
type world struct {
	ca, maker authority
	signer    signer
	chip      *chip
	key       tpm2.TPMTPublic
	run       *evidence.Run
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{ca: newAuthority("Claviger CA"), maker: newAuthority("Maker Root")}
	w.signer, w.chip, w.key = newSigner(w.ca, nil), newChip(w.maker), tpmKey(false)
	w.run = newRun(w.chip, w.key)
	w.judge(false)
	return w
}

func (w *world) roots(test bool) evidence.DeviceRoots {
	return evidence.DeviceRoots{{Certificate: w.maker.cert, Test: test}}
}

func (w *world) judge(test bool) {
	w.run.Judge(func(res *evidence.Result, rep *evidence.Report) evidence.Proof {
		return res.Prove(w.run, rep, w.roots(test))
	})
}

// file makes the statement of the run as it is now, whether or not it is true.
func (w *world) file() []byte { return w.signer.sign(must(w.run.Statement())) }

func (w *world) options() evidence.Options {
	return evidence.Options{Roots: w.ca.pool(), Devices: w.roots(false), Now: now}
}
