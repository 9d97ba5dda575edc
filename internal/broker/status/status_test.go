package status_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/broker/status"
)

// door knows the session "s1", and not why "dark" does not answer.
type door struct{ asked []string }

func (d *door) SessionLive(_ context.Context, id claviger.ID) (claviger.Session, error) {
	d.asked = append(d.asked, string(id))
	switch id {
	case "s1":
		return claviger.Session{ID: id}, nil
	case "ended":
		return claviger.Session{}, claviger.Errorf(claviger.Denied, "ended", "")
	case "dark":
		return claviger.Session{}, claviger.Errorf(claviger.Stale, "stale", "")
	}
	return claviger.Session{}, claviger.Errorf(claviger.NotFound, "none", "")
}

func (d *door) ClientLive(_ context.Context, ref string) (claviger.Client, error) {
	switch ref {
	case "c1":
		return claviger.Client{}, nil
	case "dark":
		return claviger.Client{}, claviger.Errorf(claviger.Stale, "stale", "")
	}
	return claviger.Client{}, claviger.Errorf(claviger.Denied, "disabled", "")
}

func (d *door) TokenRevoked(_ context.Context, jti string) (bool, error) {
	if jti == "broken" {
		return false, errors.New("the store")
	}
	return jti == "revoked", nil
}

func TestHandler(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, body string
		want         int
		says         string
	}{
		"each":         {"POST", `{"tokens":[{"jti":"a","sid":"s1"},{"jti":"b","sid":"ended"},{"jti":"c","sid":"nobody"},{"jti":"revoked","sid":"s1"},{"jti":"d"},{"jti":"revoked"}]}`, 200, `{"live":[true,false,false,false,true,false],"max_age":1}`},
		"of clients":   {"POST", `{"tokens":[{"jti":"a","client_id":"c1"},{"jti":"b","client_id":"disabled"},{"jti":"c","sid":"s1","client_id":"c1"}]}`, 200, `{"live":[true,false,true],"max_age":1}`},
		"a client":     {"POST", `{"tokens":[{"jti":"a","client_id":"dark"}]}`, 503, "cannot be known"},
		"not known":    {"POST", `{"tokens":[{"jti":"a","sid":"s1"},{"jti":"b","sid":"dark"}]}`, 503, "cannot be known"},
		"store":        {"POST", `{"tokens":[{"jti":"broken","sid":"s1"}]}`, 503, "cannot be known"},
		"GET":          {"GET", "", 405, "POST"},
		"nothing":      {"POST", "", 400, "tokens"},
		"none":         {"POST", `{"tokens":[]}`, 400, "tokens"},
		"not JSON":     {"POST", `{"tokens":`, 400, "tokens"},
		"other JSON":   {"POST", `[1]`, 400, "tokens"},
		"too many":     {"POST", `{"tokens":[{}` + strings.Repeat(`,{}`, 500) + `]}`, 400, "500"},
		"too long":     {"POST", `{"tokens":[{"jti":"` + strings.Repeat("a", 64<<10) + `"}]}`, 400, "64 KiB"},
		"just as many": {"POST", `{"tokens":[{}` + strings.Repeat(`,{}`, 499) + `]}`, 200, "true"},
	} {
		var live, ended int
		h := &status.Handler{Door: &door{}, Count: func(l bool) {
			if ended++; l {
				live++
			}
		}}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, status.Path, strings.NewReader(c.body)))
		if w.Code != c.want || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s: status %d, want %d: %s", name, w.Code, c.want, w.Body)
		}
		if cached := w.Header().Get("Cache-Control") == "private, max-age=1"; cached != (c.want == http.StatusOK) {
			t.Errorf("%s: %q", name, w.Header().Get("Cache-Control"))
		}
		if name == "each" && (live != 2 || ended != 6) {
			t.Errorf("%d of %d were counted live", live, ended)
		}
	}
}
