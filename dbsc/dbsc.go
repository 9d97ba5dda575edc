// Package dbsc is the server's side of Device Bound Session Credentials, the
// W3C draft of 2026: a browser makes a key for a login, in the device's TPM
// where it has one, and the application's cookie is worth nothing without a
// second one that lives for minutes and that the browser gets for a signature
// by that key. Browsers that do not know it go on as before.
//
// It owns the endpoints that a browser registers and renews at, the middleware
// of the application, and the text of both. It promises that a session which
// was bound once never passes without the bound cookie, that one proof gives
// one cookie however often it is sent, and that what cannot be known now is an
// answer after which the browser keeps its session and tries again. It must
// never bind a session to a second key, or take a key from a renewal.
package dbsc

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Keys are the keys that sessions are bound to: a part of the application's own
// record of its sessions.
type Keys interface {
	// Key returns the key that a session is bound to, nil where it is not. Its
	// error is ErrEnded where there is no such session any more; another one
	// means that this cannot be known now.
	Key(ctx context.Context, session string) (crypto.PublicKey, error)
	// Bind binds a session to a key that proved itself. Of two calls with two
	// keys, at whatever server, one gets ErrBound; with one key both succeed.
	Bind(ctx context.Context, session string, key crypto.PublicKey) error
}

// Errors of Keys.
var (
	ErrEnded = errors.New("the session has ended")
	ErrBound = errors.New("the session is bound to another key")
)

// challengeAge is how long a challenge is good.
const challengeAge = 2 * time.Minute

// span is how long one key of MACs is used; it is asked for once a span.
const span = time.Hour

// Server is an application with sessions of its own, whose cookie this binds.
// It may be used concurrently.
type Server struct {
	Base     *url.URL      // scheme and host, as browsers know them
	Path     string        // of the endpoints: Path+"/register" and Path+"/refresh"; "": "/dbsc"
	Cookie   string        // name of the bound cookie; "": "__Host-bound"
	Lifetime time.Duration // of the bound cookie; 0: ten minutes

	// Session tells the application's own session of a request, by its cookie.
	// ok is false where it has none. What it returns may be secret: it is not told.
	Session func(r *http.Request) (session string, ok bool)
	Keys    Keys

	// Registered is told of each registration that succeeded, once it is in Keys
	// and before the browser has its answer, with the key's RFC 7638 thumbprint,
	// in base64url: to note it elsewhere. nil: nobody is told. A browser that
	// sends its registration twice has it told twice.
	Registered func(ctx context.Context, session, thumbprint string)

	// MAC is a MAC by a key that all servers of the application share, and may be
	// in custody: it is asked once an hour (at least 16 bytes).
	MAC func(ctx context.Context, message []byte) ([]byte, error)

	// Refused answers a request of a bound session that has no good bound cookie.
	// nil: status 401.
	Refused http.Handler

	Now func() time.Time // time.Now if nil

	mu   sync.Mutex
	keys map[int64][]byte // of MACs, by span
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Server) path() string {
	if s.Path == "" {
		return "/dbsc"
	}
	return strings.TrimSuffix(s.Path, "/")
}

func (s *Server) cookie() string {
	if s.Cookie == "" {
		return "__Host-bound"
	}
	return s.Cookie
}

func (s *Server) lifetime() time.Duration {
	if s.Lifetime == 0 {
		return 10 * time.Minute
	}
	return s.Lifetime
}

// Offer has a browser that can bind the session that begins with this answer.
// Call it at the login alone, before the answer is written: a browser that
// comes later may be another's, with a cookie that it has no right to.
func (s *Server) Offer(w http.ResponseWriter, r *http.Request, session string) error {
	challenge, err := s.stamp(r.Context(), "challenge", session, s.now())
	if err != nil {
		return err
	}
	w.Header().Add("Secure-Session-Registration", `(ES256 RS256);path="`+s.path()+`/register";challenge="`+challenge+`"`)
	return nil
}

// End deletes the bound cookie with this answer. The browser gives its key up
// at its next request, when it is told that the session has ended; with a field
// Clear-Site-Data: "storage" it does so at once, and deletes what else the
// origin stores.
func (s *Server) End(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: s.cookie(), Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// Guard lets requests through whose session is not bound, and those whose
// bound cookie is good.
func (s *Server) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, ok := s.Session(r)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		key, err := s.Keys.Key(r.Context(), session)
		if errors.Is(err, ErrEnded) || err == nil && key == nil {
			next.ServeHTTP(w, r) // what an ended session may is the application's to say, as without this
			return
		}
		good := false
		if err == nil {
			good, err = s.bound(r, session)
		}
		switch {
		case err != nil:
			unavailable(w)
		case good:
			next.ServeHTTP(w, r)
		case s.Refused != nil:
			s.Refused.ServeHTTP(w, r)
		default:
			say(w, http.StatusUnauthorized, "this session is bound to a device, and the request does not come from it")
		}
	})
}

// bound reports whether a request has the session's bound cookie. Only one of
// the name counts: of two, nobody knows which is whose.
func (s *Server) bound(r *http.Request, session string) (bool, error) {
	cookies := r.CookiesNamed(s.cookie())
	if len(cookies) != 1 {
		return false, nil
	}
	ends, ok := stampTime(cookies[0].Value)
	if now := s.now(); !ok || !now.Before(ends) || ends.After(now.Add(s.lifetime()+time.Minute)) {
		return false, nil
	}
	want, err := s.stamp(r.Context(), "cookie", session, ends)
	return subtle.ConstantTimeCompare([]byte(want), []byte(cookies[0].Value)) == 1, err
}

// Handler returns the endpoints. Mount it at Path+"/".
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+s.path()+"/register", s.register)
	mux.HandleFunc("POST "+s.path()+"/refresh", s.refresh)
	return mux
}

// register binds a session to the key that signed the challenge of its Offer.
func (s *Server) register(w http.ResponseWriter, r *http.Request) {
	session, ok := s.Session(r)
	if !ok {
		say(w, http.StatusUnauthorized, "the request has no session")
		return
	}
	proof, err := readProof(r.Header)
	if err != nil {
		say(w, http.StatusBadRequest, err.Error())
		return
	}
	key := proof.own()
	if key == nil || !proof.by(key) {
		say(w, http.StatusBadRequest, "the proof is not by the key in its header")
		return
	}
	issued, err := s.challenged(r.Context(), session, proof.challenge)
	switch {
	case errors.Is(err, errChallenge):
		say(w, http.StatusBadRequest, err.Error())
		return
	case err == nil:
		if err = s.Keys.Bind(r.Context(), session, key); err == nil && s.Registered != nil {
			s.Registered(r.Context(), session, thumbprint(key))
		}
	}
	s.answer(w, r, session, issued, err)
}

// refresh gives a bound cookie for the signature of a challenge, or asks for
// one. The cookie is made of the challenge: who sends one proof twice gets the
// same cookie twice, with the same end, so that nothing has to be written and a
// proof that is seen by others is worth no more than its cookie.
func (s *Server) refresh(w http.ResponseWriter, r *http.Request) {
	session, ok := s.Session(r)
	asked, err := stringField(r.Header, "Sec-Secure-Session-Id")
	if err != nil {
		say(w, http.StatusBadRequest, err.Error())
		return
	}
	if !ok || asked != identifier(session) {
		s.terminate(w, asked)
		return
	}
	key, err := s.Keys.Key(r.Context(), session)
	if err != nil || key == nil {
		if err == nil {
			err = ErrEnded // of the binding
		}
		s.answer(w, r, session, time.Time{}, err)
		return
	}
	if r.Header.Get("Secure-Session-Response") == "" {
		s.challenge(w, r, session)
		return
	}
	proof, err := readProof(r.Header)
	if err != nil || !proof.by(key) {
		say(w, http.StatusBadRequest, "the proof is not by the key that this session is bound to")
		return
	}
	issued, err := s.challenged(r.Context(), session, proof.challenge)
	if errors.Is(err, errChallenge) {
		s.challenge(w, r, session) // it is too old: the key is the right one, and signs the next
		return
	}
	s.answer(w, r, session, issued, err)
}

// challenge asks the browser for a signature.
func (s *Server) challenge(w http.ResponseWriter, r *http.Request, session string) {
	challenge, err := s.stamp(r.Context(), "challenge", session, s.now())
	if err != nil {
		unavailable(w)
		return
	}
	w.Header().Set("Secure-Session-Challenge", `"`+challenge+`";id="`+identifier(session)+`"`)
	say(w, http.StatusForbidden, "sign the challenge")
}

// instructions are the JSON session instructions of the draft.
type instructions struct {
	Session     string       `json:"session_identifier"`
	Refresh     string       `json:"refresh_url,omitempty"`
	Continue    bool         `json:"continue"`
	Scope       *scope       `json:"scope,omitempty"`
	Credentials []credential `json:"credentials,omitempty"`
}

type scope struct {
	Origin string `json:"origin"`
	Site   bool   `json:"include_site"`
	Rules  []rule `json:"scope_specification"`
}

type rule struct {
	Type   string `json:"type"`
	Domain string `json:"domain"`
	Path   string `json:"path"`
}

type credential struct {
	Type       string `json:"type"`
	Name       string `json:"name"`
	Attributes string `json:"attributes"`
}

// answer gives the cookie of a challenge, or says what err means.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, session string, issued time.Time, err error) {
	var cookie string
	ends := issued.Add(s.lifetime())
	if err == nil {
		cookie, err = s.stamp(r.Context(), "cookie", session, ends)
	}
	switch {
	case errors.Is(err, ErrEnded):
		s.terminate(w, identifier(session))
		return
	case errors.Is(err, ErrBound):
		say(w, http.StatusConflict, err.Error())
		return
	case err != nil:
		unavailable(w)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: s.cookie(), Value: cookie, Path: "/", Expires: ends, MaxAge: max(int(ends.Sub(s.now()).Seconds()), 1),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	s.instruct(w, instructions{Session: identifier(session), Refresh: s.path() + "/refresh", Continue: true,
		Scope:       &scope{Origin: s.Base.Scheme + "://" + s.Base.Host, Rules: []rule{{"exclude", s.Base.Hostname(), s.path()}}},
		Credentials: []credential{{"cookie", s.cookie(), "Path=/; Secure; HttpOnly; SameSite=Lax"}}})
}

// terminate has the browser give its session and key up.
func (s *Server) terminate(w http.ResponseWriter, id string) {
	s.End(w)
	s.instruct(w, instructions{Session: id})
}

func (s *Server) instruct(w http.ResponseWriter, i instructions) {
	body, err := json.Marshal(i)
	if err != nil { // impossible: strings and booleans
		unavailable(w)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	_, _ = w.Write(body) // the browser may be gone
}

func say(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n")) // the browser may be gone
}

// unavailable is an answer after which a browser keeps its session.
func unavailable(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	say(w, http.StatusServiceUnavailable, "whether the session lives cannot be known now: try again")
}

// identifier is what a browser calls a session: the same for each of its
// requests, and no way back to what the application's own cookie holds.
func identifier(session string) string {
	sum := sha256.Sum256([]byte("claviger dbsc session\x00" + session))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// stampSize is a time and a MAC, in bytes.
const stampSize = 8 + 16

// stamp is a time with a MAC of it, of what it is for and of the session.
func (s *Server) stamp(ctx context.Context, purpose, session string, at time.Time) (string, error) {
	key, err := s.key(ctx, at.Unix()/int64(span/time.Second))
	if err != nil {
		return "", err
	}
	out := binary.BigEndian.AppendUint64(make([]byte, 0, stampSize), uint64(at.Unix()))
	mac := hmac.New(sha256.New, key)
	mac.Write(out)
	mac.Write([]byte(purpose + "\x00" + session))
	return base64.RawURLEncoding.EncodeToString(append(out, mac.Sum(nil)[:16]...)), nil
}

// stampTime is the time of a stamp that may be anybody's.
func stampTime(stamp string) (time.Time, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(stamp)
	if err != nil || len(b) != stampSize {
		return time.Time{}, false
	}
	return time.Unix(int64(binary.BigEndian.Uint64(b)), 0), true
}

// key returns the key of a span, of which a few are kept: those of challenges
// and cookies that may be good now.
func (s *Server) key(ctx context.Context, n int64) ([]byte, error) {
	s.mu.Lock()
	key := s.keys[n]
	s.mu.Unlock()
	if key != nil {
		return key, nil
	}
	key, err := s.MAC(ctx, []byte("claviger dbsc key\x00"+strconv.FormatInt(n, 10)))
	if err != nil {
		return nil, err
	}
	if len(key) < 16 {
		return nil, errors.New("the MAC is shorter than 16 bytes")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys == nil || len(s.keys) >= 8 {
		s.keys = map[int64][]byte{}
	}
	s.keys[n] = key
	return key, nil
}

var errChallenge = errors.New("the challenge is not one of this session, or too old")

// challenged returns when a challenge was made for a session.
func (s *Server) challenged(ctx context.Context, session, challenge string) (time.Time, error) {
	issued, ok := stampTime(challenge)
	if now := s.now(); !ok || now.After(issued.Add(challengeAge)) || issued.After(now.Add(10*time.Second)) {
		return time.Time{}, errChallenge
	}
	want, err := s.stamp(ctx, "challenge", session, issued)
	if err == nil && subtle.ConstantTimeCompare([]byte(want), []byte(challenge)) != 1 {
		err = errChallenge
	}
	return issued, err
}
