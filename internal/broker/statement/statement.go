// Package statement owns what a session's key may sign, and how that is built.
//
// It promises that a session's key signs nothing but statements that were built
// here from a structured request, never a digest or bytes of a caller, and that
// no statement can be taken for one of another kind. It must never sign by
// itself, and knows no routes.
package statement

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/keeper"
	"claviger.dev/pubkey"
)

// Lifetimes of what a session signs.
const (
	assertionLifetime = time.Minute
	statementLifetime = 5 * time.Minute
	maxLifetime       = time.Hour
	maxClaims         = 8 << 10 // bytes of a caller's own claims
	maxText           = 2 << 10 // bytes of a URL, a token's nonce, a key
	maxToken          = 16 << 10
)

// Signer is the door, as far as a session's key is concerned.
type Signer interface {
	SignForSession(ctx context.Context, by claviger.Principal, id claviger.ID, st keeper.SessionStatement) (keeper.SessionSigned, error)
	Session(ctx context.Context, by claviger.Principal, id claviger.ID) (claviger.Session, error)
}

// Request is what a session is asked to sign. Exactly one member is set.
type Request struct {
	Proof     *Proof
	Assertion *Assertion
	Token     *Token
	SSH       *SSH
}

// Proof asks for a DPoP proof (RFC 9449, section 4.2).
type Proof struct{ Method, URL, AccessToken, Nonce string }

// Assertion asks for a client assertion (RFC 7523, section 3) of the session's
// client, a minute long. Its typ is that of draft-ietf-oauth-rfc7523bis.
type Assertion struct{ Audience string }

// Token asks for a JWT of the session's subject.
type Token struct {
	Audience string
	Claims   []byte        // further claims, a JSON object of at most 8 KiB
	Lifetime time.Duration // 5 minutes when zero, at most an hour and the session's own
}

// SSH asks for an OpenSSH user certificate for one login name, by the session's
// key as the authority. Its audience, for the limits, is "ssh:" and the name.
type SSH struct {
	PublicKey string // in the form of authorized_keys
	Login     string
	Lifetime  time.Duration // as in Token
}

// Statement is what the session's key is to sign, and how the whole is made.
type Statement struct {
	keeper.SessionStatement
	assemble func(signature []byte) (string, error)
}

// Sign builds what is asked for, has the session's key sign it, and returns
// the whole: a compact JWS, or a line of a -cert.pub file.
func Sign(ctx context.Context, door Signer, by claviger.Principal, id claviger.ID, r Request, source claviger.Source, now time.Time) (string, error) {
	session, err := door.Session(ctx, by, id)
	if err != nil {
		return "", err
	}
	st, err := Build(session, r, now, rand.Reader)
	if err != nil {
		return "", err
	}
	st.Source = source
	signed, err := door.SignForSession(ctx, by, id, st.SessionStatement)
	if err != nil {
		return "", err
	}
	return st.assemble(signed.Signature)
}

// Build makes the statement of a request. It is pure but for the randomness.
func Build(s claviger.Session, r Request, now time.Time, random io.Reader) (Statement, error) {
	key, err := pubkey.FromSPKI(s.Algorithm, s.Public)
	if err != nil {
		return Statement{}, err
	}
	b := builder{session: s, key: key, now: now, random: random}
	switch {
	case r.Proof != nil && r.Assertion == nil && r.Token == nil && r.SSH == nil:
		return b.proof(*r.Proof)
	case r.Assertion != nil && r.Proof == nil && r.Token == nil && r.SSH == nil:
		return b.assertion(*r.Assertion)
	case r.Token != nil && r.Proof == nil && r.Assertion == nil && r.SSH == nil:
		return b.token(*r.Token)
	case r.SSH != nil && r.Proof == nil && r.Assertion == nil && r.Token == nil:
		return b.ssh(*r.SSH)
	}
	return Statement{}, bad("a session signs exactly one statement at a time", "send a proof, an assertion, a token or an SSH certificate request")
}

type builder struct {
	session claviger.Session
	key     pubkey.Key
	now     time.Time
	random  io.Reader
}

func bad(msg, hint string) error { return claviger.Errorf(claviger.Invalid, msg, hint) }

// publicKey is the session's key as far as the builders of other packages need
// it: its public half.
type publicKey struct{ pubkey.Key }

// Public implements crypto.Signer.
func (k publicKey) Public() crypto.PublicKey { return k.Std() }

// Sign implements crypto.Signer, and refuses: the door signs.
func (publicKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("a session's key is asked at the door")
}

func (b builder) proof(r Proof) (Statement, error) {
	if len(r.URL) > maxText || len(r.Nonce) > maxText || len(r.Method) > 32 || len(r.AccessToken) > maxToken {
		return Statement{}, claviger.Errorf(claviger.TooLarge, "the request of a proof is too long", "send a URL and a nonce of at most 2 KiB and a token of at most 16 KiB")
	}
	target, ok := dpop.Target(r.URL)
	if !ok {
		return Statement{}, bad("a proof is for an http or https URL", "give the URL of the request without a user")
	}
	signer, err := dpop.NewSigner(publicKey{b.key}, "")
	if err != nil {
		return Statement{}, err
	}
	signer.Now, signer.Random = func() time.Time { return b.now }, b.random
	draft, err := signer.Draft(dpop.Claims{Method: r.Method, URL: r.URL, Token: r.AccessToken, Nonce: r.Nonce})
	if err != nil {
		return Statement{}, err
	}
	return Statement{
		SessionStatement: keeper.SessionStatement{Kind: "dpop", Audience: target, Method: r.Method, ToBeSigned: draft.ToBeSigned()},
		assemble:         draft.Assemble,
	}, nil
}

func (b builder) assertion(r Assertion) (Statement, error) {
	client := string(b.session.Client)
	return b.jws("assertion", "client-authentication+jwt", r.Audience, map[string]any{
		"iss": client, "sub": client, "aud": r.Audience, "exp": b.now.Add(assertionLifetime).Unix(),
	})
}

func (b builder) token(r Token) (Statement, error) {
	ends, err := b.ends(r.Lifetime)
	if err != nil {
		return Statement{}, err
	}
	claims := map[string]any{}
	if len(r.Claims) > 0 {
		if len(r.Claims) > maxClaims {
			return Statement{}, claviger.Errorf(claviger.TooLarge, "the claims are larger than 8 KiB", "send fewer")
		}
		if err := json.Unmarshal(r.Claims, &claims); err != nil || claims == nil {
			return Statement{}, bad("the claims are not a JSON object", "send such as {\"order\": 7}")
		}
	}
	// What has a meaning to those who check proofs, assertions, access tokens and
	// events is not a caller's to set.
	// Some readers do not tell upper from lower case, and the last member wins.
	for _, name := range []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid", "cnf", "act", "client_id", "scope", "htm", "htu", "ath", "nonce", "events", "sub_id"} {
		for claim := range claims {
			if strings.EqualFold(claim, name) {
				return Statement{}, bad("the claim "+name+" is the server's to set", "leave it out")
			}
		}
	}
	claims["iss"], claims["sub"], claims["aud"] = string(b.session.Client), b.session.Subject.ID, r.Audience
	claims["exp"], claims["sid"] = ends.Unix(), string(b.session.ID)
	return b.jws("jwt", "claviger-session+jwt", r.Audience, claims)
}

// ends is when something that the session signs ends.
func (b builder) ends(lifetime time.Duration) (time.Time, error) {
	if lifetime == 0 {
		lifetime = statementLifetime
	}
	if lifetime < 0 || lifetime > maxLifetime {
		return time.Time{}, bad("a lifetime is negative or over an hour", "use a shorter one")
	}
	if ends := b.now.Add(lifetime); ends.Before(b.session.Ends) {
		return ends, nil
	}
	return b.session.Ends, nil
}

// jws begins a compact JWS (RFC 7515, section 7.1). Its typ sets it apart from
// every other kind.
func (b builder) jws(kind, typ, audience string, claims map[string]any) (Statement, error) {
	if audience == "" || len(audience) > claviger.MaxAudienceLength {
		return Statement{}, bad("a statement is for an audience of 1 to 512 bytes", "name one")
	}
	id := make([]byte, 16)
	if _, err := io.ReadFull(b.random, id); err != nil {
		return Statement{}, err
	}
	encode := base64.RawURLEncoding.EncodeToString
	claims["jti"], claims["iat"] = encode(id), b.now.Unix()
	header, err := json.Marshal(map[string]string{"alg": pubkey.JWSAlgorithm(b.key.Algorithm()), "typ": typ, "kid": b.session.JKT})
	if err != nil {
		return Statement{}, err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return Statement{}, err
	}
	input := encode(header) + "." + encode(payload)
	return Statement{
		SessionStatement: keeper.SessionStatement{Kind: kind, Audience: audience, ToBeSigned: []byte(input)},
		assemble: func(signature []byte) (string, error) {
			signature, err := pubkey.ToP1363(b.key.Algorithm(), signature)
			return input + "." + encode(signature), err
		},
	}, nil
}

func (b builder) ssh(r SSH) (Statement, error) {
	ends, err := b.ends(r.Lifetime)
	if err != nil {
		return Statement{}, err
	}
	if len(r.PublicKey) > maxText || len(r.Login) == 0 || len(r.Login) > 64 || strings.ContainsAny(r.Login, " ,\t\n*?!") {
		return Statement{}, bad("an SSH certificate is for one key and one login name of at most 64 bytes", "name one, without patterns")
	}
	key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(r.PublicKey))
	if err != nil || len(strings.TrimSpace(string(rest))) > 0 {
		return Statement{}, bad("the public key is not a line of authorized_keys", "send the content of a .pub file")
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return Statement{}, bad("the public key is a certificate already", "send the key itself")
	}
	authority, err := ssh.NewPublicKey(b.key.Std())
	if err != nil {
		return Statement{}, claviger.Errorf(claviger.Unsupported, "the session's key is of no kind that SSH has", "open a session with ed25519 or ecdsa-p256-sha256").Wrap(err)
	}
	nonce := make([]byte, 32)
	if _, err := io.ReadFull(b.random, nonce); err != nil {
		return Statement{}, err
	}
	cert := &ssh.Certificate{
		Nonce: nonce, Key: key, CertType: ssh.UserCert, KeyId: "session " + string(b.session.ID), ValidPrincipals: []string{r.Login},
		ValidAfter: uint64(b.now.Add(-time.Minute).Unix()), ValidBefore: uint64(ends.Unix()), SignatureKey: authority,
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": ""}},
	}
	whole := cert.Marshal()
	return Statement{
		SessionStatement: keeper.SessionStatement{Kind: "ssh", Audience: "ssh:" + r.Login, ToBeSigned: whole[:len(whole)-4]}, // without the empty signature
		assemble: func(signature []byte) (string, error) {
			blob, err := sshSignature(b.key.Algorithm(), signature)
			cert.Signature = &ssh.Signature{Format: authority.Type(), Blob: blob}
			return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(cert)), "\n"), err
		},
	}, nil
}

// sshSignature is a signature as SSH has it (RFC 5656, section 3.1.2; RFC 8709,
// section 6).
func sshSignature(alg claviger.Algorithm, signature []byte) ([]byte, error) {
	if alg != claviger.ECDSAP256 {
		return signature, nil
	}
	plain, err := pubkey.ToP1363(alg, signature)
	if err != nil {
		return nil, err
	}
	return ssh.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(plain[:32]), new(big.Int).SetBytes(plain[32:])}), nil
}
