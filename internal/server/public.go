package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
)

// publicDeadline is the deadline of the requests that are no methods.
const publicDeadline = 5 * time.Second

// public serves what everybody may read: health and public keys.
func (g *gate) public(ready func(context.Context) error, publicKeys func(ctx context.Context, environment, application string) (jwks, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := ready(r.Context()); err != nil {
			g.log.WarnContext(r.Context(), "not ready", "error", err)
			if errors.Is(err, claviger.Stale) {
				g.fail(w, r, err) // it says what to do
				return
			}
			g.fail(w, r, claviger.Errorf(claviger.Unavailable, "a key cannot be used and recorded now", "see the server's log, and run 'claviger doctor'"))
			return
		}
		plain(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /jwks/{environment}/{application}", func(w http.ResponseWriter, r *http.Request) {
		addr, _ := netip.ParseAddrPort(r.RemoteAddr)
		if !g.classes[classPublic].allow(source(claviger.Facts{Source: addr.Addr().Unmap()}), g.now()) {
			g.fail(w, r, claviger.Errorf(claviger.Exhausted, "too many requests", "slow down, and keep key sets as long as they say"))
			return
		}
		set, err := publicKeys(r.Context(), r.PathValue("environment"), r.PathValue("application"))
		if err != nil {
			g.fail(w, r, err)
			return
		}
		set.serve(w, r)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		g.fail(w, r, claviger.Errorf(claviger.NotFound, "there is no such method or page", "check the path against the documentation"))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), publicDeadline)
		defer cancel()
		if path.Clean(r.URL.Path) != r.URL.Path { // the mux would redirect to another path
			r.URL.Path = "/"
		}
		mux.ServeHTTP(w, r.WithContext(ctx))
	})
}

// fail answers a request that is no method with an error, in the JSON that
// methods use.
func (g *gate) fail(w http.ResponseWriter, r *http.Request, err error) {
	id := string(claviger.NewID(g.now()))
	out := outward(r.Context(), g.log, "public", id, err)
	code := codeOf(out)
	body, _ := json.Marshal(map[string]string{"code": out.Code().String(), "message": out.Message()}) // strings: cannot fail
	w.Header().Set(headerRequestID, id)
	w.Header().Set(headerCode, string(code))
	w.Header().Set(headerHint, out.Meta().Get(headerHint))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(claviger.Mappings[code].HTTP)
	_, _ = w.Write(body) // the caller went away
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // the caller went away
}

// jwks is a set of public keys, ready to be sent (RFC 7517, section 5).
type jwks struct {
	body   []byte
	maxAge time.Duration
}

// newJWKS writes a set in the given order; each key is one JSON object.
func newJWKS(keys [][]byte, maxAge time.Duration) jwks {
	body := append([]byte(`{"keys":[`), bytes.Join(keys, []byte(","))...)
	return jwks{body: append(body, "]}\n"...), maxAge: maxAge}
}

// serve answers with the set, or with 304 when the caller has it. The entity
// tag is a hash of the content and so holds across servers (RFC 9110, 8.8.3).
func (s jwks) serve(w http.ResponseWriter, r *http.Request) {
	sum := sha256.Sum256(s.body)
	tag := `"` + base64.RawURLEncoding.EncodeToString(sum[:]) + `"`
	h := w.Header()
	h.Set("ETag", tag)
	h.Set("Cache-Control", "public, max-age="+strconv.Itoa(int(s.maxAge/time.Second)))
	if matches(r.Header.Values("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "application/jwk-set+json")
	h.Set("Content-Length", strconv.Itoa(len(s.body)))
	_, _ = w.Write(s.body) // the caller went away
}

// matches compares entity tags weakly, as If-None-Match asks (RFC 9110, 13.1.2).
func matches(fields []string, tag string) bool {
	for _, field := range fields {
		for candidate := range strings.SplitSeq(field, ",") {
			candidate = strings.TrimPrefix(strings.TrimSpace(candidate), "W/")
			if candidate == tag || candidate == "*" {
				return true
			}
		}
	}
	return false
}
