// Package recipe holds what a machine key can be asked to do: for each family
// of frameworks a set of declared recipes, and the arithmetic of each.
//
// It owns the derivation of keys from a master, the layouts that they protect,
// and the rule which recipe belongs to which set. It promises that a set admits
// exactly the recipes of its family, with bounded parameters, and that no
// recipe of a set gives out the master, a key that another recipe of the set
// derives from it, or anything from which either can be computed; DESIGN.md has
// the argument for each set. It must never do input or output, keep state, or
// say why something does not open.
package recipe

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"hash"
	"io"
	"slices"
	"strings"

	claviger "claviger.dev"
)

// Set names what a machine key answers. A key answers one set.
type Set string

// The sets.
const (
	Django          Set = "django"
	Itsdangerous    Set = "itsdangerous"
	Flask           Set = "flask"
	Rails           Set = "rails"            // a secret_key_base
	RailsVerifier   Set = "rails-verifier"   // the secret of one ActiveSupport::MessageVerifier
	Laravel         Set = "laravel"          // the decoded APP_KEY
	CookieSignature Set = "cookie-signature" // express, express-session, cookie-parser
	Keygrip         Set = "keygrip"          // cookies, cookie-session
	Iron            Set = "iron"             // @hapi/iron, iron-session
	AuthJS          Set = "authjs"           // next-auth 4, Auth.js 5
	JWT             Set = "jwt-hs"
	Plug            Set = "plug"           // Plug, Phoenix: a secret_key_base
	Symfony         Set = "symfony"        // kernel.secret
	ASPNET          Set = "aspnet45"       // machineKey, compatibilityMode Framework45: see Pair
	ASPNETLegacy    Set = "aspnet-legacy"  // machineKey in the older modes: see Pair
	DataProtection  Set = "dataprotection" // one entry of a key ring: see Entry
)

// Sets lists every set.
func Sets() []Set {
	return []Set{Django, Itsdangerous, Flask, Rails, RailsVerifier, Laravel, CookieSignature, Keygrip, Iron, AuthJS, JWT,
		Plug, Symfony, ASPNET, ASPNETLegacy, DataProtection}
}

// ParseSet checks a name that came from outside.
func ParseSet(s string) (Set, error) {
	if set := Set(s); slices.Contains(Sets(), set) {
		return set, nil
	}
	return "", claviger.Errorf(claviger.Unsupported, "there is no such recipe set", "use a set of this release, such as django, rails or jwt-hs")
}

// Scheme is what a recipe does with its keys. Each has one layout for what it
// makes, described at its code.
type Scheme string

// The schemes.
const (
	Tag            Scheme = "tag"             // HMAC of the message
	HalfTag        Scheme = "half-tag"        // every second nibble of it
	RailsTag       Scheme = "rails-tag"       // HMAC of a message that is no encrypted one
	RailsGCM       Scheme = "rails-gcm"       // AES-GCM
	RailsCBC       Scheme = "rails-cbc"       // AES-256-CBC, then HMAC
	LaravelCBC     Scheme = "laravel-cbc"     // AES-CBC, then HMAC-SHA256 under the same key
	LaravelGCM     Scheme = "laravel-gcm"     // AES-GCM
	LaravelURL     Scheme = "laravel-url"     // HMAC-SHA256 of a URL
	LaravelClosure Scheme = "laravel-closure" // HMAC-SHA256 of a serialised object
	IronSeal       Scheme = "iron-seal"       // AES-256-CBC, then HMAC-SHA256, both under keys of the token's own
	JWEGCM         Scheme = "jwe-gcm"         // dir, A256GCM
	JWECBC         Scheme = "jwe-cbc"         // dir, A256CBC-HS512
	PlugXChaCha    Scheme = "plug-xchacha"    // XChaCha20-Poly1305
	PlugGCM        Scheme = "plug-gcm"        // A128GCM under a wrapped key
	SymfonyURI     Scheme = "symfony-uri"     // HMAC-SHA256 of a URI
	SymfonyUser    Scheme = "symfony-user"    // HMAC-SHA256 of a user's login details
	MachineKey     Scheme = "machinekey"      // AES-CBC, then HMAC
	MachineKey3DES Scheme = "machinekey-3des" // 3DES-CBC, then HMAC
	MachineKeyTold Scheme = "machinekey-told" // MachineKey with the IV told by the plaintext
	LegacyMAC      Scheme = "legacy-mac"      // checked, never made
	LegacyAES      Scheme = "legacy-aes"      // opened, never made
	Legacy3DES     Scheme = "legacy-3des"     // opened, never made
	RingCBC        Scheme = "ring-cbc"        // AES-CBC, then HMAC
	RingGCM        Scheme = "ring-gcm"        // AES-GCM
)

// Derivation says how the keys of a recipe come from the master.
type Derivation string

// The derivations. Those of a token's own salt are done with each token.
const (
	Verbatim Derivation = ""          // the master itself, or what is derived for each token
	Concat   Derivation = "concat"    // Hash(Salt || master)
	Label    Derivation = "label"     // HMAC-Hash(master, Salt)
	PBKDF2   Derivation = "pbkdf2"    // RFC 8018, 5.2
	HKDF     Derivation = "hkdf"      // RFC 5869, with SHA-256
	Counter  Derivation = "sp800-108" // SP 800-108r1, 4.1; of ring-*, with each token
)

// Hash names a hash function.
type Hash string

// The hashes. MD5 is for checking old view state alone.
const (
	MD5    Hash = "md5"
	SHA1   Hash = "sha1"
	SHA256 Hash = "sha256"
	SHA384 Hash = "sha384"
	SHA512 Hash = "sha512"
)

func (h Hash) constructor() func() hash.Hash {
	switch h {
	case MD5:
		return md5.New
	case SHA1:
		return sha1.New
	case SHA384:
		return sha512.New384
	case SHA512:
		return sha512.New
	}
	return sha256.New
}

// Size is the length of the hash in bytes.
func (h Hash) Size() int { return h.constructor()().Size() }

// Recipe is one declared computation with its parameters; fields that the
// scheme does not take are zero. Recipes are comparable, and two that are equal
// derive equal keys from one master.
type Recipe struct {
	Scheme     Scheme
	Derivation Derivation
	Hash       Hash   // of the derivation
	MAC        Hash   // of the tag
	Salt       string // of the derivation, or what stands for it
	Salt2      string // where a second key is derived
	Purposes   string // a list, see Purposes
	Iterations uint32 // of PBKDF2
	Size       uint32 // of a derived key, in bytes
}

// The bounds of parameters.
const (
	MaxSalt       = 512  // bytes of Salt and of Salt2
	MaxPurposes   = 2048 // bytes of Purposes
	MaxIterations = 1 << 16
	MaxAside      = 64 << 10 // bytes of Item.Aside
	MaxMaterial   = 1024     // bytes of a machine key
)

var (
	anyHash   = []Hash{SHA1, SHA256, SHA384, SHA512}
	newHashes = anyHash[1:]
)

// Purposes joins strings as .NET's BinaryWriter writes them, one after the
// other: the length of the UTF-8 text in groups of seven bits, then the text.
func Purposes(list ...string) string {
	var b []byte
	for _, s := range list {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	return string(b)
}

// countPurposes returns how many strings such a list holds; ok says that it is
// one, in its only form.
func countPurposes(list string) (n uint32, ok bool) {
	for len(list) > 0 {
		size, used := binary.Uvarint([]byte(list[:min(len(list), 5)]))
		if used <= 0 || used > 1 && list[used-1] == 0 || uint64(len(list)-used) < size {
			return 0, false
		}
		list = list[used+int(size):]
		n++
	}
	return n, true
}

// Admits reports whether the recipe is one of the set. It is the only gate in
// front of the arithmetic: everything that is not named here is refused.
func (s Set) Admits(r Recipe) bool {
	if len(r.Salt) > MaxSalt || len(r.Salt2) > MaxSalt || len(r.Purposes) > MaxPurposes {
		return false
	}
	// Each case rebuilds the recipe from the fields that are free, so that one
	// with anything else set is another recipe.
	switch s {
	case Django:
		return in(r.Hash, anyHash) && in(r.Scheme, []Scheme{Tag, HalfTag}) && r.Salt != "" &&
			r == Recipe{Scheme: r.Scheme, Derivation: Concat, Hash: r.Hash, MAC: r.Hash, Salt: r.Salt}
	case Itsdangerous, Flask:
		return in(r.Hash, anyHash) && in(r.Derivation, []Derivation{Concat, Label}) && r.Salt != "" &&
			r == Recipe{Scheme: Tag, Derivation: r.Derivation, Hash: r.Hash, MAC: r.Hash, Salt: r.Salt}
	case Rails:
		return admitsRails(r)
	case RailsVerifier, Keygrip:
		return in(r.MAC, anyHash) && r == Recipe{Scheme: Tag, MAC: r.MAC}
	case CookieSignature:
		return r == Recipe{Scheme: Tag, MAC: SHA256}
	case JWT:
		return in(r.MAC, newHashes) && r == Recipe{Scheme: Tag, MAC: r.MAC}
	case Laravel:
		return r == Recipe{Scheme: LaravelCBC, Salt: r.Salt} || r == Recipe{Scheme: LaravelGCM, Salt: r.Salt} ||
			r == Recipe{Scheme: LaravelURL} || r == Recipe{Scheme: LaravelURL, Salt: LaravelPrefix} || r == Recipe{Scheme: LaravelClosure}
	case Iron:
		return r == Recipe{Scheme: IronSeal}
	case AuthJS:
		return r == Recipe{Scheme: JWEGCM, Derivation: HKDF, Salt: r.Salt} || r == Recipe{Scheme: JWECBC, Derivation: HKDF, Salt: r.Salt}
	case Plug:
		return admitsPlug(r)
	case Symfony:
		return r == Recipe{Scheme: SymfonyURI} || r == Recipe{Scheme: SymfonyUser}
	}
	return s.admitsDotNet(r)
}

func admitsRails(r Recipe) bool {
	if !in(r.Hash, anyHash) || r.Iterations != 1000 && r.Iterations != 1<<16 || r.Salt == "" {
		return false
	}
	free := Recipe{Scheme: r.Scheme, Derivation: PBKDF2, Hash: r.Hash, Salt: r.Salt, Iterations: r.Iterations}
	switch r.Scheme {
	case RailsTag:
		free.MAC, free.Size = r.MAC, 64
		return in(r.MAC, anyHash) && r == free
	case RailsGCM:
		free.Size = r.Size
		return in(r.Size, []uint32{16, 24, 32}) && r == free
	case RailsCBC:
		free.MAC, free.Salt2 = r.MAC, r.Salt2
		return in(r.MAC, anyHash) && r.Salt2 != "" && r.Salt2 != r.Salt && r == free
	}
	return false
}

func admitsPlug(r Recipe) bool {
	if !in(r.Hash, anyHash) || r.Iterations == 0 || r.Iterations > MaxIterations || !in(r.Size, []uint32{32, 48, 64}) || r.Salt == "" {
		return false
	}
	free := Recipe{Scheme: r.Scheme, Derivation: PBKDF2, Hash: r.Hash, Salt: r.Salt, Iterations: r.Iterations, Size: r.Size}
	switch r.Scheme {
	case Tag:
		free.MAC = r.MAC
		return in(r.MAC, newHashes) && r == free
	case PlugXChaCha:
		return r == free
	case PlugGCM:
		free.Salt2 = r.Salt2
		return r == free
	}
	return false
}

func (s Set) admitsDotNet(r Recipe) bool {
	if _, ok := countPurposes(r.Purposes); !ok {
		return false
	}
	switch s {
	case ASPNET:
		return in(r.MAC, anyHash) && in(r.Scheme, []Scheme{MachineKey, MachineKey3DES, MachineKeyTold}) &&
			r.Salt != "" && !strings.Contains(r.Salt, "\x00") &&
			r == Recipe{Scheme: r.Scheme, Derivation: Counter, MAC: r.MAC, Salt: r.Salt, Purposes: r.Purposes}
	case ASPNETLegacy:
		return r == Recipe{Scheme: LegacyMAC, MAC: MD5} ||
			in(r.MAC, anyHash) && in(r.Scheme, []Scheme{LegacyMAC, LegacyAES, Legacy3DES}) && r == Recipe{Scheme: r.Scheme, MAC: r.MAC}
	case DataProtection:
		free := Recipe{Scheme: r.Scheme, Derivation: Counter, Purposes: r.Purposes, Size: r.Size}
		if r.Scheme == RingCBC {
			free.MAC = r.MAC
		}
		return in(r.Size, []uint32{16, 24, 32}) && r == free &&
			(r.Scheme == RingGCM || r.Scheme == RingCBC && in(r.MAC, []Hash{SHA256, SHA512}))
	}
	return false
}

func in[T comparable](v T, list []T) bool { return slices.Contains(list, v) }

var errMaterial = claviger.Errorf(claviger.Invalid, "the material is no machine key of the set",
	"a machine key has 1 to 1024 bytes; for laravel 16 or 32, for ASP.NET a decryption key and a validation key, and for Data Protection an id and a master key")

// Check reports whether the material can be a key of the set.
func (s Set) Check(material []byte) error {
	ok := len(material) > 0 && len(material) <= MaxMaterial
	switch s {
	case Laravel:
		ok = len(material) == 16 || len(material) == 32
	case DataProtection:
		ok = ok && len(material) > idSize
	case ASPNET, ASPNETLegacy:
		decryption, validation, pair := split(material)
		ok = ok && pair && in(len(decryption), []int{8, 16, 24, 32}) && len(validation) >= 16 && len(validation) <= 256
	}
	if !ok {
		return errMaterial
	}
	return nil
}

// Parts returns the secrets in the material, each as an application would hold
// it. They share its memory.
func (s Set) Parts(material []byte) [][]byte {
	switch s {
	case DataProtection:
		return [][]byte{material[min(idSize, len(material)):]}
	case ASPNET, ASPNETLegacy:
		if decryption, validation, ok := split(material); ok {
			return [][]byte{decryption, validation}
		}
	}
	return [][]byte{material}
}

// Shares reports whether one secret may be adopted for both sets, in two keys:
// where neither computes anything for the other that it would not do for
// itself. DESIGN.md has the argument.
func (s Set) Shares(other Set) bool {
	plain := []Set{CookieSignature, Keygrip, JWT}
	return s != other && slices.Contains(plain, s) && slices.Contains(plain, other)
}

// Fresh makes new material for the set. The caller clears it after use.
func (s Set) Fresh(random io.Reader) ([]byte, error) {
	material := make([]byte, 64)
	switch s {
	case Laravel:
		material = material[:32]
	case ASPNET:
		material = make([]byte, 32+64)
	case DataProtection:
		material = make([]byte, idSize+64)
	case ASPNETLegacy:
		return nil, claviger.Errorf(claviger.Unsupported, "keys of this set are imported only: nothing is made under them", "import the key, or use aspnet45")
	}
	if _, err := io.ReadFull(random, material); err != nil {
		return nil, err
	}
	if s == ASPNET {
		return Pair(material[:32], material[32:]), nil
	}
	return material, nil
}

// Pair is the material of a machineKey element: its decryptionKey and its
// validationKey, decoded, the first with its length in two bytes before it.
func Pair(decryption, validation []byte) []byte {
	out := make([]byte, 0, 2+len(decryption)+len(validation))
	out = binary.BigEndian.AppendUint16(out, uint16(len(decryption)))
	return append(append(out, decryption...), validation...)
}

// idSize is the length of a GUID.
const idSize = 16

// Entry is the material of an entry of a Data Protection key ring: its id, the
// bytes of the GUID as .NET has them, and its master key, decoded. Every token
// carries the id in clear.
func Entry(id [idSize]byte, master []byte) []byte {
	return append(append(make([]byte, 0, idSize+len(master)), id[:]...), master...)
}

func split(pair []byte) (first, second []byte, ok bool) {
	if len(pair) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(pair)) + 2
	if n > len(pair) {
		return nil, nil, false
	}
	return pair[2:n:n], pair[n:], true
}
