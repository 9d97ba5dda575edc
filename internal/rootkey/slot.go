package rootkey

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"claviger.dev"
	"golang.org/x/crypto/argon2"
)

// SlotKind says where the secret of a slot comes from.
type SlotKind string

// The kinds.
const (
	// File is INSECURE: the slot's secret lies in a file beside what it
	// wraps, so whoever can read the directory has the root key.
	File       SlotKind = "file"
	Passphrase SlotKind = "passphrase" // of a person, through Argon2id (RFC 9106)
	Credential SlotKind = "credential" // a systemd credential, or any file or descriptor with at least 32 random bytes
	TPM        SlotKind = "tpm"        // sealed by the TPM of this host, to the state of the platform if so wished
	PKCS11     SlotKind = "pkcs11"     // encrypted by a key of a PKCS #11 token that does not leave it
)

// Argon are the parameters of Argon2id for a passphrase slot. New slots take
// the second recommendation of RFC 9106, section 4; weaker ones are refused,
// and so are those that would take the machine down.
type Argon struct {
	Time    uint32 `json:"time"`
	Memory  uint32 `json:"memory_kib"`
	Threads uint8  `json:"threads"`
	Salt    []byte `json:"salt"` // 16 bytes
}

const (
	leastTime, mostTime     = 3, 16
	leastMemory, mostMemory = 64 << 10, 1 << 20 // KiB
	usualThreads            = 4
	mostThreads             = 16
	saltSize                = 16

	leastPassphrase, mostPassphrase = 12, 1024 // bytes
	leastCredential, mostCredential = 32, 4096 // bytes
	leastDistinct                   = 8        // byte values in a credential; fewer are no key

	recipientSize = 1216           // public key of MLKEM768X25519
	wrappedSize   = 1120 + 32 + 16 // encapsulation, bundle key, tag
	maxSlots      = 16             // in one file
	maxSource     = 255            // bytes of a credential's name or path
	slotInfo      = "claviger root slot 1"
)

// Slot is one way to open the root key. Nothing in it is secret.
type Slot struct {
	ID        int       `json:"id"` // from 1, ascending
	Kind      SlotKind  `json:"kind"`
	Created   time.Time `json:"created"`
	Source    string    `json:"source,omitempty"` // file: its name in the directory; credential: its name, or an absolute path; tpm and pkcs11: what the device called itself
	Argon     *Argon    `json:"argon2id,omitempty"`
	Software  bool      `json:"software,omitempty"` // tpm and pkcs11: the device is a program: whoever reads its files has the secret
	PCRs      []uint    `json:"pcrs,omitempty"`     // tpm: the SHA-256 platform registers that have to be as they were, ascending
	Sealed    []byte    `json:"sealed,omitempty"`   // tpm and pkcs11: the secret, which the device alone opens
	Recipient []byte    `json:"recipient"`          // HPKE public key (MLKEM768X25519) derived from the slot's secret
	Wrapped   []byte    `json:"wrapped"`            // the file's bundle key, sealed to Recipient
}

// Secrets asks the outside for what opens a slot. The results are cleared
// after use.
type Secrets struct {
	Passphrase func(what string) ([]byte, error)
	Credential func(source string) ([]byte, error)
	Vault      func(SlotKind) (Vault, error) // of TPM and PKCS11; nil: there are no devices
}

func (s *Slot) check() error {
	bad := s.ID < 1 || len(s.Recipient) != recipientSize || len(s.Wrapped) != wrappedSize || len(s.Source) > maxSource
	if !s.Kind.held() {
		bad = bad || s.Software || len(s.PCRs) > 0 || len(s.Sealed) > 0
	}
	switch s.Kind {
	case TPM, PKCS11:
		bad = bad || !s.checkHeld()
	case File:
		bad = bad || s.Argon != nil || s.Source != keyFile(s.ID)
	case Credential:
		bad = bad || s.Argon != nil || s.Source == ""
	case Passphrase:
		a := s.Argon
		bad = bad || s.Source != "" || a == nil || a.Time < leastTime || a.Time > mostTime || a.Memory < leastMemory ||
			a.Memory > mostMemory || a.Threads < 1 || a.Threads > mostThreads || len(a.Salt) != saltSize
	default:
		bad = true
	}
	if bad {
		return errAltered
	}
	return nil
}

// keyFile names the file of a slot of kind File.
func keyFile(id int) string { return fmt.Sprintf("root-%d.key", id) }

// kem is the one KEM of slots: post-quantum and X25519 together.
func kem() hpke.KEM { return hpke.MLKEM768X25519() }

// errNotIt says that a secret does not belong to a slot.
var errNotIt = errors.New("the secret is not this slot's")

// private derives the slot's key pair from its secret and clears the secret.
func (s *Slot) private(secret []byte) (hpke.PrivateKey, error) {
	defer clear(secret)
	var kek []byte
	switch s.Kind {
	case Passphrase:
		if n := len(secret); n < leastPassphrase || n > mostPassphrase {
			return nil, errNotIt
		}
		kek = argon2.IDKey(secret, s.Argon.Salt, s.Argon.Time, s.Argon.Memory, s.Argon.Threads, KeySize)
	case Credential:
		if len(secret) < leastCredential || distinct(secret) < leastDistinct {
			return nil, claviger.Errorf(claviger.Invalid, "the credential has less than 32 random bytes", "make one with: head -c 32 /dev/urandom")
		}
		kek = secret
	default:
		if len(secret) != KeySize {
			return nil, errNotIt
		}
		kek = secret
	}
	defer clear(kek)
	ikm, err := hkdf.Key(sha256.New, kek, nil, slotInfo+" "+string(s.Kind), KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive a slot's key: %w", err)
	}
	defer clear(ikm)
	return kem().DeriveKeyPair(ikm)
}

func distinct(data []byte) int {
	sorted := slices.Clone(data)
	defer clear(sorted[:cap(sorted)])
	slices.Sort(sorted)
	n := 0
	for i, b := range sorted {
		if i == 0 || b != sorted[i-1] {
			n++
		}
	}
	return n
}

// unwrap opens the bundle key with the slot's secret, which it clears.
func (s *Slot) unwrap(secret []byte) ([]byte, error) {
	private, err := s.private(secret)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(private.PublicKey().Bytes(), s.Recipient) {
		return nil, errNotIt
	}
	key, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(slotInfo), s.Wrapped)
	if err != nil || len(key) != KeySize {
		return nil, errAltered
	}
	return key, nil
}

// wrap seals a bundle key to the slot. It needs no secret of the slot's.
func (s *Slot) wrap(key []byte) error {
	public, err := kem().NewPublicKey(s.Recipient)
	if err != nil {
		return fmt.Errorf("read the recipient of slot %d: %w", s.ID, err)
	}
	s.Wrapped, err = hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(slotInfo), key)
	if err != nil {
		return fmt.Errorf("wrap to slot %d: %w", s.ID, err)
	}
	return nil
}

// NewSlot says which slot to make.
type NewSlot struct {
	Kind   SlotKind
	Source string // of a credential
	PCRs   []uint // of a TPM
}

// make builds the slot: it gets or draws the secret, stores it where the kind
// says so, and keeps only the public half.
func (n NewSlot) make(d *Dir, id int, from Secrets) (Slot, error) {
	s := Slot{ID: id, Kind: n.Kind, Created: d.Now().UTC().Truncate(time.Second)}
	var secret []byte
	var err error
	switch n.Kind {
	case File:
		s.Source = keyFile(id)
		secret = make([]byte, KeySize)
		_, _ = rand.Read(secret)
		err = d.write(s.Source, secret)
	case Passphrase:
		s.Argon = &Argon{Time: leastTime, Memory: leastMemory, Threads: usualThreads, Salt: make([]byte, saltSize)}
		_, _ = rand.Read(s.Argon.Salt)
		if secret, err = from.Passphrase(newPassphrase); err == nil && (len(secret) < leastPassphrase || len(secret) > mostPassphrase) {
			err = claviger.Errorf(claviger.Invalid, "a passphrase has 12 to 1024 bytes", "take several random words")
		}
	case Credential:
		if n.Source == "" || len(n.Source) > maxSource {
			return Slot{}, claviger.Errorf(claviger.Invalid, "a credential slot needs the credential's name or path", "add --credential NAME")
		}
		s.Source = n.Source
		secret, err = from.Credential(n.Source)
	case TPM, PKCS11:
		secret, err = s.enclose(from, n.PCRs)
	default:
		return Slot{}, claviger.Errorf(claviger.Invalid, "there is no such kind of slot", "use --kind tpm, pkcs11, credential, passphrase or file")
	}
	defer clear(secret)
	if err != nil {
		return Slot{}, err
	}
	private, err := s.private(secret)
	if err != nil {
		return Slot{}, err
	}
	s.Recipient = private.PublicKey().Bytes()
	return s, nil
}

// secret gets the slot's secret from where the kind says.
func (s *Slot) secret(d *Dir, from Secrets) ([]byte, error) {
	switch s.Kind {
	case Credential:
		return from.Credential(s.Source)
	case Passphrase:
		return from.Passphrase(oldPassphrase)
	case TPM, PKCS11:
		return s.disclose(from)
	}
	secret, err := d.read(s.Source, KeySize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, claviger.Errorf(claviger.NotFound, "the key file of the slot is missing", "open with another slot").Wrap(err)
	}
	return secret, err
}

const (
	oldPassphrase = "Passphrase of the root key: "
	newPassphrase = "New passphrase for the root key: "
)
