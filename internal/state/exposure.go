package state

import "slices"

// Danger is what a forged token of a format does to who reads it.
type Danger string

// The dangers. It is the framework's doing, and not that of the format's text:
// what a payload is decoded with.
const (
	// Always: the framework makes objects of what the payload names, so that
	// whoever can make a token can run code.
	Always Danger = "always"
	// Maybe: it depends on how the application is set up.
	Maybe Danger = "maybe"
	// Never: the payload is text, numbers or JSON, or nothing is in it.
	Never Danger = "never"
)

// Deserialises returns what a forged token of the format does: after an
// exposure tokens of a format that always does it never pass.
func (f Format) Deserialises() Danger {
	switch f {
	case ASPNETViewState, ASPNETLegacyViewState, // LosFormatter
		LaravelClosure: // unserialize, and then the code that is in it
		return Always
	case LaravelEncrypted: // Crypt::encrypt and sessions serialise, cookies do not
		return Maybe
	case RailsVerifier, RailsEncrypted, RailsCBC, RailsSignedCookie, RailsEncryptedCookie, RailsCBCCookie: // Marshal until Rails 7.1, and as a fall-back after it
		return Maybe
	case DjangoDumps, DjangoSession, DjangoCookieDumps: // PickleSerializer until Django 5.0
		return Maybe
	case ItsdangerousURLSafe, ItsdangerousTimed: // a serializer of the application's choice
		return Maybe
	case ASPNETProtect, DataProtection: // what the application puts in
		return Maybe
	}
	return Never
}

// Timed reports whether tokens of the format carry the time at which they were
// issued; those of some carry it where the application puts it in.
func (f Format) Timed() bool {
	return slices.Contains([]Format{
		DjangoTimestamp, DjangoDumps, DjangoSession, DjangoCookie, DjangoCookieDumps, DjangoReset,
		ItsdangerousTimestamp, ItsdangerousTimed, FlaskSession,
		NextAuth, AuthJS, JWT, PlugToken, PlugEncryptedToken, ASPNETForms,
	}, f)
}
