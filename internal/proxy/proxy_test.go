package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/proxy"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// vault is custody in a test: machine keys with versions, the newest last.
type vault struct {
	mu       sync.Mutex
	versions map[string][]state.User
	fault    error
	calls    []string // "check N" and "make N", with the number of tokens
}

var errGone = claviger.Errorf(claviger.Unavailable, "the server cannot be reached", "start it")

func (v *vault) called(what string, n int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls = append(v.calls, fmt.Sprint(what, " ", n))
	return v.fault
}

// seen returns the calls since the last time.
func (v *vault) seen() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	defer func() { v.calls = nil }()
	slices.Sort(v.calls)
	return v.calls
}

func (v *vault) set(fault error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fault = fault
}

func paramsOf(p *pb.StateParams) state.Params {
	out := state.Params{Salt: p.Salt, Salt2: p.Salt2, Name: p.Name, Purpose: p.Purpose, Purposes: p.Purposes, Digest: recipe.Hash(p.Digest),
		KDF: recipe.Hash(p.Kdf), Derivation: p.Derivation, Iterations: p.Iterations, Size: p.Size, Cipher: p.Cipher, Encoding: p.Encoding,
		Separator: p.Separator, KeyID: p.KeyId, Compressed: p.Compressed, Over: p.Over, Header: p.Header, Issued: time.Now()}
	if p.Issued != nil {
		out.Issued = p.Issued.AsTime()
	}
	if p.Expires != nil {
		out.Expires = p.Expires.AsTime()
	}
	return out
}

// Protect implements proxy.Custody.
func (v *vault) Protect(ctx context.Context, r *pb.ProtectRequest) (*pb.ProtectResponse, error) {
	if err := v.called("make", len(r.Payloads)); err != nil {
		return nil, err
	}
	versions := v.versions[r.Key]
	tokens, err := state.ProtectAll(ctx, versions[len(versions)-1], state.Format(r.Format), paramsOf(r.Params), r.Payloads)
	return &pb.ProtectResponse{Tokens: tokens}, err
}

// Unprotect implements proxy.Custody.
func (v *vault) Unprotect(ctx context.Context, r *pb.UnprotectRequest) (*pb.UnprotectResponse, error) {
	if err := v.called("check", len(r.Tokens)); err != nil {
		return nil, err
	}
	out := &pb.UnprotectResponse{}
	for _, token := range r.Tokens {
		item := &pb.Unprotected{}
		for i, version := range slices.Backward(v.versions[r.Key]) {
			payload, f, err := state.Unprotect(ctx, version, state.Format(r.Format), paramsOf(r.Params), token)
			if err != nil {
				continue
			}
			item = &pb.Unprotected{Ok: true, Payload: payload, Version: uint32(i + 1), Renew: i+1 < len(v.versions[r.Key]),
				KeyId: f.KeyID, Purpose: f.Purpose, Compressed: f.Compressed, Header: f.Header, Issued: timeTo(f.Issued), Expires: timeTo(f.Expires)}
			break
		}
		out.Items = append(out.Items, item)
	}
	return out, nil
}

// rig is a proxy that serves, between a test and an application of the test's.
type rig struct {
	t        testing.TB
	vault    *vault
	base     string
	upstream string // the application itself
	secret   string // what the file "secret" gives to the application
	log      *logged
	proxy    *proxy.Proxy
}

type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, text string) (proxy.Config, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "proxy.toml")
	check(t, os.WriteFile(name, []byte(text), 0o600))
	return proxy.Load(name)
}

// newRig serves. The configuration lacks the addresses.
func newRig(t testing.TB, custody *vault, config string, app func(r *rig) http.Handler) *rig {
	t.Helper()
	r := &rig{t: t, vault: custody, log: &logged{}}
	upstream := httptest.NewUnstartedServer(nil)
	place := r.open(upstream.Listener.Addr().String(), config)
	upstream.Config.Handler = app(r)
	upstream.Start()
	r.upstream = upstream.URL
	t.Cleanup(upstream.Close)
	check(t, r.proxy.Await(t.Context()))
	public, err := r.proxy.Listen()
	check(t, err)
	r.base = "http://" + public.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.proxy.Serve(ctx, public) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		check(t, place.Remove())
	})
	return r
}

// open makes the proxy and what it gives to the application.
func (r *rig) open(upstream, config string) *proxy.Place {
	t := r.t
	t.Helper()
	cfg, err := load(t, fmt.Sprintf("listen = '127.0.0.1:0'\nupstream = 'http://%s'\nadmin = '127.0.0.1:0'\ndirectory = '%s'\n%s",
		upstream, filepath.Join(t.TempDir(), "given"), config))
	check(t, err)
	r.proxy, err = proxy.New(cfg, r.vault, func(context.Context) error { return nil }, slog.New(slog.NewTextHandler(r.log, nil)))
	check(t, err)
	place, err := r.proxy.Prepare(os.Geteuid(), os.Getegid())
	check(t, err)
	if text, err := os.ReadFile(filepath.Join(place.Dir, "secret")); err == nil {
		r.secret = string(text)
	}
	return place
}

// admin asks what operators ask.
func (r *rig) admin(path string) (int, string) {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.proxy.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func (r *rig) metrics() string {
	_, text := r.admin("/metrics")
	return text
}

// own is the application's secret as what runs recipes.
func (r *rig) own(set recipe.Set) state.User { return proxy.SecretOf(set, []byte(r.secret)) }

// get asks for a path with a Cookie header, and returns the whole answer.
func (r *rig) get(path, cookies string, headers ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodGet, r.base+path, nil)
	check(r.t, err)
	if cookies != "" {
		req.Header.Set("Cookie", cookies)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return r.do(req)
}

func (r *rig) do(req *http.Request) (*http.Response, string) {
	r.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, Timeout: 20 * time.Second}
	resp, err := client.Do(req)
	check(r.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(r.t, err)
	return resp, string(body)
}

const key = "prod/shop/key"

func newVault(set recipe.Set, secrets ...string) *vault {
	v := &vault{versions: map[string][]state.User{}}
	for _, s := range secrets {
		v.versions[key] = append(v.versions[key], proxy.SecretOf(set, []byte(s)))
	}
	return v
}

// rule is the configuration of one cookie, and of the file of its secret.
func rule(name string, format state.Format, more string) string {
	return fmt.Sprintf("[[cookie]]\nname = '%s'\nformat = '%s'\nkey = '%s'\n%s\n[[file]]\nname = 'secret'\ntext = '{{secret %q}}'\n", name, format, key, more, key)
}

// sees is an application that answers with the Cookie header which it was sent,
// and sets what the header X-Set has, where lines are apart by "|".
func sees(*rig) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for line := range strings.SplitSeq(r.Header.Get("X-Set"), "|") {
			if line != "" {
				w.Header().Add("Set-Cookie", line)
			}
		}
		if c := r.Header.Get("X-Cache"); c != "" {
			w.Header().Set("Cache-Control", c)
		}
		io.WriteString(w, strings.Join(r.Header["Cookie"], " & "))
	})
}

func made(t *testing.T, u state.User, f state.Format, p state.Params, payload string) string {
	t.Helper()
	token, err := state.Protect(t.Context(), u, f, p, []byte(payload))
	check(t, err)
	return string(token)
}

// Every format that a cookie can carry goes both ways, with what it says of
// itself, and comes back as it was.
func TestFormats(t *testing.T) {
	t.Parallel()
	issued, ends := time.Now().Add(-time.Hour).Truncate(time.Second).UTC(), time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	for _, test := range []struct {
		format  state.Format
		set     recipe.Set
		more    string
		params  state.Params
		payload string
	}{
		{format: state.DjangoSigner, set: recipe.Django, payload: "dark"},
		{format: state.DjangoCookie, set: recipe.Django, params: state.Params{Name: "c", Issued: issued}, payload: "dark"},
		{format: state.DjangoSession, set: recipe.Django, params: state.Params{Issued: issued, Compressed: true}, payload: "\x78\x9c..."},
		{format: state.FlaskSession, set: recipe.Flask, params: state.Params{Issued: issued}, payload: `{"user":"alice"}`},
		{format: state.FlaskSession, set: recipe.Flask, params: state.Params{Issued: issued, Compressed: true}, payload: "\x78\x9c..."},
		{format: state.ItsdangerousTimed, set: recipe.Itsdangerous, more: "params = {salt = 'activate'}", params: state.Params{Salt: "activate", Issued: issued}, payload: `{"id":5}`},
		{format: state.RailsSignedCookie, set: recipe.Rails, params: state.Params{Name: "c", Expires: ends}, payload: `"x"`},
		{format: state.RailsEncryptedCookie, set: recipe.Rails, params: state.Params{Name: "c"}, payload: `{"a":1}`},
		{format: state.RailsCBCCookie, set: recipe.Rails, params: state.Params{Name: "c"}, payload: `{"a":1}`},
		{format: state.ExpressCookie, set: recipe.CookieSignature, payload: "abc; d"},
		{format: state.Iron, set: recipe.Iron, params: state.Params{KeyID: "1", Expires: ends}, payload: `{"a":1}`},
		{format: state.IronSession, set: recipe.Iron, params: state.Params{KeyID: "1"}, payload: `{"a":1}`},
		{format: state.NextAuth, set: recipe.AuthJS, payload: `{"sub":"1"}`},
		{format: state.AuthJS, set: recipe.AuthJS, payload: `{"sub":"1"}`},
		{format: state.JWT, set: recipe.JWT, params: state.Params{Header: []byte(`{"typ":"JWT","alg":"HS256","x":1}`)}, payload: `{"sub":"1"}`},
		{format: state.PlugVerifier, set: recipe.Plug, more: "params = {salt = 'salty'}", params: state.Params{Salt: "salty"}, payload: "\x83t"},
		{format: state.PlugEncrypted, set: recipe.Plug, more: "params = {salt = 'salty'}", params: state.Params{Salt: "salty"}, payload: "\x83t"},
	} {
		t.Run(string(test.format), func(t *testing.T) {
			t.Parallel()
			custody := newVault(test.set, strings.Repeat("custody-", 8))
			r := newRig(t, custody, rule("c", test.format, test.more), sees)
			own := r.own(test.set)
			public := made(t, custody.versions[key][0], test.format, test.params, test.payload)
			resp, body := r.get("/", "c="+escape(public)+"; other=1")
			local, found := strings.CutPrefix(strings.TrimSuffix(body, "; other=1"), "c=")
			payload, facts, err := state.Unprotect(t.Context(), own, test.format, test.params, []byte(unescape(t, local)))
			if err != nil || !found || string(payload) != test.payload || resp.StatusCode != http.StatusOK {
				t.Fatalf("%d: the application got %q: %q, %v\n%s", resp.StatusCode, body, payload, err, r.log)
			}
			if strings.Contains(body, escape(public)) {
				t.Error("the token passed as it was")
			}
			resp, _ = r.get("/", "", "X-Set", "c="+local+"; Path=/; Secure;HttpOnly ; sameSite=Lax")
			set := resp.Header["Set-Cookie"]
			if len(set) != 1 || !strings.HasSuffix(set[0], "; Path=/; Secure;HttpOnly ; sameSite=Lax") {
				t.Fatalf("set %q\n%s", set, r.log)
			}
			value, _, _ := strings.Cut(strings.TrimPrefix(set[0], "c="), ";")
			payload, back, err := state.Unprotect(t.Context(), custody.versions[key][0], test.format, test.params, []byte(unescape(t, value)))
			if err != nil || string(payload) != test.payload {
				t.Fatalf("set %q: %q, %v", set, payload, err)
			}
			facts.KeyID, back.KeyID = "", "" // of Auth.js: a print of the key
			if d := cmp.Diff(facts, back); d != "" {
				t.Errorf("(-in +out)\n%s", d)
			}
			if resp, body := r.get("/", "c="+escape(changed(public))); body != "" || resp.StatusCode != http.StatusOK {
				t.Errorf("%d: a token that was tampered with reached the application: %q", resp.StatusCode, body)
			}
			if _, body := r.get("/", "c="+local); body != "" {
				t.Errorf("a token by the application's own secret came in from outside: %q", body)
			}
		})
	}
}

// Tickets of FormsAuthentication are in hexadecimal.
func TestTickets(t *testing.T) {
	t.Parallel()
	issued, ends := time.Now().Add(-time.Hour).Truncate(time.Second).UTC(), time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	ticket := string(state.Ticket{Version: 2, Issued: issued, Expires: ends, Name: "alice", Path: "/"}.Append(nil))
	material := recipe.Pair(bytes.Repeat([]byte("d"), 32), bytes.Repeat([]byte("v"), 64))
	custody := newVault(recipe.ASPNET, string(material))
	r := newRig(t, custody, fmt.Sprintf("[[cookie]]\nname = '.ASPXAUTH'\nformat = 'aspnet.forms'\nkey = '%s'\n[[file]]\nname = 'secret'\ntext = '{{decryption %[2]q}} {{validation %[2]q}}'\n", key, key), sees)
	own := pairOf(t, r.secret)
	public := made(t, custody.versions[key][0], state.ASPNETForms, state.Params{}, ticket)
	_, body := r.get("/", ".ASPXAUTH="+public)
	if got, f, err := state.Unprotect(t.Context(), own, state.ASPNETForms, state.Params{}, []byte(strings.TrimPrefix(body, ".ASPXAUTH="))); err != nil || string(got) != ticket || !f.Issued.Equal(issued) {
		t.Errorf("%q: %v", body, err)
	}
	if _, body := r.get("/", ".aspxauth="+public); body != "" {
		t.Errorf("a name that only ASP.NET takes for another passed: %q", body)
	}
}
