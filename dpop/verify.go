package dpop

import (
	"context"
	"crypto/subtle"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger.dev/pubkey"
)

// Verifier checks proofs. The zero value of each field is usable, but without
// Replays a proof is good again and again for as long as its time lasts, so
// that Check refuses to work without them. A Verifier may be used concurrently.
type Verifier struct {
	Algorithms []string         // that are accepted; empty: those of Algorithms
	MaxAge     time.Duration    // how old a proof may be; 0: one minute
	Skew       time.Duration    // by how much clocks may differ, either way; 0: ten seconds
	Nonces     *Nonces          // nil: none is asked for
	NonceClock bool             // a nonce that holds stands for iat, so that a client's clock may be wrong
	Replays    Replays          // the proofs that were used
	Now        func() time.Time // time.Now if nil

	mu    sync.Mutex
	known map[string]header // by the encoded header, of proofs that were accepted
}

// maxKnown is how many headers a Verifier keeps: a client's is the same in each
// of its proofs, and reading it costs about as much as all the rest but the
// signature.
const maxKnown = 1024

// header is what the header of a proof says.
type header struct {
	key        pubkey.Key
	thumbprint string
}

// Request is what a proof is checked against.
type Request struct {
	Proofs     []string // every DPoP field of the request
	Method     string
	URL        string // as the client knows it: the public one, in front of every proxy
	Token      string // the access token that came with it; "" at a token endpoint
	Thumbprint string // of the key that the token is bound to (cnf.jkt); needed with Token
}

func (v *Verifier) now() time.Time {
	if v.Now != nil {
		return v.Now()
	}
	return time.Now()
}

func (v *Verifier) algorithms() []string {
	if len(v.Algorithms) > 0 {
		return v.Algorithms
	}
	return Algorithms()
}

func (v *Verifier) window() (age, skew time.Duration) {
	age, skew = v.MaxAge, v.Skew
	if age == 0 {
		age = time.Minute
	}
	if skew == 0 {
		skew = 10 * time.Second
	}
	return age, skew
}

// Check makes the twelve checks of RFC 9449, 4.3, in the order in which they
// are cheap, and at the very end records that the proof was used. Every error
// is an *Error.
func (v *Verifier) Check(ctx context.Context, req Request) (Proof, error) {
	if v.Replays == nil {
		return Proof{}, &Error{Code: Unavailable, Msg: "this server keeps no record of proofs, so it accepts none"}
	}
	if len(req.Proofs) != 1 { // check 1
		return Proof{}, refuse("the request has %d DPoP header fields, and needs one", len(req.Proofs))
	}
	p, err := v.parse(req.Proofs[0]) // checks 2, 3, 4, 5 and 7
	if err != nil {
		return Proof{}, err
	}
	if err := p.fits(req); err != nil { // checks 8, 9 and 12
		return Proof{}, err
	}
	now := v.now()
	until, err := v.timely(ctx, p, now) // checks 10 and 11
	if CodeOf(err) == UseNonce && p.nonce != "" && p.key.Verify([]byte(p.signed), p.signature, pubkey.P1363) {
		return Proof{Key: p.key, Thumbprint: p.thumbprint, JTI: p.jti, IssuedAt: p.issued, Nonce: p.nonce}, err // the key made it, for another time
	}
	if err != nil {
		return Proof{}, err
	}
	if !p.key.Verify([]byte(p.signed), p.signature, pubkey.P1363) { // check 6
		return Proof{}, refuse("the signature is not by the key in the header")
	}
	v.keep(p)
	fresh, err := v.Replays.Burn(ctx, p.thumbprint, p.jti, until)
	if err != nil {
		return Proof{}, &Error{Code: Unavailable, Msg: "whether this proof was used before cannot be known now: make a new one and try again", Err: err}
	}
	if !fresh {
		return Proof{}, refuse("this proof was used before: each request needs a new one")
	}
	return Proof{Key: p.key, Thumbprint: p.thumbprint, JTI: p.jti, IssuedAt: p.issued, Nonce: p.nonce}, nil
}

// keep keeps the header of a proof whose signature holds.
func (v *Verifier) keep(p *parsed) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= maxKnown {
		clear(v.known)
	}
	if v.known == nil {
		v.known = map[string]header{}
	}
	v.known[strings.Clone(p.head)] = p.header
}

// parsed is a proof that is well formed. Its signature is not checked yet.
type parsed struct {
	header
	head      string // encoded
	signed    string // what the signature is over
	signature []byte

	jti, method, target, nonce, tokenHash string
	issued                                time.Time
}

func (v *Verifier) parse(proof string) (*parsed, error) {
	if len(proof) > MaxProof {
		return nil, refuse("the proof is longer than %d bytes", MaxProof)
	}
	head, rest, _ := strings.Cut(proof, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || strings.Contains(signature, ".") {
		return nil, refuse("the proof is not a JWT in compact form")
	}
	p := &parsed{head: head, signed: proof[:len(head)+1+len(payload)]}
	v.mu.Lock()
	p.header, ok = v.known[head]
	v.mu.Unlock()
	var err error
	if !ok {
		if p.header, err = v.readHeader(head); err != nil {
			return nil, err
		}
	}
	if p.signature, err = decode(signature); err != nil {
		return nil, refuse("the signature is %v", err)
	}
	body, err := decode(payload)
	if err != nil {
		return nil, refuse("the claims are %v", err)
	}
	claims, err := object(body, maxDepth)
	if err != nil {
		return nil, refuse("the claims are %v", err)
	}
	return p, p.readClaims(claims)
}

func (v *Verifier) readHeader(encoded string) (header, error) {
	doc, err := decode(encoded)
	if err != nil {
		return header{}, refuse("the header is %v", err)
	}
	fields, err := object(doc, maxDepth)
	if err != nil {
		return header{}, refuse("the header is %v", err)
	}
	if fields["typ"] != "dpop+jwt" {
		return header{}, refuse("the header's typ is not dpop+jwt")
	}
	for _, name := range []string{"crit", "b64"} {
		if _, ok := fields[name]; ok {
			return header{}, refuse("the header has %s, which asks for what proofs do not have", name)
		}
	}
	alg := text(fields, "alg")
	if !slices.Contains(v.algorithms(), alg) {
		return header{}, refuse("the header's alg is not accepted here: use %s", strings.Join(v.algorithms(), ", "))
	}
	members, ok := fields["jwk"].(map[string]any)
	if !ok {
		return header{}, refuse("the header has no jwk")
	}
	key, err := parseKey(alg, members)
	if err != nil {
		return header{}, err
	}
	return header{key, key.Thumbprint()}, nil
}

func (p *parsed) readClaims(claims map[string]any) error {
	p.jti, p.method, p.nonce, p.tokenHash = text(claims, "jti"), text(claims, "htm"), text(claims, "nonce"), text(claims, "ath")
	if p.jti == "" || len(p.jti) > MaxJTI {
		return refuse("jti is missing, or longer than %d bytes", MaxJTI)
	}
	if p.method == "" {
		return refuse("htm is missing")
	}
	raw := text(claims, "htu")
	if raw == "" {
		return refuse("htu is missing")
	}
	var ok bool
	if p.target, ok = Target(raw); !ok {
		return refuse("htu is no http or https URL")
	}
	if p.issued, ok = date(claims["iat"]); !ok {
		return refuse("iat is missing, or no number of seconds since 1970")
	}
	return nil
}

// fits compares a proof with the request that it came with.
func (p *parsed) fits(req Request) error {
	if p.method != req.Method {
		return refuse("htm is not the method of this request")
	}
	target, ok := Target(req.URL)
	if !ok {
		return &Error{Code: InvalidRequest, Msg: "the request's URL cannot be compared with htu"}
	}
	if p.target != target {
		return refuse("htu is not the URL of this request, which is %s here", target)
	}
	if req.Token == "" {
		return nil
	}
	if p.tokenHash == "" {
		return refuse("ath is missing: with a token the proof has the token's hash")
	}
	if !equal(p.tokenHash, hashOf(req.Token)) {
		return refuse("ath is the hash of another token")
	}
	if req.Thumbprint == "" || !equal(p.thumbprint, req.Thumbprint) {
		return &Error{Code: InvalidToken, Msg: "the token is bound to another key than the proof's"}
	}
	return nil
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// timely judges when a proof was made, and returns until when it has to be
// remembered: as long as it would be accepted.
func (v *Verifier) timely(ctx context.Context, p *parsed, now time.Time) (until time.Time, err error) {
	age, skew := v.window()
	until = p.issued.Add(age + skew)
	if v.Nonces != nil {
		ends, err := v.Nonces.check(ctx, p.nonce, now)
		if err != nil {
			return until, err
		}
		if v.NonceClock {
			return ends, nil
		}
	}
	if p.issued.After(now.Add(skew)) || now.After(until) {
		return until, refuse("iat is %s, and this server's clock says %s: a proof is good for %s, give or take %s",
			p.issued.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), age, skew)
	}
	return until, nil
}
