package edge_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev/dbsc"
	"claviger.dev/dpop"
)

// bank is an application whose cookie is bound by dbsc, and that says what came.
type bank struct {
	*httptest.Server
	sessions records
	bound    *dbsc.Server

	mu   sync.Mutex
	came []string // method, path and status of what a browser sent by itself
	skew time.Duration
}

// records are sessions that cannot be read at times.
type records struct {
	dbsc.Memory
	dark atomic.Bool
}

func (r *records) Key(ctx context.Context, session string) (crypto.PublicKey, error) {
	if r.dark.Load() {
		return nil, errors.New("the store is away")
	}
	return r.Memory.Key(ctx, session)
}

// now is the time that the server goes by; a test moves it.
func (b *bank) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Add(b.skew)
}

func newBank(t *testing.T) *bank {
	t.Helper()
	b := &bank{}
	mux := http.NewServeMux()
	b.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &noted{ResponseWriter: w, status: 200}
		mux.ServeHTTP(out, r)
		if strings.HasPrefix(r.URL.Path, "/test/") {
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.came = append(b.came, r.Method+" "+r.URL.Path+" "+http.StatusText(out.status))
	}))
	t.Cleanup(b.Close)
	base, err := url.Parse(strings.Replace(b.URL, "127.0.0.1", "localhost", 1))
	if err != nil {
		t.Fatal(err)
	}
	b.bound = &dbsc.Server{Base: base, Keys: &b.sessions, MAC: dpop.NonceKey([]byte(rand.Text() + rand.Text())), Now: b.now, Lifetime: time.Hour,
		Session: func(r *http.Request) (string, bool) {
			c, err := r.Cookie("__Host-login")
			if err != nil {
				return "", false
			}
			return c.Value, true
		}}
	cookie := func(w http.ResponseWriter, value string, age int) {
		http.SetCookie(w, &http.Cookie{Name: "__Host-login", Value: value, Path: "/", Secure: true, HttpOnly: true, MaxAge: age, SameSite: http.SameSiteLaxMode})
	}
	mux.Handle("/dbsc/", b.bound.Handler())
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<!doctype html><title>bank</title>")
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		session := rand.Text()
		b.sessions.Begin(session)
		cookie(w, session, 86400)
		if err := b.bound.Offer(w, r, session); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		if session, ok := b.bound.Session(r); ok {
			b.sessions.End(session)
		}
		b.bound.End(w)
		if r.URL.Query().Has("clear") {
			w.Header().Set("Clear-Site-Data", `"storage"`)
		}
	})
	mux.Handle("GET /account", b.bound.Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, ok := b.bound.Session(r)
		key, err := b.sessions.Key(r.Context(), session)
		_ = json.NewEncoder(w).Encode(map[string]bool{"session": ok && err == nil, "bound": key != nil})
	})))
	// What the test does to the world.
	mux.HandleFunc("POST /test/later", func(_ http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("by"))
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.skew += d; err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("POST /test/dark", func(_ http.ResponseWriter, r *http.Request) { b.sessions.dark.Store(r.URL.Query().Get("on") == "1") })
	mux.HandleFunc("POST /test/end", func(_ http.ResponseWriter, r *http.Request) {
		session, _ := b.bound.Session(r)
		b.sessions.End(session)
	})
	mux.HandleFunc("GET /test/came", func(w http.ResponseWriter, _ *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		_ = json.NewEncoder(w).Encode(b.came)
	})
	return b
}

type noted struct {
	http.ResponseWriter
	status int
}

func (n *noted) WriteHeader(status int) {
	n.status = status
	n.ResponseWriter.WriteHeader(status)
}

// TestChromiumBinds has a real browser bind its cookie, over HTTPS.
func TestChromiumBinds(t *testing.T) {
	b := newBank(t)
	spki := sha256.Sum256(b.Certificate().RawSubjectPublicKeyInfo)
	cmd := exec.CommandContext(t.Context(), "node", "--test-reporter=spec", "--test-timeout=60000", "dbsc.mjs", b.bound.Base.String(),
		base64.StdEncoding.EncodeToString(spki[:]), filepath.Join(t.TempDir(), "profile"))
	cmd.Dir = "../browser"
	cmd.WaitDelay = time.Second
	said, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "\nℹ fail 0\n") || !strings.Contains(string(said), "\nℹ skipped 0\n") {
		t.Errorf("%v\n%s", err, said)
	}
	t.Logf("%s", said)
}
