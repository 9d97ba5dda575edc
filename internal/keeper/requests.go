package keeper

import (
	"claviger.dev"
	"claviger.dev/internal/policy"
	"claviger.dev/pubkey"
)

// Limits of one use.
const (
	MaxItems = 1000    // items of one request
	MaxInput = 1 << 20 // bytes of one item
	MaxTotal = 4 << 20 // bytes of all items of one request
)

// Context names what a use is for. Grants may require it, and it is recorded.
type Context struct {
	Audience string
	Purpose  string
}

// check refuses texts that are longer than any that a grant can require: what
// is gathered of them waits in memory.
func (c Context) check() error {
	if len(c.Audience) > policy.MaxText || len(c.Purpose) > policy.MaxText {
		return claviger.Errorf(claviger.TooLarge, "the audience or the purpose is longer than 512 bytes", "shorten it")
	}
	return nil
}

// SignRequest asks for signatures by the active version of a key.
type SignRequest struct {
	Key       string          // name, former name or id
	Inputs    [][]byte        // 1 to 1000 messages, or digests when Prehashed
	Prehashed bool            // digests by the key's hash; not for Ed25519 and ML-DSA-65
	Encoding  pubkey.Encoding // of ECDSA signatures
	Context   Context
}

// Signed is the answer to a SignRequest.
type Signed struct {
	Signatures [][]byte
	Version    uint32
	KID        string // RFC 7638 thumbprint
}

// JWT asks for a JSON Web Token (RFC 7519).
type JWT struct {
	Claims []byte // a JSON object
	Type   string // header typ; the template's when empty
}

// StructuredRequest asks for one signed structure, which the grant's template
// must allow. Exactly one of JWT, X509TBS and SSHTBS is set.
type StructuredRequest struct {
	Key     string
	Context Context
	JWT     *JWT
	X509TBS []byte // TBSCertificate (RFC 5280, 4.1.2), DER
	SSHTBS  []byte // OpenSSH certificate in wire form, without its signature
}

// Structured is the answer: the whole JWT (compact), certificate (DER) or
// OpenSSH certificate (wire form).
type Structured struct {
	Signed  []byte
	Version uint32
	KID     string
}

// Item is one thing to verify: a signature or a MAC over an input.
type Item struct {
	Input     []byte
	Signature []byte // or the MAC
	Version   uint32 // 0: any version that may process, newest first
}

// VerifyRequest asks whether signatures are by a key.
type VerifyRequest struct {
	Key       string
	Items     []Item
	Prehashed bool
	Encoding  pubkey.Encoding
	Context   Context
}

// Verdict is the answer for one item. Version is the one that matched, 0 when
// the item is not valid.
type Verdict struct {
	Valid   bool
	Version uint32
}

// MACRequest asks for MACs by the active version of a key.
type MACRequest struct {
	Key     string
	Inputs  [][]byte
	Context Context
}

// MACs is the answer to a MACRequest.
type MACs struct {
	MACs    [][]byte
	Version uint32
}

// VerifyMACRequest asks whether MACs (at their full length) are by a key.
type VerifyMACRequest struct {
	Key     string
	Items   []Item
	Context Context
}

// Plain is one item to seal.
type Plain struct {
	Plaintext      []byte
	AssociatedData []byte
}

// SealRequest asks to seal items under the active version of a key.
type SealRequest struct {
	Key     string
	Items   []Plain
	Context Context
}

// Sealed is the answer: each item is one format byte, the version (4 bytes,
// big-endian), a 12-byte nonce, the ciphertext and a 16-byte tag.
type Sealed struct {
	Sealed  [][]byte
	Version uint32
}

// SealedItem is one item to open.
type SealedItem struct {
	Sealed         []byte
	AssociatedData []byte
}

// OpenRequest asks to open items that Seal made.
type OpenRequest struct {
	Key     string
	Items   []SealedItem
	Context Context
}

// Opened is the answer for one item. OK is false when the item is not
// authentic: one answer for every way of being wrong.
type Opened struct {
	OK        bool
	Plaintext []byte
	Version   uint32
}

// checkItems refuses a request with too many, too few or too large items.
func checkItems(sizes []int) error {
	if len(sizes) == 0 {
		return claviger.Errorf(claviger.Invalid, "the request has no item", "send 1 to 1000 items")
	}
	if len(sizes) > MaxItems {
		return claviger.Errorf(claviger.TooLarge, "the request has more than 1000 items", "split it into smaller batches")
	}
	total := 0
	for _, n := range sizes {
		if n > MaxInput {
			return claviger.Errorf(claviger.TooLarge, "an item is larger than 1 MiB", "hash it first and send the digest, or split it")
		}
		total += n
	}
	if total > MaxTotal {
		return claviger.Errorf(claviger.TooLarge, "the items are together larger than 4 MiB", "split the request into smaller batches")
	}
	return nil
}
