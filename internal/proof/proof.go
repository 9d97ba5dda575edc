// Package proof says who is calling. It owns two proofs: the credentials of a
// Unix socket's peer, and a verified client certificate. It promises that a
// principal it returns was identified at this call, and that a fact it could
// not read with certainty is absent. It must never authorise: what a principal
// may do is decided behind the door.
package proof

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

// Methods of identification, as they stand in [claviger.Facts].
const (
	MethodPeer = "peer" // Unix peer credentials
	MethodMTLS = "mtls" // verified client certificate
)

// Directory finds the principal that a proof names. An unknown, revoked or
// expired one is [claviger.Unauthenticated]; a directory that cannot be read
// is [claviger.Unavailable]. Both look at stored state on each call, so that a
// revocation holds at once on connections that are open already.
type Directory interface {
	// ByUID finds the principal of a local user; facts.UID is set.
	ByUID(ctx context.Context, facts claviger.Facts) (claviger.Principal, error)
	// ByCertificate finds the principal of a certificate whose chain was
	// verified. Its SPIFFE id lies in the server's own trust domain exactly
	// when the chain ends in the server's own CA.
	ByCertificate(ctx context.Context, leaf *x509.Certificate, facts claviger.Facts) (claviger.Principal, error)
}

// Prover identifies callers.
type Prover struct {
	Directory   Directory
	TrustDomain string                         // of the own CA
	Roots       func() []*x509.Certificate     // of the own CA, now
	External    map[string][]*x509.Certificate // other trust domains and the roots that may speak for each
	Now         func() time.Time               // nil: time.Now
}

// Peer identifies the caller at the other end of a Unix socket.
func (p *Prover) Peer(ctx context.Context, peer *Peer, requestID string) (claviger.Principal, error) {
	facts := peer.Facts()
	facts.RequestID = requestID
	return p.Directory.ByUID(ctx, facts)
}

// Certificate identifies the caller of a TLS connection by its client
// certificate. It returns [claviger.Unauthenticated] when there is none, when
// it expired since the handshake, or when its chain ends in a root that may
// not speak for its trust domain.
func (p *Prover) Certificate(ctx context.Context, state *tls.ConnectionState, source netip.Addr, requestID string) (claviger.Principal, error) {
	if state == nil || len(state.PeerCertificates) == 0 || len(state.VerifiedChains) == 0 {
		return claviger.Principal{}, claviger.Errorf(claviger.Unauthenticated, "there is no client certificate",
			"enrol with 'claviger enroll' and call with the certificate, or use the local socket")
	}
	leaf := state.PeerCertificates[0]
	now := time.Now
	if p.Now != nil {
		now = p.Now
	}
	if t := now(); t.After(leaf.NotAfter) || t.Before(leaf.NotBefore) {
		return claviger.Principal{}, claviger.Errorf(claviger.Unauthenticated, "the client certificate is outside its validity",
			"renew it, or enrol again with a new code")
	}
	id, err := SPIFFE(leaf)
	if err != nil {
		return claviger.Principal{}, err
	}
	if !p.speaksFor(state.VerifiedChains, id.Host) {
		return claviger.Principal{}, claviger.Errorf(claviger.Unauthenticated, "the certificate's CA may not speak for its trust domain",
			"add the CA's bundle for this trust domain to the configuration, or use a certificate of the right CA")
	}
	return p.Directory.ByCertificate(ctx, leaf, claviger.Facts{
		Method: MethodMTLS, Source: source, UID: -1, GID: -1,
		CertSerial: leaf.SerialNumber.Text(16), RequestID: requestID,
	})
}

// speaksFor reports whether a chain ends in a root of the trust domain. No
// other CA, however trusted, can make a name in a domain that is not its own.
func (p *Prover) speaksFor(chains [][]*x509.Certificate, domain string) bool {
	roots := p.External[domain]
	if domain == p.TrustDomain {
		roots = p.Roots()
	}
	return slices.ContainsFunc(chains, func(chain []*x509.Certificate) bool {
		return slices.ContainsFunc(roots, chain[len(chain)-1].Equal)
	})
}

// SPIFFE returns the SPIFFE id of a leaf certificate. An X509-SVID holds
// exactly one URI name and is no CA (X509-SVID, sections 2 and 4). Anything
// else is [claviger.Unauthenticated].
func SPIFFE(leaf *x509.Certificate) (*url.URL, error) {
	if leaf.IsCA || len(leaf.URIs) != 1 || !validSPIFFE(leaf.URIs[0]) {
		return nil, claviger.Errorf(claviger.Unauthenticated, "the client certificate carries no SPIFFE id",
			"use a certificate with exactly one URI name of the form spiffe://trust-domain/path")
	}
	return leaf.URIs[0], nil
}

// validSPIFFE checks a SPIFFE id (SPIFFE-ID, section 2): scheme, trust domain
// and path, and nothing else.
func validSPIFFE(u *url.URL) bool {
	if u.Scheme != "spiffe" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" ||
		u.RawPath != "" || len(u.Path) < 2 || len(u.String()) > 2048 || !ValidTrustDomain(u.Host) {
		return false
	}
	for seg := range strings.SplitSeq(u.Path[1:], "/") {
		if seg == "" || seg == "." || seg == ".." || strings.ContainsFunc(seg, func(r rune) bool {
			return !isNameRune(r) && (r < 'A' || r > 'Z')
		}) {
			return false
		}
	}
	return true
}

// ValidTrustDomain reports whether a string is a trust domain name: 1 to 255
// of a-z, 0-9, '-', '_' and '.' (SPIFFE-ID, section 2.1).
func ValidTrustDomain(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return !isNameRune(r) })
}

func isNameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
}
