package dbsc_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger.dev/dbsc"
	"claviger.dev/dpop"
	"github.com/go-jose/go-jose/v4"
)

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// flaky are keys that cannot be had at times.
type flaky struct {
	dbsc.Memory
	err error
}

func (f *flaky) Key(ctx context.Context, session string) (crypto.PublicKey, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.Memory.Key(ctx, session)
}

// world is a server and a browser that was written from the draft.
type world struct {
	*dbsc.Server
	t       *testing.T
	keys    *flaky
	now     time.Time
	h       http.Handler
	macs    int
	key     crypto.Signer
	session string // cookie
	bound   string // cookie
	id      string // of the session, as the instructions have it
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, keys: &flaky{}, now: start, session: "session-1", key: newKey(t)}
	base, _ := url.Parse("https://bank.example.com")
	mac := dpop.NonceKey(make([]byte, 32))
	w.Server = &dbsc.Server{Base: base, Keys: w.keys, Now: func() time.Time { return w.now },
		MAC: func(ctx context.Context, m []byte) ([]byte, error) { w.macs++; return mac(ctx, m) },
		Session: func(r *http.Request) (string, bool) {
			c, err := r.Cookie("login")
			if err != nil {
				return "", false
			}
			return c.Value, true
		}}
	mux := http.NewServeMux()
	mux.Handle("/dbsc/", w.Handler())
	mux.Handle("GET /account", w.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })))
	w.h = mux
	w.keys.Begin(w.session)
	return w
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// send sends what the browser would; fields are pairs.
func (w *world) send(method, path string, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "https://bank.example.com"+path, nil)
	if w.session != "" {
		r.AddCookie(&http.Cookie{Name: "login", Value: w.session})
	}
	if w.bound != "" {
		r.AddCookie(&http.Cookie{Name: "__Host-bound", Value: w.bound})
	}
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	out := httptest.NewRecorder()
	w.h.ServeHTTP(out, r)
	return out
}

// sign makes a proof; own puts the key into its header.
func (w *world) sign(key crypto.Signer, typ, challenge string, own bool) string {
	w.t.Helper()
	alg := jose.ES256
	if _, ok := key.(*rsa.PrivateKey); ok {
		alg = jose.RS256
	}
	options := (&jose.SignerOptions{EmbedJWK: own}).WithType(jose.ContentType(typ))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	if err != nil {
		w.t.Fatal(err)
	}
	claims, _ := json.Marshal(map[string]string{"jti": challenge})
	signed, err := signer.Sign(claims)
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

var challengeOf = regexp.MustCompile(`(?:challenge=|^)"([^"]+)"`)

// offered is the challenge of an Offer at a login.
func (w *world) offered() string {
	w.t.Helper()
	out := httptest.NewRecorder()
	if err := w.Offer(out, httptest.NewRequest("POST", "https://bank.example.com/login", nil), w.session); err != nil {
		w.t.Fatal(err)
	}
	field := out.Header().Get("Secure-Session-Registration")
	if !strings.HasPrefix(field, `(ES256 RS256);path="/dbsc/register";challenge="`) {
		w.t.Fatalf("offer %q", field)
	}
	return challengeOf.FindStringSubmatch(field)[1]
}

// adopt takes the bound cookie and the instructions of an answer.
func (w *world) adopt(out *httptest.ResponseRecorder) {
	w.t.Helper()
	var told struct {
		Session     string `json:"session_identifier"`
		Refresh     string `json:"refresh_url"`
		Continue    bool   `json:"continue"`
		Credentials []struct{ Name, Attributes string }
		Scope       struct {
			Origin string `json:"origin"`
			Site   *bool  `json:"include_site"`
		}
	}
	if err := json.Unmarshal(out.Body.Bytes(), &told); err != nil || out.Code != 200 || !told.Continue || told.Refresh != "/dbsc/refresh" ||
		len(told.Credentials) != 1 || told.Scope.Origin != "https://bank.example.com" || told.Scope.Site == nil {
		w.t.Fatalf("status %d, %s: %v", out.Code, out.Body, err)
	}
	set := out.Result().Cookies()
	if len(set) != 1 || set[0].Name != told.Credentials[0].Name || !set[0].Secure || !set[0].HttpOnly || out.Header().Get("Cache-Control") != "no-store" {
		w.t.Fatalf("cookies %v", set)
	}
	w.bound, w.id = set[0].Value, told.Session
}

func (w *world) register() {
	w.t.Helper()
	w.adopt(w.send("POST", "/dbsc/register", "Secure-Session-Response", `"`+w.sign(w.key, "dbsc+jwt", w.offered(), true)+`"`))
}

// challenge asks for one at the refresh endpoint.
func (w *world) challenge() string {
	w.t.Helper()
	out := w.send("POST", "/dbsc/refresh", "Sec-Secure-Session-Id", `"`+w.id+`"`)
	field := out.Header().Get("Secure-Session-Challenge")
	if out.Code != 403 || !strings.HasSuffix(field, `;id="`+w.id+`"`) {
		w.t.Fatalf("status %d, %q", out.Code, field)
	}
	return challengeOf.FindStringSubmatch(field)[1]
}

func (w *world) refresh(proof string) *httptest.ResponseRecorder {
	return w.send("POST", "/dbsc/refresh", "Sec-Secure-Session-Id", w.id, "Secure-Session-Response", proof)
}

func (w *world) account(want int) {
	w.t.Helper()
	if got := w.send("GET", "/account").Code; got != want {
		w.t.Errorf("the account answers %d, want %d", got, want)
	}
}

func TestLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(204) // not bound yet, or a browser that cannot
	w.register()
	w.account(204)
	stolen := *w
	stolen.bound = ""
	stolen.account(401)
	w.now = w.now.Add(10 * time.Minute)
	w.account(401)
	w.adopt(w.refresh(w.sign(w.key, "dbsc+jwt", w.challenge(), false)))
	w.account(204)
	for range 100 { // a day, refreshed
		w.now = w.now.Add(15 * time.Minute)
		w.adopt(w.refresh(w.sign(w.key, "dbsc+jwt", w.challenge(), false)))
		w.account(204)
	}
	if w.macs > 60 {
		t.Errorf("the MAC was asked for %d times in 25 hours", w.macs)
	}
	w.keys.End(w.session)
	out := w.refresh(w.sign(w.key, "dbsc+jwt", "any", false))
	if got := out.Body.String(); out.Code != 200 || got != `{"session_identifier":"`+w.id+`","continue":false}` || out.Result().Cookies()[0].MaxAge != -1 {
		t.Errorf("of an ended session: %d, %s", out.Code, got)
	}
}

func TestRSA(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w.key = key
	w.register()
	w.adopt(w.refresh(w.sign(w.key, "dbsc+jwt", w.challenge(), false)))
	w.account(204)
}

// TestRaces sends one proof, and proofs of two challenges, many times at once.
func TestRaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.register()
	first := w.sign(w.key, "dbsc+jwt", w.challenge(), false)
	w.now = w.now.Add(time.Second)
	second := w.sign(w.key, "dbsc+jwt", w.challenge(), false)
	w.now = w.now.Add(time.Minute)
	cookies := make([]string, 20)
	ends := make([]time.Time, 20)
	var wg sync.WaitGroup
	for i := range cookies {
		wg.Go(func() {
			proof := first
			if i%2 == 1 {
				proof = second
			}
			if set := w.refresh(proof).Result().Cookies(); len(set) == 1 {
				cookies[i], ends[i] = set[0].Value, set[0].Expires
			}
		})
	}
	wg.Wait()
	for i := range cookies {
		if cookies[i] != cookies[i%2] || cookies[i] == "" || !ends[i].Equal(start.Add(10*time.Minute+time.Duration(i%2)*time.Second)) {
			t.Errorf("answer %d: %q until %s", i, cookies[i], ends[i])
		}
	}
	for _, cookie := range cookies[:2] { // both are good
		w.bound = cookie
		w.account(204)
	}
	// A proof that is sent long after gives nothing.
	w.now = w.now.Add(2 * time.Minute)
	if out := w.refresh(first); out.Code != 403 || len(out.Result().Cookies()) != 0 || out.Header().Get("Secure-Session-Challenge") == "" {
		t.Errorf("an old proof: status %d, %v", out.Code, out.Result().Cookies())
	}
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := newWorld(t)
	other.session = "session-2"
	challenge := w.offered()
	good := w.sign(w.key, "dbsc+jwt", challenge, true)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, fields := range map[string][]string{
		"nothing":              nil,
		"not a JWT":            {"Secure-Session-Response", `"a.b"`},
		"two":                  {"Secure-Session-Response", good, "Secure-Session-Response", good},
		"half a string":        {"Secure-Session-Response", `"` + good},
		"no key":               {"Secure-Session-Response", w.sign(w.key, "dbsc+jwt", challenge, false)},
		"a weak key":           {"Secure-Session-Response", w.sign(weak, "dbsc+jwt", challenge, true)},
		"a DPoP proof":         {"Secure-Session-Response", w.sign(w.key, "dpop+jwt", challenge, true)},
		"no challenge":         {"Secure-Session-Response", w.sign(w.key, "dbsc+jwt", "", true)},
		"a made-up challenge":  {"Secure-Session-Response", w.sign(w.key, "dbsc+jwt", strings.Repeat("A", 32), true)},
		"another's challenge":  {"Secure-Session-Response", w.sign(w.key, "dbsc+jwt", other.offered(), true)},
		"cookie for challenge": {"Secure-Session-Response", w.sign(w.key, "dbsc+jwt", cookieOf(other), true)},
		"a broken signature":   {"Secure-Session-Response", good[:len(good)-8] + "AAAAAAAA"},
		"a long one":           {"Secure-Session-Response", good + strings.Repeat("A", 5000)},
	} {
		if out := w.send("POST", "/dbsc/register", fields...); out.Code != 400 || len(out.Result().Cookies()) != 0 {
			t.Errorf("%s: status %d", name, out.Code)
		}
	}
	w.account(204) // still not bound
	if out := w.send("GET", "/dbsc/register"); out.Code != 405 {
		t.Errorf("GET: status %d", out.Code)
	}
	w.now = w.now.Add(3 * time.Minute)
	if out := w.send("POST", "/dbsc/register", "Secure-Session-Response", good); out.Code != 400 {
		t.Errorf("too late: status %d", out.Code)
	}
	session := w.session
	w.session = ""
	if out := w.send("POST", "/dbsc/register", "Secure-Session-Response", good); out.Code != 401 {
		t.Errorf("without a session: status %d", out.Code)
	}
	w.session = session
	w.register()
	w.register() // once more with the same key, as after a lost answer
	// A thief of the cookie cannot bind the session to a key of his own.
	if out := w.send("POST", "/dbsc/register", "Secure-Session-Response", w.sign(newKey(t), "dbsc+jwt", w.offered(), true)); out.Code != 409 {
		t.Errorf("a second key: status %d", out.Code)
	}
	w.account(204)
}

// TestRegistered has the application note each registration, and no other one.
func TestRegistered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var told []string
	w.Registered = func(_ context.Context, session, thumbprint string) {
		key, err := w.keys.Key(t.Context(), session)
		if err != nil || key == nil {
			t.Errorf("told before it stands: %v, %v", key, err)
		}
		told = append(told, session+" "+thumbprint)
	}
	if out := w.send("POST", "/dbsc/register", "Secure-Session-Response", w.sign(w.key, "dbsc+jwt", "made up", true)); out.Code != 400 {
		t.Errorf("a made-up challenge: status %d", out.Code)
	}
	w.register()
	if out := w.send("POST", "/dbsc/register", "Secure-Session-Response", w.sign(newKey(t), "dbsc+jwt", w.offered(), true)); out.Code != 409 {
		t.Errorf("a second key: status %d", out.Code)
	}
	w.adopt(w.refresh(w.sign(w.key, "dbsc+jwt", w.challenge(), false))) // no registration
	signer, err := dpop.NewSigner(w.key, "")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{w.session + " " + signer.Thumbprint()}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// cookieOf is a bound cookie of another session.
func cookieOf(w *world) string {
	w.keys.Begin(w.session)
	w.register()
	return w.bound
}

func TestRefreshRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.register()
	thief := newKey(t)
	challenge := w.challenge()
	for name, c := range map[string]struct {
		proof string
		want  int
	}{
		"another key":            {w.sign(thief, "dbsc+jwt", challenge, false), 400},
		"another key in it":      {w.sign(thief, "dbsc+jwt", challenge, true), 400},
		"a DPoP proof":           {w.sign(w.key, "dpop+jwt", challenge, false), 400},
		"a made-up challenge":    {w.sign(w.key, "dbsc+jwt", strings.Repeat("A", 32), false), 403},
		"a cookie for challenge": {w.sign(w.key, "dbsc+jwt", w.bound, false), 403},
		"good":                   {w.sign(w.key, "dbsc+jwt", challenge, true), 200},
	} {
		if out := w.refresh(c.proof); out.Code != c.want || c.want != 200 && len(out.Result().Cookies()) != 0 {
			t.Errorf("%s: status %d, want %d", name, out.Code, c.want)
		}
	}
	if out := w.send("POST", "/dbsc/refresh"); out.Code != 400 {
		t.Errorf("without an identifier: status %d", out.Code)
	}
	if out := w.send("POST", "/dbsc/refresh", "Sec-Secure-Session-Id", "another"); !strings.Contains(out.Body.String(), `"continue":false`) {
		t.Errorf("of a session that there is not: %s", out.Body)
	}
}

// TestLastToFall checks that the browser is never told to give up while it is
// not known whether it should, and that no stranger passes meanwhile.
func TestLastToFall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.register()
	proof := w.sign(w.key, "dbsc+jwt", w.challenge(), false)
	w.keys.err = errors.New("the store is away")
	if out := w.refresh(proof); out.Code != 503 || len(out.Result().Cookies()) != 0 || out.Header().Get("Retry-After") == "" {
		t.Errorf("status %d", out.Code)
	}
	w.account(503)
	w.keys.err = nil
	w.adopt(w.refresh(proof))
	w.account(204)
	down := func(context.Context, []byte) ([]byte, error) { return nil, errors.New("custody is away") }
	w.MAC = down
	w.now = w.now.Add(9 * time.Minute)
	w.account(204)
	w.adopt(w.refresh(w.sign(w.key, "dbsc+jwt", w.challenge(), false))) // by the key of this hour
	w.now = w.now.Add(time.Hour)
	if out := w.send("POST", "/dbsc/refresh", "Sec-Secure-Session-Id", w.id); out.Code != 503 {
		t.Errorf("in the next hour: status %d", out.Code)
	}
}

// TestCookies are bound cookies that are not the session's.
func TestCookies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.register()
	own := w.bound
	other := newWorld(t)
	other.session = "session-2"
	for name, cookie := range map[string]string{"none": "", "another session's": cookieOf(other), "a challenge": w.challenge(), "garbage": "!", "cut": own[:len(own)-1],
		"of all time": strings.Repeat("_", 32)} {
		w.bound = cookie
		if got := w.send("GET", "/account").Code; got != 401 {
			t.Errorf("%s: status %d", name, got)
		}
	}
	w.bound = own
	if got := w.send("GET", "/account", "Cookie", "__Host-bound="+own).Code; got != 401 {
		t.Errorf("two: status %d", got)
	}
	w.Refused = http.RedirectHandler("/login", http.StatusSeeOther)
	w.bound = ""
	w.account(303)
}

// FuzzProof looks for a proof that binds or renews without a signature.
func FuzzProof(f *testing.F) {
	f.Add("a.b.c", "id")
	f.Add(`"eyJ0eXAiOiJkYnNjK2p3dCIsImFsZyI6IkVTMjU2In0.eyJqdGkiOiJhIn0.AA"`, `"id"`)
	f.Add(`eyJ0eXAiOiJkYnNjK2p3dCIsImFsZyI6Im5vbmUiLCJqd2siOnt9fQ.e30.`, "")
	f.Fuzz(func(t *testing.T, proof, id string) {
		w := newWorld(t)
		w.register()
		for _, path := range []string{"/dbsc/register", "/dbsc/refresh"} {
			out := w.send("POST", path, "Secure-Session-Response", proof, "Sec-Secure-Session-Id", id)
			for _, c := range out.Result().Cookies() {
				if c.MaxAge >= 0 {
					t.Errorf("%s gave a cookie for %q", path, proof)
				}
			}
		}
	})
}
