package dpop

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"io"
	"time"

	"claviger.dev"
	"claviger.dev/pubkey"
)

// Signer makes proofs with one key, which may be a handle of a key in custody.
// A Signer may be used concurrently if its key may be.
type Signer struct {
	Now    func() time.Time // time.Now if nil
	Random io.Reader        // of jti; crypto/rand if nil

	key        crypto.Signer
	public     pubkey.Key
	header     string // encoded
	thumbprint string
}

// NewSigner returns a signer by a key and one of the algorithms, or for "" the
// one that fits the key; for RSA that is PS256. An error is a *claviger.Error.
func NewSigner(key crypto.Signer, alg string) (*Signer, error) {
	public, err := standard(alg, key.Public())
	if err != nil {
		return nil, err
	}
	jwk, err := publicMembers(public)
	if err != nil {
		return nil, err
	}
	if alg == "" {
		alg = algorithmOf(public)
	}
	header, err := json.Marshal(struct {
		Typ string          `json:"typ"`
		Alg string          `json:"alg"`
		JWK json.RawMessage `json:"jwk"`
	}{"dpop+jwt", alg, jwk})
	if err != nil {
		return nil, err
	}
	return &Signer{key: key, public: public, header: encode(header), thumbprint: public.Thumbprint()}, nil
}

// Thumbprint is what cnf.jkt of a token has to be for this signer's proofs.
func (s *Signer) Thumbprint() string { return s.thumbprint }

// Claims are what one proof is for.
type Claims struct {
	Method string // of the request, as it is sent
	URL    string // of the request; its query and fragment are left out
	Token  string // the access token that goes with it, if any
	Nonce  string // the newest one that the server gave, if any
}

// Proof makes a proof for one request. Each request needs its own, a repeated
// one too.
func (s *Signer) Proof(c Claims) (string, error) {
	d, err := s.Draft(c)
	if err != nil {
		return "", err
	}
	var opts crypto.SignerOpts = s.public.Algorithm().Hash()
	if params, ok := s.public.Algorithm().RSA(); ok && params.PSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: params.Hash}
	}
	sig, err := crypto.SignMessage(s.key, s.random(), d.ToBeSigned(), opts)
	if err != nil {
		return "", err
	}
	return d.Assemble(sig)
}

// Draft is a proof without its signature, for a key that is asked elsewhere.
type Draft struct {
	input string
	alg   claviger.Algorithm
}

// ToBeSigned is the message that the key signs, not a digest of it.
func (d Draft) ToBeSigned() []byte { return []byte(d.input) }

// Assemble returns the proof with its signature, ECDSA in ASN.1.
func (d Draft) Assemble(sig []byte) (string, error) {
	sig, err := pubkey.ToP1363(d.alg, sig)
	if err != nil {
		return "", err
	}
	return d.input + "." + encode(sig), nil
}

// Draft begins a proof for one request. It asks the key nothing but its public
// half.
func (s *Signer) Draft(c Claims) (Draft, error) {
	target, ok := Target(c.URL)
	if !ok || c.Method == "" {
		return Draft{}, claviger.Errorf(claviger.Invalid, "a proof is for a method and an http or https URL", "give the URL of the request without a user")
	}
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	id := make([]byte, 16)
	if _, err := io.ReadFull(s.random(), id); err != nil {
		return Draft{}, err
	}
	claims := struct {
		JTI   string `json:"jti"`
		HTM   string `json:"htm"`
		HTU   string `json:"htu"`
		IAT   int64  `json:"iat"`
		ATH   string `json:"ath,omitempty"`
		Nonce string `json:"nonce,omitempty"`
	}{JTI: encode(id), HTM: c.Method, HTU: target, IAT: now().Unix(), Nonce: c.Nonce}
	if c.Token != "" {
		claims.ATH = hashOf(c.Token)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return Draft{}, err
	}
	return Draft{input: s.header + "." + encode(payload), alg: s.public.Algorithm()}, nil
}

func (s *Signer) random() io.Reader {
	if s.Random != nil {
		return s.Random
	}
	return rand.Reader
}

// hashOf is ath: the SHA-256 of an access token (RFC 9449, 4.2).
func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return encode(sum[:])
}
