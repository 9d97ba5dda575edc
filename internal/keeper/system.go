package keeper

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

// The system keys. They do not pass the door: their callers are the few
// functions here, and their uses are counted and recorded in aggregate, so
// that neither a full disk nor a flood of handshakes stops the server from
// saying that it is unavailable.
const (
	caKey         claviger.Name = policy.SystemEnvironment + "/claviger/ca"
	tlsKey        claviger.Name = policy.SystemEnvironment + "/claviger/tls"
	checkpointKey claviger.Name = policy.SystemEnvironment + "/claviger/checkpoint"
	evidenceKey   claviger.Name = policy.SystemEnvironment + "/claviger/evidence"
	issuedKey     claviger.Name = policy.SystemEnvironment + "/claviger/issued-tokens"
)

// caMeta is where the store has the CA's certificate, DER.
const caMeta = "ca-certificate"

// caLifetime is how long the CA's certificate is valid.
const caLifetime = 10 * 365 * 24 * time.Hour

// systemDeadline bounds a use of a system key, which has no context of its own.
const systemDeadline = 5 * time.Second

// system holds the system keys and the certificates of the server.
type system struct {
	k          *Keeper
	ca         *systemKey
	tls        *systemKey
	checkpoint *systemKey
	evidence   *systemKey
	caCert     *x509.Certificate
	caPin      [32]byte

	mu           sync.Mutex // guards the certificates
	leaf         *tls.Certificate
	evidenceLeaf *x509.Certificate
}

// systemKey is a key that is used without a permit. It is a crypto.Signer.
type systemKey struct {
	k    *Keeper
	name claviger.Name

	mu    sync.Mutex // guards state
	state *keyState
}

// openSystem takes the system keys from the store, or makes them. Two servers
// that start at once on one store agree on the first one's.
func (k *Keeper) openSystem(ctx context.Context) error {
	s := &system{k: k}
	k.system = s
	var err error
	if s.ca, err = k.systemKey(ctx, caKey, claviger.ECDSAP256, s.makeCA); err != nil {
		return err
	}
	if s.tls, err = k.systemKey(ctx, tlsKey, claviger.ECDSAP256, nil); err != nil {
		return err
	}
	if s.checkpoint, err = k.systemKey(ctx, checkpointKey, claviger.Ed25519, nil); err != nil {
		return err
	}
	// Not Ed25519, which hashes the message itself: a statement about ten
	// thousand versions is larger than a frame.
	if s.evidence, err = k.systemKey(ctx, evidenceKey, claviger.ECDSAP256, nil); err != nil {
		return err
	}
	var der []byte
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		der, err = tx.Meta(caMeta)
		return err
	})
	if err != nil {
		return fmt.Errorf("read CA certificate: %w", err)
	}
	if s.caCert, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("parse CA certificate: %w", err)
	}
	s.caPin = pinOf(s.caCert.RawSubjectPublicKeyInfo)
	return s.renewLeaf(ctx)
}

// systemKey returns a system key, made at first start. more writes what goes
// with it in the same transaction.
func (k *Keeper) systemKey(ctx context.Context, name claviger.Name, alg claviger.Algorithm, more func(context.Context, *store.Tx, *keyState) error) (*systemKey, error) {
	s := &systemKey{k: k, name: name}
	err := s.load(ctx)
	if errors.Is(err, claviger.NotFound) {
		if err = k.makeSystemKey(ctx, name, alg, more); err == nil || errors.Is(err, claviger.Conflict) {
			err = s.load(ctx)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("system key %s: %w", name, err)
	}
	return s, nil
}

func (k *Keeper) makeSystemKey(ctx context.Context, name claviger.Name, alg claviger.Algorithm, more func(context.Context, *store.Tx, *keyState) error) error {
	key, err := k.newKey(CreateKey{Name: string(name), Algorithm: string(alg), Owner: "claviger"})
	if err != nil {
		return err
	}
	var made custody.Made
	return k.commit(ctx, k.self(), change{
		action: "key.create", stub: &key,
		prepare: func(ctx context.Context, _ claviger.Key) (err error) {
			made, err = k.cfg.Custodian.Generate(ctx, bindingOf(&key, 1, claviger.Generated))
			return err
		},
		apply: func(tx *store.Tx, e *effect) error {
			v := newVersion(1, claviger.Generated, made, key.Created)
			move(&v, claviger.Active, key.Created, "", "created")
			whole := key
			whole.Versions = []claviger.Version{v}
			e.record.Version, e.record.Fingerprint = 1, v.Fingerprint
			if err := tx.InsertKey(whole); err != nil {
				return err
			}
			if more != nil {
				if err := more(ctx, tx, newKeyState(whole, map[uint32][]byte{1: made.Blob})); err != nil {
					return err
				}
			}
			return tx.PutBlob(key.ID, 1, made.Generation, made.Blob)
		},
	}, nil, nil)
}

// makeCA makes the CA's self-signed certificate.
func (s *system) makeCA(_ context.Context, tx *store.Tx, state *keyState) error {
	signer := &systemKey{k: s.k, name: caKey, state: state}
	now := s.k.cfg.Now().UTC()
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "Claviger CA " + string(state.key.ID[:10])},
		URIs:      []*url.URL{{Scheme: "spiffe", Host: s.k.cfg.TrustDomain}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLifetime),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return fmt.Errorf("sign CA certificate: %w", err)
	}
	return tx.PutMeta(caMeta, der)
}

// certify signs a certificate with the CA's key. Its callers record it.
func (s *system) certify(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, s.caCert, public, s.ca)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return der, nil
}

func (s *system) rootsDER() [][]byte { return [][]byte{s.caCert.Raw} }

// Roots returns the CA's certificates, to verify clients against.
func (k *Keeper) Roots() []*x509.Certificate { return []*x509.Certificate{k.system.caCert} }

// ServerCertificate returns the server's own certificate, with the CA's after
// it so that a client that enrols can check its pin. The private key is in
// custody.
func (k *Keeper) ServerCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.system.mu.Lock()
	defer k.system.mu.Unlock()
	if k.system.leaf == nil {
		return nil, claviger.Errorf(claviger.Unavailable, "the server has no certificate", "look at the server's log")
	}
	return k.system.leaf, nil
}

// renewLeaf issues the server's certificate anew when a third of its life or
// less is left, or when the clock stands before it.
func (s *system) renewLeaf(ctx context.Context) error {
	now := s.k.cfg.Now().UTC()
	s.mu.Lock()
	leaf := s.leaf
	s.mu.Unlock()
	if leaf != nil && !now.Before(leaf.Leaf.NotBefore) && leaf.Leaf.NotAfter.Sub(now) > s.k.cfg.Leaf/3 {
		return nil
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "claviger"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(s.k.cfg.Leaf),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, name := range s.k.cfg.Names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := s.certify(template, s.tls.Public())
	if err != nil {
		return err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("parse server certificate: %w", err)
	}
	r := s.k.newRecord(s.k.self(), "system.certificate")
	addDetailText(r, "serial", serialText(template.SerialNumber))
	if err := s.k.handled.add(ctx, *r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaf = &tls.Certificate{Certificate: [][]byte{der, s.caCert.Raw}, PrivateKey: s.tls, Leaf: parsed}
	return nil
}

// evidenceLifetime is how long the certificate of the key that signs
// statements is valid, at most. A statement says when it was made.
const evidenceLifetime = 365 * 24 * time.Hour

// documentSigning is the extended key usage of RFC 9336. It sets the key that
// signs statements apart from those of principals and of the server.
func documentSigning() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 36}
}

// evidenceChain returns the certificate of the key that signs statements and
// the CA's, DER. It is issued at first use, and anew when half its life is over.
func (s *system) evidenceChain(ctx context.Context) ([][]byte, error) {
	now := s.k.cfg.Now().UTC()
	s.mu.Lock()
	leaf := s.evidenceLeaf
	s.mu.Unlock()
	if leaf != nil && !now.Before(leaf.NotBefore) && leaf.NotAfter.Sub(now) > evidenceLifetime/2 {
		return [][]byte{leaf.Raw, s.caCert.Raw}, nil
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "claviger evidence"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(evidenceLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{documentSigning()}, BasicConstraintsValid: true,
	}
	if template.NotAfter.After(s.caCert.NotAfter) {
		template.NotAfter = s.caCert.NotAfter
	}
	der, err := s.certify(template, s.evidence.Public())
	if err != nil {
		return nil, err
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse evidence certificate: %w", err)
	}
	r := s.k.newRecord(s.k.self(), "system.certificate")
	addDetailText(r, "serial", serialText(template.SerialNumber))
	if err := s.k.handled.add(ctx, *r); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evidenceLeaf = leaf
	return [][]byte{der, s.caCert.Raw}, nil
}

// evidenceSigner returns the key that signs statements, with its chain.
func (s *system) evidenceSigner(ctx context.Context) (Signer, error) {
	chain, err := s.evidenceChain(ctx)
	if err != nil {
		return Signer{}, err
	}
	return Signer{Chain: chain, Sign: func(message []byte) ([]byte, error) {
		digest := sha256.Sum256(message)
		return s.evidence.Sign(nil, digest[:], crypto.SHA256)
	}}, nil
}

// load reads the key and its blob.
func (s *systemKey) load(ctx context.Context) error {
	var state *keyState
	err := s.k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		key, err := tx.Key(string(s.name))
		if err != nil {
			return err
		}
		blob, _, err := tx.Blob(key.ID, 1)
		state = newKeyState(key, map[uint32][]byte{1: blob})
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
	return nil
}

func (s *systemKey) current() (*keyState, *claviger.Version, custody.Material) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &s.state.key.Versions[0]
	return s.state, v, custody.Material{
		Binding: bindingOf(s.state.key, v.Number, v.Origin), Blob: s.state.blobs[v.Number], Fingerprint: v.Fingerprint,
	}
}

// Public implements crypto.Signer.
func (s *systemKey) Public() crypto.PublicKey {
	state, v, _ := s.current()
	half, _, err := state.public(v)
	if err != nil {
		return nil // a damaged public half: whoever signs with it finds out
	}
	return half.Std()
}

// Sign implements crypto.Signer for digests, and for messages where the
// algorithm takes them.
func (s *systemKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), systemDeadline)
	defer cancel()
	state, v, m := s.current()
	prehashed := state.key.Algorithm.Hash() != 0
	if prehashed && opts.HashFunc() != state.key.Algorithm.Hash() {
		return nil, claviger.Errorf(claviger.Invalid, "the digest is by another hash than the key's", "negotiate the key's own hash")
	}
	signatures, err := s.answer(ctx, m, 1, func(m custody.Material) ([][]byte, error) {
		return s.k.cfg.Custodian.Sign(ctx, m, [][]byte{digest}, prehashed)
	})
	if err != nil {
		return nil, err
	}
	return signatures[0], s.handled(ctx, ask{op: claviger.Sign, count: 1, digest: digestOf(digest)}, state, v)
}

// answer asks the custodian, and once more with a blob that was wrapped anew
// meanwhile, by this server or another.
func (s *systemKey) answer(ctx context.Context, m custody.Material, n int, do func(custody.Material) ([][]byte, error)) ([][]byte, error) {
	out, err := do(m)
	if err != nil {
		if s.load(ctx) != nil {
			return nil, err
		}
		_, _, fresh := s.current()
		if bytes.Equal(fresh.Blob, m.Blob) {
			return nil, err
		}
		if out, err = do(fresh); err != nil {
			return nil, err
		}
	}
	return out, checkAnswers(len(out), n)
}

// handled counts and records a use.
func (s *systemKey) handled(ctx context.Context, a ask, state *keyState, v *claviger.Version) error {
	s.k.counts.addSystem(state.key.ID, v.Number, s.k.cfg.Now())
	by := s.k.self()
	r := s.k.useRecord(&by, &a, state.key)
	r.Version, r.Fingerprint = v.Number, v.Fingerprint
	return s.k.handled.add(ctx, r)
}

// mac authenticates inputs with a system key that is an HMAC's.
func (s *systemKey) mac(ctx context.Context, inputs [][]byte) ([][]byte, error) {
	state, v, m := s.current()
	macs, err := s.answer(ctx, m, len(inputs), func(m custody.Material) ([][]byte, error) { return s.k.cfg.Custodian.MAC(ctx, m, inputs) })
	if err != nil {
		return nil, err
	}
	return macs, s.handled(ctx, ask{op: claviger.MAC, count: len(inputs), digest: digestOf()}, state, v)
}

// sign signs a message. Whoever calls it records it.
func (s *systemKey) sign(ctx context.Context, message []byte) ([]byte, error) {
	_, _, m := s.current()
	signatures, err := s.answer(ctx, m, 1, func(m custody.Material) ([][]byte, error) {
		return s.k.cfg.Custodian.Sign(ctx, m, [][]byte{message}, false)
	})
	if err != nil {
		return nil, err
	}
	return signatures[0], nil
}

// verify checks a signature by the key's public half.
func (s *systemKey) verify(message, signature []byte) bool {
	state, v, _ := s.current()
	half, _, err := state.public(v)
	return err == nil && half.Verify(message, signature, pubkey.ASN1)
}
