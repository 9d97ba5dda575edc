package client

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"io"

	"filippo.io/mldsa"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/pubkey"
)

// Key is a handle of one key in custody. It implements crypto.Signer and
// crypto.MessageSigner for the version that was active when it was opened.
// A Key may be used concurrently.
type Key struct {
	client  *Client
	id      string
	alg     claviger.Algorithm
	version uint32
	public  pubkey.Key
	context *clavigerv1.Context
}

// Key opens a handle by name, former name or id. The caller needs a grant of
// read-key on it.
func (c *Client) Key(ctx context.Context, ref string) (*Key, error) {
	record, err := c.GetKey(ctx, ref)
	if err != nil {
		return nil, err
	}
	k := &Key{client: c, id: record.Id}
	if k.alg, err = claviger.ParseAlgorithm(record.Algorithm); err != nil {
		return nil, claviger.Errorf(claviger.Unsupported, "the key's algorithm is newer than this client", "update the client")
	}
	for _, v := range record.Versions {
		if v.State != string(claviger.Active) {
			continue
		}
		k.version = v.Number
		if k.alg.Asymmetric() {
			if k.public, err = pubkey.Parse(k.alg, v.Public); err != nil {
				return nil, err
			}
		}
	}
	return k, nil
}

// With returns a handle whose uses name an audience and a purpose, which a
// grant may require and which are recorded.
func (k *Key) With(audience, purpose string) *Key {
	copied := *k
	copied.context = &clavigerv1.Context{Audience: audience, Purpose: purpose}
	return &copied
}

// ID returns the key's id, which stays when the key is renamed.
func (k *Key) ID() string { return k.id }

// Algorithm returns the key's algorithm.
func (k *Key) Algorithm() claviger.Algorithm { return k.alg }

// Version returns the number of the version that was active when the handle was
// opened, or 0 when none was.
func (k *Key) Version() uint32 { return k.version }

// PublicKey returns that version's public half: the zero pubkey.Key for a
// symmetric key, or where no version was active.
func (k *Key) PublicKey() pubkey.Key { return k.public }

// Public implements crypto.Signer. It is nil for a symmetric key, or where no
// version was active.
func (k *Key) Public() crypto.PublicKey { return k.public.Std() }

// Signature is what one batch of signatures came with.
type Signature struct {
	Signatures [][]byte
	Version    uint32 // the version that signed
	KID        string // its RFC 7638 thumbprint
}

// SignBatch signs 1 to 1000 messages with the active version. ECDSA signatures
// are written as the encoding says.
func (k *Key) SignBatch(ctx context.Context, messages [][]byte, encoding pubkey.Encoding) (Signature, error) {
	return k.sign(ctx, messages, false, encoding)
}

// SignDigests is SignBatch for digests by the algorithm's hash. Ed25519 and
// ML-DSA-65 sign messages only.
func (k *Key) SignDigests(ctx context.Context, digests [][]byte, encoding pubkey.Encoding) (Signature, error) {
	return k.sign(ctx, digests, true, encoding)
}

func (k *Key) sign(ctx context.Context, inputs [][]byte, prehashed bool, encoding pubkey.Encoding) (Signature, error) {
	answer, err := k.client.Sign(ctx, &clavigerv1.SignRequest{Key: k.id, Inputs: inputs, Prehashed: prehashed, Encoding: encodingOf(encoding), Context: k.context})
	if err != nil {
		return Signature{}, err
	}
	if err := complete(len(answer.Signatures), len(inputs)); err != nil {
		return Signature{}, err
	}
	return Signature{answer.Signatures, answer.Version, answer.Kid}, nil
}

func encodingOf(e pubkey.Encoding) clavigerv1.SignatureEncoding {
	if e == pubkey.P1363 {
		return clavigerv1.SignatureEncoding_SIGNATURE_ENCODING_P1363
	}
	return clavigerv1.SignatureEncoding_SIGNATURE_ENCODING_ASN1
}

// complete refuses an answer with another number of items than the request.
func complete(got, want int) error {
	if got != want {
		return claviger.Errorf(claviger.Internal, "the answer has another number of items than the request", "report this")
	}
	return nil
}

// Sign implements crypto.Signer. The digest is the message itself for Ed25519
// and ML-DSA-65. Options other than the key's own algorithm (another hash,
// padding, salt length or context) are refused: claviger.Unsupported. When the
// key was rotated since the handle was opened, the signature would not verify
// with Public, and the error is claviger.Conflict: open the handle again.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.signOne(digest, k.alg.Hash() != 0, opts)
}

// SignMessage implements crypto.MessageSigner. The message is hashed in
// custody; the options are those of Sign.
func (k *Key) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.signOne(message, false, opts)
}

func (k *Key) signOne(input []byte, prehashed bool, opts crypto.SignerOpts) ([]byte, error) {
	if !k.alg.Asymmetric() || k.version == 0 {
		return nil, claviger.Errorf(claviger.Unsupported, "the key cannot sign", "use an asymmetric key with an active version")
	}
	if err := k.permits(opts); err != nil {
		return nil, err
	}
	if prehashed && len(input) != k.alg.Hash().Size() {
		return nil, claviger.Errorf(claviger.Invalid, "the digest has another length than the algorithm's", "hash the message by the key's algorithm, or use SignMessage")
	}
	// crypto.Signer has no context: the client's timeout bounds the call.
	answer, err := k.sign(context.Background(), [][]byte{input}, prehashed, pubkey.ASN1)
	if err != nil {
		return nil, err
	}
	if answer.Version != k.version || answer.KID != k.public.Thumbprint() {
		return nil, claviger.Errorf(claviger.Conflict, "the key was rotated since its handle was opened", "open the handle again")
	}
	return answer.Signatures[0], nil
}

// permits reports whether the options ask for what the key does.
func (k *Key) permits(opts crypto.SignerOpts) error {
	var hash crypto.Hash
	ok := true
	if opts != nil {
		hash = opts.HashFunc()
	}
	params, isRSA := k.alg.RSA()
	switch o := opts.(type) {
	case *rsa.PSSOptions:
		ok = isRSA && params.PSS && (o.SaltLength == rsa.PSSSaltLengthEqualsHash || o.SaltLength == params.Hash.Size())
	case *ed25519.Options:
		ok = k.alg == claviger.Ed25519 && o.Context == ""
	case *mldsa.Options:
		ok = k.alg == claviger.MLDSA65 && o.Context == ""
	default:
		ok = !isRSA || !params.PSS
	}
	if !ok || hash != k.alg.Hash() {
		return claviger.Errorf(claviger.Unsupported, "the options ask for another algorithm than the key's", "use the hash and padding of the key's algorithm, "+string(k.alg))
	}
	return nil
}

// TLSCertificate returns a certificate for crypto/tls whose key stays in
// custody. The chain is DER, leaf first, and the leaf certifies the key.
func (k *Key) TLSCertificate(chain ...[]byte) (tls.Certificate, error) {
	var scheme tls.SignatureScheme
	params, isRSA := k.alg.RSA()
	switch {
	case k.alg == claviger.Ed25519:
		scheme = tls.Ed25519
	case k.alg == claviger.ECDSAP256:
		scheme = tls.ECDSAWithP256AndSHA256
	case k.alg == claviger.ECDSAP384:
		scheme = tls.ECDSAWithP384AndSHA384
	case isRSA && params.PSS:
		scheme = map[crypto.Hash]tls.SignatureScheme{crypto.SHA256: tls.PSSWithSHA256, crypto.SHA384: tls.PSSWithSHA384, crypto.SHA512: tls.PSSWithSHA512}[params.Hash]
	case isRSA:
		scheme = map[crypto.Hash]tls.SignatureScheme{crypto.SHA256: tls.PKCS1WithSHA256, crypto.SHA384: tls.PKCS1WithSHA384, crypto.SHA512: tls.PKCS1WithSHA512}[params.Hash]
	default:
		return tls.Certificate{}, claviger.Errorf(claviger.Unsupported, "TLS has no signature of the key's algorithm", "use an Ed25519, ECDSA or RSA-PSS key")
	}
	return tls.Certificate{Certificate: chain, PrivateKey: k, SupportedSignatureAlgorithms: []tls.SignatureScheme{scheme}}, nil
}

// Verify reports whether a signature, ECDSA in ASN.1, is of the message by any
// version that may still verify.
func (k *Key) Verify(ctx context.Context, message, signature []byte) (bool, error) {
	verdicts, err := k.VerifyBatch(ctx, []*clavigerv1.Signed{{Input: message, Signature: signature}}, pubkey.ASN1)
	return err == nil && verdicts[0].Valid, err
}

// VerifyBatch verifies 1 to 1000 signatures. The verdicts are in the order of
// the items.
func (k *Key) VerifyBatch(ctx context.Context, items []*clavigerv1.Signed, encoding pubkey.Encoding) ([]*clavigerv1.Verdict, error) {
	answer, err := k.client.Verify(ctx, &clavigerv1.VerifyRequest{Key: k.id, Items: items, Encoding: encodingOf(encoding), Context: k.context})
	if err != nil {
		return nil, err
	}
	return answer.Verdicts, complete(len(answer.Verdicts), len(items))
}

// SignJWT signs a JWT of the claims, a JSON object, under a grant with a JWT
// template, and returns it in compact form. The header is made from the key;
// an empty typ is the template's.
func (k *Key) SignJWT(ctx context.Context, claims []byte, typ string) (string, error) {
	answer, err := k.client.SignStructured(ctx, &clavigerv1.SignStructuredRequest{Key: k.id, Context: k.context, Structure: &clavigerv1.SignStructuredRequest_Jwt{Jwt: &clavigerv1.Jwt{Claims: claims, Type: typ}}})
	if err != nil {
		return "", err
	}
	return string(answer.Signed), nil
}

// SignX509 signs a TBSCertificate, DER, under a grant with an X.509 template,
// and returns the certificate, DER.
func (k *Key) SignX509(ctx context.Context, tbs []byte) ([]byte, error) {
	answer, err := k.client.SignStructured(ctx, &clavigerv1.SignStructuredRequest{Key: k.id, Context: k.context, Structure: &clavigerv1.SignStructuredRequest_X509Tbs{X509Tbs: tbs}})
	if err != nil {
		return nil, err
	}
	return answer.Signed, nil
}

// SignSSH signs an OpenSSH certificate, in wire form without its signature,
// under a grant with an SSH template, and returns the certificate in wire form.
func (k *Key) SignSSH(ctx context.Context, tbs []byte) ([]byte, error) {
	answer, err := k.client.SignStructured(ctx, &clavigerv1.SignStructuredRequest{Key: k.id, Context: k.context, Structure: &clavigerv1.SignStructuredRequest_SshTbs{SshTbs: tbs}})
	if err != nil {
		return nil, err
	}
	return answer.Signed, nil
}

// MAC authenticates 1 to 1000 messages with the active version.
func (k *Key) MAC(ctx context.Context, messages ...[]byte) ([][]byte, error) {
	answer, err := k.client.MAC(ctx, &clavigerv1.MacRequest{Key: k.id, Inputs: messages, Context: k.context})
	if err != nil {
		return nil, err
	}
	return answer.Macs, complete(len(answer.Macs), len(messages))
}

// VerifyMAC reports whether a MAC, in full length, is of the message by any
// version that may still verify.
func (k *Key) VerifyMAC(ctx context.Context, message, mac []byte) (bool, error) {
	answer, err := k.client.VerifyMAC(ctx, &clavigerv1.VerifyMacRequest{Key: k.id, Items: []*clavigerv1.Maced{{Input: message, Mac: mac}}, Context: k.context})
	if err != nil {
		return false, err
	}
	if err := complete(len(answer.Verdicts), 1); err != nil {
		return false, err
	}
	return answer.Verdicts[0].Valid, nil
}

// Seal encrypts a plaintext with the active version and binds it to associated
// data, which may be empty.
func (k *Key) Seal(ctx context.Context, plaintext, associatedData []byte) ([]byte, error) {
	answer, err := k.client.Seal(ctx, &clavigerv1.SealRequest{Key: k.id, Items: []*clavigerv1.Plain{{Plaintext: plaintext, AssociatedData: associatedData}}, Context: k.context})
	if err != nil {
		return nil, err
	}
	if err := complete(len(answer.Sealed), 1); err != nil {
		return nil, err
	}
	return answer.Sealed[0], nil
}

// Open decrypts what Seal made. What is not authentic, or was sealed with other
// associated data, is claviger.Invalid.
func (k *Key) Open(ctx context.Context, sealed, associatedData []byte) ([]byte, error) {
	answer, err := k.client.Open(ctx, &clavigerv1.OpenRequest{Key: k.id, Items: []*clavigerv1.Sealed{{Sealed: sealed, AssociatedData: associatedData}}, Context: k.context})
	if err != nil {
		return nil, err
	}
	if err := complete(len(answer.Items), 1); err != nil {
		return nil, err
	}
	if !answer.Items[0].Ok {
		return nil, claviger.Errorf(claviger.Invalid, "the sealed item is not authentic", "check that it is whole, of this key, and opened with the associated data it was sealed with")
	}
	return answer.Items[0].Plaintext, nil
}
