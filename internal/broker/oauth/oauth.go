// Package oauth is the authorization server's way in from outside: the
// endpoints of OAuth 2.0 and OpenID Connect, as HTTP.
//
// It reads requests, has package broker answer them, and writes the answer with
// the header fields that belong to it: nonces, CORS, caching, challenges. It
// promises that every endpoint has a row with its limits, and that an error
// leaves as RFC 6749 says, with no more than its rule in it. It must decide
// nothing about clients, tokens or sessions.
package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
)

// deadline is how long a request may take, with what the OpenID provider is
// asked meanwhile.
const deadline = 15 * time.Second

// Handler serves the endpoints.
type Handler struct {
	Broker *broker.Broker

	// Identify finds out what is known of a connection: the source, the client
	// certificate and its principal.
	Identify func(r *http.Request) broker.Request

	// Spent says that an address asked too much that was refused or was a
	// browser's, and Charge counts one more.
	Spent  func(f claviger.Facts) bool
	Charge func(f claviger.Facts)

	Log *slog.Logger
	Now func() time.Time // nil: time.Now
}

// endpoint is one row.
type endpoint struct {
	methods []string
	pages   bool // pages of clients may call it from their origins (CORS)
	proofs  bool // requests carry proofs, and answers nonces
	answer  func(h *Handler, w http.ResponseWriter, r *http.Request, in *broker.Request) error
}

// endpoints is the table. What is not in it is not served.
func endpoints() map[string]endpoint {
	post, get := []string{http.MethodPost}, []string{http.MethodGet, http.MethodHead}
	return map[string]endpoint{
		broker.MetadataPath:    {methods: get, answer: (*Handler).metadata},
		broker.KeysPath:        {methods: get, answer: (*Handler).keys},
		broker.TokenPath:       {methods: post, pages: true, proofs: true, answer: (*Handler).token},
		broker.PARPath:         {methods: post, pages: true, proofs: true, answer: (*Handler).push},
		broker.AuthorizePath:   {methods: []string{http.MethodGet, http.MethodPost}, answer: (*Handler).authorize},
		broker.CallbackPath:    {methods: get[:1], answer: (*Handler).callback},
		broker.IntrospectPath:  {methods: post, answer: (*Handler).introspect},
		broker.RevokePath:      {methods: post, pages: true, answer: (*Handler).revoke},
		broker.LogoutPath:      {methods: post, pages: true, proofs: true, answer: (*Handler).logout},
		broker.BackchannelPath: {methods: post, answer: (*Handler).backchannel},
	}
}

// Mux returns the handler of the endpoints by path.
func (h *Handler) Mux() map[string]http.Handler {
	out := make(map[string]http.Handler)
	for path, e := range endpoints() {
		out[path] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, e) })
	}
	return out
}

func (h *Handler) now() time.Time {
	if h.Now != nil {
		return h.Now()
	}
	return time.Now()
}

// serve puts a row's limits before its answer.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, e endpoint) {
	ctx, cancel := context.WithTimeout(r.Context(), deadline)
	defer cancel()
	r = r.WithContext(ctx)
	head := w.Header()
	head.Set("Cache-Control", "no-store")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	if e.pages && r.Method == http.MethodOptions {
		preflight(w, r)
		return
	}
	in := h.Identify(r)
	err := h.admit(&in, r, e)
	if err == nil && e.pages {
		h.allowOrigin(w, r, in.Form.Get("client_id"))
	}
	if e.proofs && len(in.Proofs) > 0 {
		if nonce, bad := h.Broker.Proofs.Nonces.Current(ctx, h.now()); bad == nil {
			head.Set("DPoP-Nonce", nonce)
		}
	}
	if err == nil {
		err = e.answer(h, w, r, &in)
	}
	if err != nil {
		h.refuse(w, r, &in, err)
	}
}

// admit reads a request and refuses what no client sends.
func (h *Handler) admit(in *broker.Request, r *http.Request, e endpoint) error {
	in.Path, in.Method, in.Proofs = r.URL.Path, r.Method, r.Header.Values("DPoP")
	agent := sha256.Sum256([]byte(r.UserAgent()))
	in.UserAgent = hex.EncodeToString(agent[:])
	if !slices.Contains(e.methods, r.Method) {
		return &broker.Error{Code: broker.InvalidRequest, Msg: "this endpoint is called with " + e.methods[0], Status: http.StatusMethodNotAllowed}
	}
	if h.Spent(in.Facts) {
		return &broker.Error{Code: broker.TooMany, Msg: "too many requests of this address were refused: wait", Status: http.StatusTooManyRequests}
	}
	switch all := r.Header.Values("Authorization"); {
	case len(all) > 1:
		return &broker.Error{Code: broker.InvalidRequest, Msg: "the request has several Authorization fields", Status: http.StatusBadRequest}
	case len(all) == 1 && in.Path != broker.LogoutPath:
		return &broker.Error{Code: broker.InvalidClient, Msg: "clients authenticate by private_key_jwt or a client certificate, and not by an Authorization field", Status: http.StatusUnauthorized}
	case len(all) == 1:
		in.Authorization = all[0]
	}
	text, err := form(r)
	if err != nil {
		return err
	}
	in.Form, err = broker.ParseForm(text)
	return err
}

// form is what a request says, in its body or its query. Parameters of a POST
// stand in its body alone: addresses are written into logs.
func form(r *http.Request) (string, error) {
	bad := func(msg string, status int) error {
		return &broker.Error{Code: broker.InvalidRequest, Msg: msg, Status: status}
	}
	if r.Method != http.MethodPost {
		return r.URL.RawQuery, nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" {
		return "", bad("the body is not application/x-www-form-urlencoded", http.StatusBadRequest)
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return "", bad("compressed bodies are not taken", http.StatusUnsupportedMediaType)
	}
	if r.ContentLength > broker.MaxForm {
		return "", bad("the form is longer than 64 KiB", http.StatusRequestEntityTooLarge)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, broker.MaxForm+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", bad("the body did not arrive in time", http.StatusRequestTimeout)
	case err != nil:
		return "", bad("the body did not arrive whole", http.StatusBadRequest)
	case len(body) > broker.MaxForm:
		return "", bad("the form is longer than 64 KiB", http.StatusRequestEntityTooLarge)
	}
	return string(body), nil
}

// refuse answers with an error (RFC 6749, 5.2; RFC 9449, 5 and 8).
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, in *broker.Request, err error) {
	e := broker.Outward(err)
	if e.Status >= http.StatusInternalServerError {
		h.Log.WarnContext(r.Context(), "a request for tokens fails", "path", r.URL.Path, "error", err)
	} else {
		h.Charge(in.Facts)
		h.Log.DebugContext(r.Context(), "a request for tokens is refused", "path", r.URL.Path, "error", err)
		if lost := h.Broker.Refused(r.Context(), in, err); lost != nil {
			h.Log.WarnContext(r.Context(), "a refusal cannot be recorded", "error", lost)
		}
	}
	switch e.Code {
	case dpop.Unavailable, broker.TooMany:
		w.Header().Set("Retry-After", "1")
	}
	if e.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `DPoP algs="`+strings.Join(dpop.Algorithms(), " ")+`", error="`+e.Code+`"`)
	}
	if r.URL.Path == broker.AuthorizePath || r.URL.Path == broker.CallbackPath {
		page(w, e)
		return
	}
	writeJSON(w, e.Status, map[string]string{"error": e.Code, "error_description": broker.Printable(e.Msg)})
}

// page tells a person what went wrong, in plain text.
func page(w http.ResponseWriter, e *broker.Error) {
	head := w.Header()
	head.Set("Content-Type", "text/plain; charset=utf-8")
	head.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	w.WriteHeader(e.Status)
	_, _ = io.WriteString(w, "You cannot be logged in: "+e.Msg+".\n") // the browser may be gone
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	doc, err := json.Marshal(body)
	if err != nil { // maps and structs of texts and numbers
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(doc, '\n')) // the client may be gone
}

// preflight answers whether a page may send a request with these header
// fields. Whether it may read the answer is decided with the request, which
// names the client. No credentials of the browser are allowed with it.
func preflight(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Vary", "Origin")
	if origin := r.Header.Get("Origin"); pageOrigin(origin) {
		head.Set("Access-Control-Allow-Origin", origin)
		head.Set("Access-Control-Allow-Methods", http.MethodPost)
		head.Set("Access-Control-Allow-Headers", "DPoP, Authorization, Content-Type")
		head.Set("Access-Control-Max-Age", "600")
	}
	w.WriteHeader(http.StatusNoContent)
}

// pageOrigin reports an origin that pages with WebCrypto have.
func pageOrigin(origin string) bool {
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && u.Path == "" && u.User == nil && len(origin) <= 512 &&
		(u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1"))
}

// allowOrigin lets a page read the answer: one of the client that it names.
func (h *Handler) allowOrigin(w http.ResponseWriter, r *http.Request, client string) {
	head := w.Header()
	head.Add("Vary", "Origin")
	if origin := r.Header.Get("Origin"); origin != "" && h.Broker.FromPageOf(r.Context(), client, origin) {
		head.Set("Access-Control-Allow-Origin", origin)
		head.Set("Access-Control-Expose-Headers", "DPoP-Nonce, WWW-Authenticate, Date, Retry-After")
	}
}
