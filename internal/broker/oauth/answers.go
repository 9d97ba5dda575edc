package oauth

import (
	"net/http"

	"claviger.dev"
	"claviger.dev/internal/broker"
)

// browserCookie names the secret that a login is bound to. The prefix keeps it
// to this host and to https (RFC 6265bis, 4.1.3.2).
const browserCookie = "__Host-claviger-login"

func (h *Handler) metadata(w http.ResponseWriter, _ *http.Request, _ *broker.Request) error {
	public(w)
	writeJSON(w, http.StatusOK, h.Broker.Metadata())
	return nil
}

func (h *Handler) keys(w http.ResponseWriter, r *http.Request, _ *broker.Request) error {
	set, err := h.Broker.Door.TokenKeys(r.Context())
	if err != nil {
		return err
	}
	public(w)
	w.Header().Set("Content-Type", "application/jwk-set+json")
	_, _ = w.Write(set) // the client may be gone
	return nil
}

// public marks what everybody may read and keep for a while, pages too.
func public(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "public, max-age=300")
	w.Header().Set("Access-Control-Allow-Origin", "*")
}

func (h *Handler) token(w http.ResponseWriter, r *http.Request, in *broker.Request) error {
	a, err := h.Broker.Token(r.Context(), in)
	if err == nil {
		writeJSON(w, http.StatusOK, a)
	}
	return err
}

func (h *Handler) push(w http.ResponseWriter, r *http.Request, in *broker.Request) error {
	a, err := h.Broker.Push(r.Context(), in)
	if err == nil {
		writeJSON(w, http.StatusCreated, a)
	}
	return err
}

// secret is what the browser's cookie has, "" for none or several.
func secret(r *http.Request) string {
	if all := r.CookiesNamed(browserCookie); len(all) == 1 {
		return all[0].Value
	}
	return ""
}

func setSecret(w http.ResponseWriter, value string, seconds int) {
	http.SetCookie(w, &http.Cookie{Name: browserCookie, Value: value, Path: "/", MaxAge: seconds, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func (h *Handler) authorize(w http.ResponseWriter, r *http.Request, in *broker.Request) error {
	h.Charge(in.Facts) // nobody is known, and a login is kept
	to, browser, err := h.Broker.Authorize(r.Context(), in.Form, secret(r))
	if err != nil {
		return err
	}
	if browser != "" {
		setSecret(w, browser, 600)
	}
	redirect(w, to)
	return nil
}

func (h *Handler) callback(w http.ResponseWriter, r *http.Request, in *broker.Request) error {
	to, err := h.Broker.Callback(r.Context(), in.Form, secret(r), claviger.Source{Address: in.Facts.Source, UserAgent: in.UserAgent})
	if err == nil {
		redirect(w, to)
	}
	return err
}

// redirect sends the browser on with GET, whatever it came with (RFC 9700, 4.12).
func redirect(w http.ResponseWriter, to string) {
	w.Header().Set("Location", to)
	w.WriteHeader(http.StatusSeeOther)
}

func (h *Handler) introspect(w http.ResponseWriter, r *http.Request, in *broker.Request) error {
	a, err := h.Broker.Introspect(r.Context(), in)
	if err == nil {
		writeJSON(w, http.StatusOK, a)
	}
	return err
}

func (h *Handler) revoke(w http.ResponseWriter, r *http.Request, in *broker.Request) error {
	err := h.Broker.Revoke(r.Context(), in)
	if err == nil {
		w.WriteHeader(http.StatusOK)
	}
	return err
}

func (h *Handler) logout(w http.ResponseWriter, r *http.Request, in *broker.Request) error {
	to, err := h.Broker.Logout(r.Context(), in)
	switch {
	case err != nil:
		return err
	case to != "":
		redirect(w, to)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	return nil
}

func (h *Handler) backchannel(w http.ResponseWriter, r *http.Request, in *broker.Request) error {
	err := h.Broker.Backchannel(r.Context(), in)
	if err == nil {
		w.WriteHeader(http.StatusOK)
	}
	return err
}
