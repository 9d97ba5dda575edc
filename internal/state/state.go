// Package state makes and checks the trusted state of web frameworks: cookies,
// tokens, tickets and view state, compatible to the byte.
//
// It owns the text of each format, one file a framework. It promises that what
// it makes is what the framework makes, that work and memory for a hostile
// token are bounded by its length, and that there is one error for every way in
// which a token can be wrong. It never sees a key: a User runs recipes on its
// behalf. It must never decompress, deserialise or compare against a clock:
// that is for whoever reads the payload and the facts.
package state

import (
	"context"
	"sync"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/recipe"
)

// User runs recipes with one version of a machine key; custody's client does.
type User interface {
	// Run makes or checks each item. It returns a result for each, or an error
	// when nothing could be done.
	Run(ctx context.Context, r recipe.Recipe, make bool, items []recipe.Item) ([]recipe.Result, error)
}

// MaxToken is the longest token, in bytes, and MaxPayload the longest payload.
const (
	MaxToken   = 1 << 20
	MaxPayload = 512 << 10
)

// Params are the parameters of a format. Each format's constant names those it
// takes, with their defaults; the others are not looked at.
type Params struct {
	Salt       string      // salt, or the first of two
	Salt2      string      // the second
	Name       string      // of a cookie
	Purpose    string      // what the token is for
	Purposes   []string    // what it is for, in particular
	AnyPurpose bool        // Unprotect takes any purpose, and tells it
	Digest     recipe.Hash // of the signature
	KDF        recipe.Hash // of the derivation
	Derivation string      // of itsdangerous: "django-concat", "concat" or "hmac"
	Iterations uint32      // of PBKDF2
	Size       uint32      // of a derived key, in bytes
	Cipher     string      // where a format has several
	Encoding   string      // where a format has several
	Separator  string      // between the parts of a token
	KeyID      string      // password id, or kid
	Issued     time.Time   // Protect: when it is made, for formats that carry that
	Expires    time.Time   // Protect: when it ends, for formats that carry that
	Compressed bool        // Protect: the payload is compressed, and the token says so
	Over       []byte      // detached signatures: what they are over
	Header     []byte      // Protect: the JSON of a JWT's header
	Properties [][]byte    // Symfony: the signature properties of the user
	Class      string      // Symfony: the class of the user
	Modifier   []byte      // ASP.NET legacy: what the page adds
	Whole      bool        // Rails: the payload is the whole message, in its envelope where it has one
}

// Facts are what a token that was checked says of itself.
type Facts struct {
	Issued     time.Time // zero where the format does not carry it
	Expires    time.Time // zero where it does not end, or does not say
	Purpose    string
	KeyID      string
	Compressed bool
	Header     []byte // of a JWT
}

// Opened is the answer for one of many tokens. The rest is zero unless OK.
type Opened struct {
	OK      bool
	Payload []byte
	Facts   Facts
}

// ErrToken answers every token that is wrong, in whatever way.
var ErrToken error = claviger.Errorf(claviger.Invalid, "the token is not valid", "ask for a new one")

var (
	errFormat  = claviger.Errorf(claviger.Unsupported, "there is no such format", "use a format of the key's recipe set")
	errParams  = claviger.Errorf(claviger.Invalid, "the parameters do not fit the format", "see the parameters that the format takes")
	errPayload = claviger.Errorf(claviger.Invalid, "the format cannot carry this payload", "see what the format takes as its payload")
	errLarge   = claviger.Errorf(claviger.TooLarge, "the payload or the token is too long", "a payload has at most 512 KiB and a token 1 MiB")
	errOther   = claviger.Errorf(claviger.Internal, "custody answered something else than it was asked for", "report this with the request id")
	errNoTime  = claviger.Errorf(claviger.Invalid, "the format carries a time, and none was given", "give the time at which the token is made")
)

// Format names one kind of token.
type Format string

// codec is what a format is made of. recipe depends on the parameters alone,
// so that one request carries many tokens.
type codec struct {
	sets    []recipe.Set
	recipe  func(p Params) (recipe.Recipe, error)
	protect func(p Params, payload []byte) (making, error)
	open    func(p Params, token []byte) (opening, bool)
}

// making is a payload on its way to a token: what is to be done in custody, and
// how its output becomes the token.
type making struct {
	least  int // bytes of output that finish takes for granted
	item   recipe.Item
	finish func(output []byte) []byte
}

// opening is a token on its way to a payload.
type opening struct {
	item   recipe.Item
	finish func(output []byte) (payload []byte, f Facts, ok bool)
}

// Sets returns the recipe sets whose keys make and check the format. The list
// is not to be changed.
func (f Format) Sets() []recipe.Set { return codecOf(f).sets }

// Formats lists every format that Protect and Unprotect have, by framework.
func Formats() []Format {
	return []Format{
		DjangoSigner, DjangoTimestamp, DjangoDumps, DjangoSession, DjangoCookie, DjangoCookieDumps, DjangoReset, DjangoHMAC,
		ItsdangerousSigner, ItsdangerousTimestamp, ItsdangerousURLSafe, ItsdangerousTimed, FlaskSession,
		RailsVerifier, RailsEncrypted, RailsCBC, RailsSignedCookie, RailsEncryptedCookie, RailsCBCCookie,
		LaravelEncrypted, LaravelURL, LaravelClosure, CookieSignature, ExpressCookie, KeygripSignature, CookieSession, Iron, IronSession,
		NextAuth, AuthJS, JWT, PlugVerifier, PlugToken, PlugEncrypted, PlugEncryptedToken,
		SymfonyURI, SymfonyHash, SymfonyRemember, SymfonySignature,
		ASPNETProtect, ASPNETForms, ASPNETViewState, ASPNETOWIN, ASPNETLegacyViewState, DataProtection,
	}
}

// codecs are the codecs of all formats, made once: one is looked for at every
// token.
var codecs = sync.OnceValue(func() map[Format]codec {
	all := map[Format]codec{}
	for _, f := range Formats() {
		for _, family := range []func(Format) codec{django, itsdangerous, rails, laravel, express, iron, jwe, jwt, plug, symfony, aspnet, dataProtection} {
			if c := family(f); c.recipe != nil {
				all[f] = c
			}
		}
	}
	return all
})

// codecOf returns the codec of a format, whose recipe is nil when there is none.
func codecOf(f Format) codec { return codecs()[f] }

// Protect makes a token of a payload.
func Protect(ctx context.Context, u User, f Format, p Params, payload []byte) ([]byte, error) {
	tokens, err := ProtectAll(ctx, u, f, p, [][]byte{payload})
	if err != nil {
		return nil, err
	}
	return tokens[0], nil
}

// Unprotect checks a token and returns its payload and what it says of itself.
// It is ErrToken when the token is not valid, for whatever reason; whether it
// has expired is for the caller to say.
func Unprotect(ctx context.Context, u User, f Format, p Params, token []byte) ([]byte, Facts, error) {
	opened, err := UnprotectAll(ctx, u, f, p, [][]byte{token})
	if err != nil {
		return nil, Facts{}, err
	}
	if !opened[0].OK {
		return nil, Facts{}, ErrToken
	}
	return opened[0].Payload, opened[0].Facts, nil
}

// ProtectAll makes a token of each payload, 1 to 1000, in one request. One that
// cannot be made fails them all.
func ProtectAll(ctx context.Context, u User, f Format, p Params, payloads [][]byte) ([][]byte, error) {
	c := codecOf(f)
	if c.recipe == nil {
		return nil, errFormat
	}
	if c.protect == nil {
		return nil, claviger.Errorf(claviger.Unsupported, "tokens of this format are checked, never made", "make tokens of a newer format")
	}
	r, err := c.recipe(p)
	if err != nil {
		return nil, err
	}
	makings, items := make([]making, len(payloads)), make([]recipe.Item, len(payloads))
	for i, payload := range payloads {
		if len(payload) > MaxPayload {
			return nil, errLarge
		}
		if makings[i], err = c.protect(p, payload); err != nil {
			return nil, err
		}
		items[i] = makings[i].item
	}
	results, err := run(ctx, u, r, true, items)
	if err != nil {
		return nil, err
	}
	tokens := make([][]byte, len(payloads))
	for i, result := range results {
		if !result.OK {
			return nil, errPayload
		}
		if len(result.Output) < makings[i].least {
			return nil, errOther
		}
		if tokens[i] = makings[i].finish(result.Output); len(tokens[i]) > MaxToken {
			return nil, errLarge
		}
	}
	return tokens, nil
}

// UnprotectAll checks each token, 1 to 1000, in one request.
func UnprotectAll(ctx context.Context, u User, f Format, p Params, tokens [][]byte) ([]Opened, error) {
	c := codecOf(f)
	if c.recipe == nil {
		return nil, errFormat
	}
	r, err := c.recipe(p)
	if err != nil {
		return nil, err
	}
	openings, items, at := make([]opening, 0, len(tokens)), make([]recipe.Item, 0, len(tokens)), make([]int, 0, len(tokens))
	for i, token := range tokens {
		if len(token) > MaxToken {
			continue
		}
		if o, ok := c.open(p, token); ok && len(o.item.Aside) <= recipe.MaxAside {
			openings, items, at = append(openings, o), append(items, o.item), append(at, i)
		}
	}
	out := make([]Opened, len(tokens))
	if len(items) == 0 {
		return out, nil
	}
	results, err := run(ctx, u, r, false, items)
	if err != nil {
		return nil, err
	}
	for i, result := range results {
		if !result.OK {
			continue
		}
		if payload, facts, ok := openings[i].finish(result.Output); ok {
			out[at[i]] = Opened{OK: true, Payload: payload, Facts: facts}
		}
	}
	return out, nil
}

func run(ctx context.Context, u User, r recipe.Recipe, make bool, items []recipe.Item) ([]recipe.Result, error) {
	results, err := u.Run(ctx, r, make, items)
	if err != nil {
		return nil, err
	}
	if len(results) != len(items) {
		return nil, errOther
	}
	return results, nil
}
