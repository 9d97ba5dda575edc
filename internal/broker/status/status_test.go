package status_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
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

// TestReport tells of uses: they are judged before it is answered who lives.
func TestReport(t *testing.T) {
	t.Parallel()
	const uses = `"uses":[{"sid":"s1","aud":"https://api.example","method":"GET","address":"192.0.2.1","count":7,"stale":true},{"sid":"s2","aud":"https://api.example"}]}`
	for name, c := range map[string]struct {
		body string
		fail error
		want int
		says string
	}{
		"with a question": {`{"tokens":[{"jti":"a","sid":"s1"}],` + uses, nil, 200, `{"live":[true],"max_age":1,"taken":2}`},
		"alone":           {`{` + uses, nil, 200, `{"live":[],"max_age":1,"taken":2}`},
		"not now":         {`{` + uses, errors.New("the store"), 503, "cannot be known"},
		"of nothing":      {`{"uses":[{"aud":"https://api.example"}]}`, nil, 400, "uses"},
		"for nobody":      {`{"uses":[{"sid":"s1"}]}`, nil, 400, "uses"},
		"long method":     {`{"uses":[{"sid":"s1","aud":"a","method":"` + strings.Repeat("A", 33) + `"}]}`, nil, 400, "uses"},
		"long audience":   {`{"uses":[{"sid":"s1","aud":"` + strings.Repeat("a", 513) + `"}]}`, nil, 400, "uses"},
		"no address":      {`{"uses":[{"sid":"s1","aud":"a","address":"here"}]}`, nil, 400, "uses"},
		"fewer than none": {`{"uses":[{"sid":"s1","aud":"a","count":-1}]}`, nil, 400, "uses"},
		"too many":        {`{"uses":[{"sid":"s1","aud":"a"}` + strings.Repeat(`,{"sid":"s1","aud":"a"}`, 500) + `]}`, nil, 400, "uses"},
	} {
		var got []status.Use
		d := &door{}
		h := &status.Handler{Door: d, Report: func(_ context.Context, u []status.Use) (int, error) {
			if len(d.asked) > 0 {
				t.Errorf("%s: it was asked who lives before", name)
			}
			got = append(got, u...)
			return len(u), c.fail
		}}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, status.Path, strings.NewReader(c.body)))
		if w.Code != c.want || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s: status %d, want %d: %s", name, w.Code, c.want, w.Body)
		}
		if c.want == 400 {
			if len(got) > 0 {
				t.Errorf("%s: %+v is told", name, got)
			}
			continue
		}
		want := []status.Use{{Session: "s1", Audience: "https://api.example", Method: "GET", Address: netip.MustParseAddr("192.0.2.1"), Count: 7, Stale: true},
			{Session: "s2", Audience: "https://api.example"}}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
