// Package browser_test runs the browser's library in a real Chromium, against
// an authorization server that nobody here wrote and a resource server that
// checks proofs. Everything is on loopback.
package browser_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
)

const library = "../../sdk/browser"

func run(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// serve serves a handler under localhost, where a browser has WebCrypto.
func serve(t *testing.T, h http.Handler) (base string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
}

// authorizationServer runs oidc-provider for the pages of an origin.
func authorizationServer(t *testing.T, origin string) (issuer string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", "as.mjs", origin)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait() // it ends with its standard input
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("oidc-provider did not start: %v\n%s", err, said.String())
	}
	return strings.TrimSpace(line)
}

// introspect asks the authorization server what a token is (RFC 7662).
func introspect(issuer string) func(context.Context, string) (dpop.Access, error) {
	return func(ctx context.Context, token string) (dpop.Access, error) {
		form := strings.NewReader(url.Values{"token": {token}}.Encode())
		req, err := http.NewRequestWithContext(ctx, "POST", issuer+"/token/introspection", form)
		if err != nil {
			return dpop.Access{}, err
		}
		req.SetBasicAuth("api", "of-the-test")
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return dpop.Access{}, &dpop.Error{Code: dpop.Unavailable, Msg: "introspection does not answer", Err: err}
		}
		defer resp.Body.Close()
		var answer struct {
			Active bool   `json:"active"`
			Sub    string `json:"sub"`
			CNF    struct {
				JKT string `json:"jkt"`
			} `json:"cnf"`
		}
		if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&answer); err != nil {
			return dpop.Access{}, &dpop.Error{Code: dpop.Unavailable, Msg: "introspection does not answer", Err: err}
		}
		if !answer.Active {
			return dpop.Access{}, errors.New("not active")
		}
		return dpop.Access{Thumbprint: answer.CNF.JKT, Claims: answer.Sub}, nil
	}
}

// resourceServer has /orders, with nonces, and /strict/orders, where the time
// of a proof counts. /count says how many requests came, so that a test sees
// what was not sent.
func resourceServer(t *testing.T, issuer, origin string) (base string) {
	t.Helper()
	var came atomic.Int64
	mux := http.NewServeMux()
	base = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Allow-Headers", "Authorization, DPoP, Content-Type")
		h.Set("Access-Control-Allow-Methods", "GET, POST, PUT")
		h.Add("Access-Control-Expose-Headers", "Date")
		if r.Method == http.MethodOptions {
			return
		}
		if r.URL.Path != "/count" {
			came.Add(1)
		}
		mux.ServeHTTP(w, r)
	}))
	public, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	echo := func(w http.ResponseWriter, r *http.Request, caller dpop.Caller) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"sub": caller.Claims, "method": r.Method, "type": r.Header.Get("Content-Type"), "body": string(body)})
	}
	nonces := &dpop.Nonces{MAC: dpop.NonceKey([]byte(strings.Repeat("k", 32))), Span: 2 * time.Second}
	for path, n := range map[string]*dpop.Nonces{"/orders": nonces, "/strict/orders": nil} {
		rs := &dpop.Resource{Base: public, Token: introspect(issuer), Verifier: &dpop.Verifier{Nonces: n, Replays: &dpop.Memory{}}}
		mux.Handle(path, rs.Guard(echo))
	}
	watch := &watch{sessions: map[string]*claviger.Session{}}
	rs := &dpop.Resource{Base: public, Token: remembered(introspect(issuer)), Verifier: &dpop.Verifier{Nonces: nonces, Replays: &dpop.Memory{}},
		Status: func(_ context.Context, a dpop.Access) error { return watch.use(a.Thumbprint, false) },
		Stale:  func(_ context.Context, a dpop.Access) { _ = watch.use(a.Thumbprint, true) }}
	mux.Handle("/guarded/orders", rs.Guard(echo))
	mux.HandleFunc("/guarded/events", watch.events)
	mux.HandleFunc("/guarded/end", watch.end)
	mux.HandleFunc("/guarded/nonce", func(w http.ResponseWriter, r *http.Request) {
		nonce, _ := nonces.Current(r.Context(), time.Now()) // of a key in this process
		io.WriteString(w, nonce)
	})
	mux.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) { _ = json.NewEncoder(w).Encode(came.Load()) })
	return base
}

// TestBrowser builds the library as it is delivered and has Chromium use it.
func TestBrowser(t *testing.T) {
	for _, dir := range []string{library, "."} {
		if _, err := os.Stat(filepath.Join(dir, "node_modules")); err != nil {
			t.Fatalf("the packages of %s are not here: run make setup", dir)
		}
	}
	out := t.TempDir()
	dist := filepath.Join(out, "dist")
	run(t, library, "npm", "run", "--silent", "build", "--", "--outdir="+dist)
	run(t, library, "npx", "tsc", "--noEmit", "false", "--outDir", filepath.Join(out, "types"))
	mux := http.NewServeMux()
	mux.Handle("/dist/", http.StripPrefix("/dist/", http.FileServer(http.Dir(dist))))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'self' blob:; connect-src http://localhost:*")
		io.WriteString(w, "<!doctype html><title>application</title>")
	})
	origin := serve(t, mux)
	issuer := authorizationServer(t, origin)
	api := resourceServer(t, issuer, origin)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "--test-reporter=spec", "--test-timeout=60000", "scenarios.mjs", origin, issuer, api, filepath.Join(out, "profile"))
	cmd.WaitDelay = time.Second // the browser has its pipes too
	said, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "\nℹ fail 0\n") || !strings.Contains(string(said), "\nℹ skipped 0\n") {
		t.Errorf("%v\n%s", err, said)
	}
	t.Logf("%s", said)
}

// TestSize holds what a page loads to 6 kB, compressed file by file.
func TestSize(t *testing.T) {
	out := t.TempDir()
	run(t, library, "npm", "run", "--silent", "build", "--", "--outdir="+out)
	files, err := filepath.Glob(filepath.Join(out, "*.js"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	total := 0
	for _, file := range files {
		total += len(run(t, out, "gzip", "-9c", file))
	}
	t.Logf("%d bytes in %d files", total, len(files))
	if total >= 6000 {
		t.Errorf("the library has %d bytes compressed, and is to have less than 6000", total)
	}
}
