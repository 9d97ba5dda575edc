package main_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"
)

// cmdClaims writes the claims of a JWT that is valid for a minute:
// claims FILE NAME=VALUE...
func cmdClaims(ts *testscript.TestScript, _ bool, args []string) {
	now := time.Now().Unix()
	claims := map[string]any{"iat": now, "exp": now + 60}
	for _, arg := range args[1:] {
		name, value, _ := strings.Cut(arg, "=")
		claims[name] = value
	}
	text, err := json.Marshal(claims)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), text, 0o600))
}

// cmdX509TBS writes a TBSCertificate that is to be signed by an ECDSA P-256
// key: x509tbs FILE ISSUER-CN SUBJECT-CN DNS-NAME
func cmdX509TBS(ts *testscript.TestScript, _ bool, args []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	now := time.Now()
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: args[2]}, DNSNames: args[3:],
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: args[1]}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, key.Public(), key)
	ts.Check(err)
	cert, err := x509.ParseCertificate(der)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), cert.RawTBSCertificate, 0o600))
}

// cmdSSHTBS writes an OpenSSH certificate without its signature:
// sshtbs FILE AUTHORITY-LINE-FILE KEY-ID PRINCIPAL...
func cmdSSHTBS(ts *testscript.TestScript, _ bool, args []string) {
	authority, _, _, _, err := ssh.ParseAuthorizedKey([]byte(ts.ReadFile(args[1])))
	ts.Check(err)
	public, _, err := ed25519.GenerateKey(rand.Reader)
	ts.Check(err)
	subject, err := ssh.NewPublicKey(public)
	ts.Check(err)
	now := time.Now()
	cert := &ssh.Certificate{
		Nonce: bytes.Repeat([]byte{7}, 32), Key: subject, CertType: ssh.UserCert, KeyId: args[2], ValidPrincipals: args[3:],
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": ""}}, SignatureKey: authority,
	}
	whole := cert.Marshal()
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), whole[:len(whole)-4], 0o600)) // less the empty signature's length
}

// cmdAgeKey writes an age identity and its recipient: agekey IDENTITY RECIPIENT
func cmdAgeKey(ts *testscript.TestScript, _ bool, args []string) {
	id, err := age.GenerateX25519Identity()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(id.String()+"\n"), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(id.Recipient().String()+"\n"), 0o600))
}
