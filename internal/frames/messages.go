package frames

import (
	claviger "claviger.dev"
	"claviger.dev/internal/recipe"
)

// Request is a request of one verb.
type Request interface {
	Verb() Verb
	message
}

// Response is the successful answer to one verb.
type Response interface {
	Verb() Verb
	message
}

// Slot names material that a key process has loaded. Epoch is random for each
// process, so that a slot of an earlier process is never taken for another's.
type Slot struct {
	Epoch  uint64
	Number uint64
}

// Use names the slot of a use and the fingerprint that its material must have;
// the key process refuses when they differ.
type Use struct {
	Slot        Slot
	Fingerprint claviger.Fingerprint
}

// Plain is one item to seal.
type Plain struct {
	Plaintext      []byte
	AssociatedData []byte
}

// Sealed is one item to open.
type Sealed struct {
	Sealed         []byte // nonce (12 bytes) || ciphertext || tag (16 bytes)
	AssociatedData []byte
}

// Opened is the answer for one item. Plaintext is nil unless OK.
type Opened struct {
	OK        bool
	Plaintext []byte // what a caller sealed; never a key's material
}

// Share is one recovery share, encrypted to its holder's age recipient.
type Share struct {
	Holder    string
	Encrypted []byte
}

// Made is what a version's new material becomes outside: a wrapped blob and
// what may be known of it.
type Made struct {
	Blob        []byte // encrypted under the root
	Public      []byte // raw public key; empty for a symmetric key
	Fingerprint claviger.Fingerprint
	Level       claviger.Level
	Generation  uint32 // of the root that wraps the blob; DeviceGeneration where none does
	Reference   string // what a device calls the key; empty from a key process
}

// Measure is one protective measure of the process, as observed.
type Measure struct {
	Name   string
	State  string // "on", "off" or "unavailable"
	Detail string
	Gain   string // what an attacker gains where it is not on
}

// Stored is material that is named without a slot.
type Stored struct {
	Binding     Binding
	Blob        []byte
	Fingerprint claviger.Fingerprint
}

// Hit says that the material of one item of a search lies in the haystack.
type Hit struct {
	Item     uint32 // index into the request's items
	Offset   uint32 // of its first byte
	Encoding string // such as "raw", "hex", "base64"
}

// Fault is the body of a refusal: texts that are safe to show.
type Fault struct {
	Message string
	Hint    string
}

// The requests.
type (
	// IdentityRequest asks who the process is. It is answered at once, so it
	// also shows that the process lives.
	IdentityRequest struct{}
	// GenerateRequest makes material for a version and returns its blob.
	GenerateRequest struct{ Binding Binding }
	// OneTimeKeyRequest makes a one-time key; Binding is zero for shares.
	OneTimeKeyRequest struct {
		Purpose string
		Binding Binding
	}
	// AdoptRequest takes in material that was sealed to a one-time key.
	AdoptRequest struct {
		Binding Binding
		OneTime string
		Sealed  []byte
	}
	// LoadRequest unwraps a blob into a slot.
	LoadRequest struct {
		Binding Binding
		Blob    []byte
	}
	// UnloadRequest empties a slot. A slot that is not loaded is no error.
	UnloadRequest struct{ Slot Slot }
	// SignRequest signs each input.
	SignRequest struct {
		Use
		Prehashed bool
		Inputs    [][]byte
	}
	// MACRequest computes the code of each input.
	MACRequest struct {
		Use
		Inputs [][]byte
	}
	// VerifyMACRequest compares full-length codes.
	VerifyMACRequest struct {
		Use
		Inputs [][]byte
		MACs   [][]byte
	}
	// SealRequest encrypts each item under a fresh nonce.
	SealRequest struct {
		Use
		Items []Plain
	}
	// OpenRequest decrypts each item.
	OpenRequest struct {
		Use
		Items []Sealed
	}
	// RewrapRequest wraps a blob under the newest root generation.
	RewrapRequest struct {
		Binding Binding
		Blob    []byte
	}
	// SharesRequest splits the root for the holders that the root bundle lists.
	SharesRequest struct{}
	// VerifySharesRequest asks whether shares restore the present root.
	VerifySharesRequest struct {
		OneTime string
		Sealed  [][]byte
	}
	// RestoreRequest restores the root of a process that was started without.
	RestoreRequest struct {
		OneTime string
		Sealed  [][]byte
	}
	// JoinKeyRequest asks a process that was started without a root for the
	// public key to which another may wrap it.
	JoinKeyRequest struct{}
	// JoinRequest gives the root, wrapped by Admit, to the process that made
	// the join key. Identity is the public identity key that the root must have.
	JoinRequest struct {
		Wrapped  []byte
		Identity []byte
	}
	// AdmitRequest wraps the root to a join key that the root bundle admits.
	AdmitRequest struct{ JoinKey []byte }
	// FindRequest asks whether a buffer contains the slot's own material, whole.
	FindRequest struct {
		Use
		Haystack []byte
	}
	// EvidenceRequest asks what the process observes of itself.
	EvidenceRequest struct{}
	// DeviceRequest asks what the custodian stands on.
	DeviceRequest struct{}
	// BindRequest takes a key that was made elsewhere in the device into
	// custody by reference: an RFC 7512 URI.
	BindRequest struct {
		Binding   Binding
		Reference string
	}
	// AttestRequest has the TPM certify a key with its attestation key.
	AttestRequest struct {
		Binding Binding
		Blob    []byte
		Nonce   []byte // 16 to 64 bytes
	}
	// EndorseRequest asks for the keys that say which TPM this is.
	EndorseRequest struct{}
	// ActivateRequest has the TPM open what was encrypted to its endorsement
	// key and the name of its attestation key (TPM 2.0 part 1, 24).
	ActivateRequest struct {
		Credential []byte // TPM2B_ID_OBJECT
		Encrypted  []byte // TPM2B_ENCRYPTED_SECRET
	}
	// ProbeRequest has the device process attack a key with all the authority
	// that it has. Only when Loud does it try what alarms a device or counts
	// against a lockout.
	ProbeRequest struct {
		Binding Binding
		Blob    []byte
		Loud    bool
	}
	// SearchRequest asks which of the items' own material lies in a buffer,
	// whole, in any usual encoding.
	SearchRequest struct {
		Items    []Stored
		Haystack []byte
	}
	// DestroyRequest has a device delete a key. One that is not there is no
	// error.
	DestroyRequest struct {
		Binding Binding
		Blob    []byte
	}
	// RecipeRequest runs a recipe of the key's set on each item: Make protects,
	// and otherwise what was protected is checked and opened.
	RecipeRequest struct {
		Use
		Recipe recipe.Recipe
		Make   bool
		Items  []recipe.Item
	}
)

// The responses. Fingerprint is always that of the material that was used.
type (
	// IdentityResponse says who the process is.
	IdentityResponse struct {
		Public     [32]byte // Ed25519
		Generation uint32   // newest root generation, 0 while Joining
		Joining    bool     // started without a root and has none yet
	}
	// GenerateResponse carries the wrapped blob and what may be known of it.
	GenerateResponse struct{ Made }
	// AdoptResponse carries the same.
	AdoptResponse struct{ Made }
	// OneTimeKeyResponse carries the public half and the statement about it.
	OneTimeKeyResponse struct {
		ID        string
		Public    []byte
		Expires   uint64 // Unix seconds
		Identity  [32]byte
		Signature [64]byte
	}
	// LoadResponse names the slot.
	LoadResponse struct {
		Slot        Slot
		Fingerprint claviger.Fingerprint
	}
	// UnloadResponse is empty.
	UnloadResponse struct{}
	// SignResponse carries a signature for each input.
	SignResponse struct {
		Fingerprint claviger.Fingerprint
		Signatures  [][]byte
	}
	// MACResponse carries a code for each input.
	MACResponse struct {
		Fingerprint claviger.Fingerprint
		MACs        [][]byte
	}
	// VerifyMACResponse carries a verdict for each input.
	VerifyMACResponse struct {
		Fingerprint claviger.Fingerprint
		Valid       []bool
	}
	// SealResponse carries a sealed text for each item.
	SealResponse struct {
		Fingerprint claviger.Fingerprint
		Sealed      [][]byte
	}
	// OpenResponse carries a verdict for each item.
	OpenResponse struct {
		Fingerprint claviger.Fingerprint
		Opened      []Opened
	}
	// RewrapResponse carries the new blob.
	RewrapResponse struct {
		Blob       []byte
		Generation uint32
	}
	// SharesResponse carries a share for each holder.
	SharesResponse struct {
		Threshold uint32
		Shares    []Share
	}
	// VerifySharesResponse tells whether the shares restore the present root.
	VerifySharesResponse struct {
		Restores  bool
		Count     uint32 // distinct shares of one set that were given
		Threshold uint32 // shares of that set that are needed
	}
	// RestoreResponse is empty.
	RestoreResponse struct{}
	// JoinKeyResponse carries a public key.
	JoinKeyResponse struct{ Public []byte }
	// JoinResponse is empty.
	JoinResponse struct{}
	// AdmitResponse carries the root, encrypted to the join key.
	AdmitResponse struct{ Wrapped []byte }
	// FindResponse tells whether the material was found.
	FindResponse struct {
		Fingerprint claviger.Fingerprint
		Found       bool
	}
	// EvidenceResponse carries what the process observes of itself.
	EvidenceResponse struct {
		PID      uint32
		Level    claviger.Level // the level of what it generates
		Measures []Measure
	}
	// DeviceResponse says what the custodian stands on.
	DeviceResponse struct {
		Kind         claviger.Custodian
		Manufacturer string
		Model        string
		Serial       string
		Firmware     string
		Software     bool
		Algorithms   []claviger.Algorithm
	}
	// BindResponse carries what GenerateResponse does.
	BindResponse struct{ Made }
	// AttestResponse carries a certification (TPM 2.0 part 3, 18.2) and the
	// public areas that it takes to check it.
	AttestResponse struct {
		KeyPublic      []byte   // TPMT_PUBLIC
		Attest         []byte   // TPMS_ATTEST
		Signature      []byte   // TPMT_SIGNATURE
		AKPublic       []byte   // TPMT_PUBLIC
		EKPublic       []byte   // TPMT_PUBLIC
		EKCertificates [][]byte // DER, leaf first; none where the TPM has none
	}
	// EndorseResponse carries the keys that say which TPM this is.
	EndorseResponse struct {
		AKPublic       []byte   // TPMT_PUBLIC
		EKPublic       []byte   // TPMT_PUBLIC
		EKCertificates [][]byte // DER, leaf first
	}
	// ActivateResponse carries the 32 bytes that whoever made the challenge
	// put into it.
	ActivateResponse struct{ Challenge []byte }
	// ProbeResponse carries what the device process observed.
	ProbeResponse struct {
		Level    claviger.Level
		Finding  string // the worst; "" when there is none
		Attempts []claviger.Attempt
	}
	// DestroyResponse tells whether the device keeps the key, because it was
	// made there by others and only bound.
	DestroyResponse struct{ Kept bool }
	// RecipeResponse carries a result for each item: what was made, or what was
	// opened. Nothing in it says why an item is not OK.
	RecipeResponse struct {
		Fingerprint claviger.Fingerprint
		Results     []recipe.Result
	}
	// SearchResponse carries where material was found.
	SearchResponse struct{ Found []Hit }
)
