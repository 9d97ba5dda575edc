package claviger

import (
	"crypto"
	"slices"
	"strconv"
	"strings"
)

// Algorithm is what a key does, in full: primitive, size, padding and hash.
// It is fixed when the key is created and never taken from a request.
type Algorithm string

// The algorithms. RSA ones are composed: rsa-{2048,3072,4096}-{pss,pkcs1}-sha{256,384,512}.
const (
	Ed25519    Algorithm = "ed25519"
	ECDSAP256  Algorithm = "ecdsa-p256-sha256"
	ECDSAP384  Algorithm = "ecdsa-p384-sha384"
	MLDSA65    Algorithm = "ml-dsa-65"
	HMACSHA256 Algorithm = "hmac-sha256"
	HMACSHA384 Algorithm = "hmac-sha384"
	HMACSHA512 Algorithm = "hmac-sha512"
	AES256GCM  Algorithm = "aes-256-gcm"

	// MachineKey is the secret of a framework: 1 to 1024 opaque bytes that
	// answer one recipe set and have no operation of their own.
	MachineKey Algorithm = "machine-key"
)

// RSAParams are the parts of a composed RSA algorithm.
type RSAParams struct {
	Bits int
	PSS  bool // false: PKCS#1 v1.5
	Hash crypto.Hash
}

// Algorithms lists every algorithm that a key may have and that has operations
// of its own: all but MachineKey.
func Algorithms() []Algorithm {
	all := []Algorithm{Ed25519, ECDSAP256, ECDSAP384, MLDSA65, HMACSHA256, HMACSHA384, HMACSHA512, AES256GCM}
	for _, bits := range []string{"2048", "3072", "4096"} {
		for _, padding := range []string{"pss", "pkcs1"} {
			for _, hash := range []string{"sha256", "sha384", "sha512"} {
				all = append(all, Algorithm("rsa-"+bits+"-"+padding+"-"+hash))
			}
		}
	}
	return all
}

// ParseAlgorithm checks an algorithm that came from outside.
func ParseAlgorithm(s string) (Algorithm, error) {
	if a := Algorithm(s); a == MachineKey || slices.Contains(Algorithms(), a) {
		return a, nil
	}
	return "", Errorf(Invalid, "the algorithm is not offered", "run 'claviger key algorithms' for the list")
}

// RSA returns the parts of an RSA algorithm; ok is false for any other.
func (a Algorithm) RSA() (p RSAParams, ok bool) {
	parts := strings.Split(string(a), "-")
	if len(parts) != 4 || parts[0] != "rsa" {
		return p, false
	}
	p.Bits, _ = strconv.Atoi(parts[1])
	p.PSS = parts[2] == "pss"
	p.Hash = map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}[parts[3]]
	return p, true
}

// Hash returns the hash of the algorithm, or 0 where the primitive takes the
// message itself (Ed25519, ML-DSA-65, AES-256-GCM).
func (a Algorithm) Hash() crypto.Hash {
	switch a {
	case ECDSAP256, HMACSHA256:
		return crypto.SHA256
	case ECDSAP384, HMACSHA384:
		return crypto.SHA384
	case HMACSHA512:
		return crypto.SHA512
	}
	p, _ := a.RSA()
	return p.Hash
}

// Asymmetric reports whether a key of this algorithm has a public half.
func (a Algorithm) Asymmetric() bool { return a.Protects() == Sign }

// Protects returns the operation that applies cryptographic protection (in the
// sense of SP 800-57 part 1): Sign, MAC, Seal or Protect.
func (a Algorithm) Protects() Operation {
	switch {
	case a == AES256GCM:
		return Seal
	case a == MachineKey:
		return Protect
	case strings.HasPrefix(string(a), "hmac-"):
		return MAC
	}
	return Sign
}

// Processes returns the operation that processes protected information:
// Verify, VerifyMAC, Open or Unprotect.
func (a Algorithm) Processes() Operation {
	return map[Operation]Operation{Sign: Verify, MAC: VerifyMAC, Seal: Open, Protect: Unprotect}[a.Protects()]
}

// Operation is what a caller asks for. The first group uses a key; the second
// administers.
type Operation string

// The operations that use a key.
const (
	Sign      Operation = "sign"
	Verify    Operation = "verify"
	MAC       Operation = "mac"
	VerifyMAC Operation = "verify-mac"
	Seal      Operation = "seal"
	Open      Operation = "open"
	Protect   Operation = "protect"   // make trusted state of a framework
	Unprotect Operation = "unprotect" // check it, and open it
)

// The operations that administer.
const (
	CreateKey        Operation = "create-key"
	ReadKey          Operation = "read-key"   // metadata and public half
	ManageKey        Operation = "manage-key" // rotate, change state, settings, rename, import
	ManageGrants     Operation = "manage-grants"
	ManagePrincipals Operation = "manage-principals"
	ReadAudit        Operation = "read-audit"
	ManageServer     Operation = "manage-server" // backup, root key, recovery
	ManageClients    Operation = "manage-clients"
	ManageSessions   Operation = "manage-sessions" // list, suspend and close those of others
	ReportUses       Operation = "report-uses"     // tell the rules against abuse how keys of sessions are used
)

// OpenSession opens sessions and issues tokens of a client, which a grant
// selects by its name. It takes a grant, whoever asks.
const OpenSession Operation = "open-session"

// UseOperations and AdminOperations list the two groups.
var (
	UseOperations   = []Operation{Sign, Verify, MAC, VerifyMAC, Seal, Open, Protect, Unprotect}
	AdminOperations = []Operation{CreateKey, ReadKey, ManageKey, ManageGrants, ManagePrincipals, ReadAudit, ManageServer, ManageClients, ManageSessions, ReportUses}
)

// ParseOperation checks an operation that came from outside.
func ParseOperation(s string) (Operation, error) {
	if o := Operation(s); o == OpenSession || slices.Contains(UseOperations, o) || slices.Contains(AdminOperations, o) {
		return o, nil
	}
	return "", Errorf(Invalid, "there is no such operation", "use one of sign, verify, mac, verify-mac, seal, open, protect, unprotect, open-session, or an administrative one")
}

// Protects reports whether the operation applies protection.
func (o Operation) Protects() bool { return o == Sign || o == MAC || o == Seal || o == Protect }

// Uses reports whether the operation uses a key's material or its public half.
func (o Operation) Uses() bool { return slices.Contains(UseOperations, o) }
