package proxy_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// A connection to the application is used again after an answer that was whole,
// and never when something else stands on it: that would be another's answer.
func TestKeptConnections(t *testing.T) {
	t.Parallel()
	const forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	for name, test := range map[string]struct{ answer, then, want string }{
		"a length":             {answer: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", want: "again"},
		"chunks":               {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", want: "again"},
		"no content":           {answer: "HTTP/1.1 204 No Content\r\n\r\n", want: "again"},
		"not modified":         {answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", want: "again"},
		"after a hint":         {answer: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", want: "again"},
		"close":                {answer: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\na", want: "new"},
		"an older protocol":    {answer: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", want: "new"},
		"more than the answer": {answer: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na" + forged, want: "new"},
		"an answer unasked":    {answer: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", then: forged, want: "new"},
		"closed at rest":       {answer: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", then: "close", want: "new"},
		"closed when asked":    {answer: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", then: "fail", want: "new"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Bool
			rests, done := make(chan struct{}), make(chan struct{})
			r := plain(t, "", func(w http.ResponseWriter, _ *http.Request) {
				if asked.Swap(true) {
					_, _ = io.WriteString(w, "new")
					return
				}
				conn, in, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, test.answer)
				<-rests
				if test.then == forged {
					_, _ = io.WriteString(conn, forged)
				} else if test.then == "close" {
					conn.Close()
				}
				close(done)
				if _, err := http.ReadRequest(in.Reader); err == nil && test.then != "fail" {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain")
				}
			})
			r.get("/", "")
			close(rests)
			<-done
			if resp, got := r.get("/", ""); got != test.want || resp.StatusCode != http.StatusOK {
				t.Errorf("%d %q, want %q\n%s", resp.StatusCode, got, test.want, r.log)
			}
		})
	}
}

// An answer to HEAD has the length of a body that does not come.
func TestHead(t *testing.T) {
	t.Parallel()
	r := plain(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", "1000000")
		}
	})
	for range 3 {
		resp, err := http.Head(r.base)
		check(t, err)
		resp.Body.Close()
		if resp.ContentLength != 1000000 || resp.StatusCode != http.StatusOK {
			t.Errorf("%d, %d bytes", resp.StatusCode, resp.ContentLength)
		}
	}
}

// The application hears that nobody waits for its answer any more.
func TestGone(t *testing.T) {
	t.Parallel()
	asked, gone := make(chan struct{}), make(chan error)
	r := plain(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			_, _ = io.WriteString(w, "a")
			_ = http.NewResponseController(w).Flush()
		}
		asked <- struct{}{}
		<-r.Context().Done()
		gone <- r.Context().Err()
	})
	for _, path := range []string{"/", "/begun"} {
		conn := r.raw("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
		<-asked
		if path == "/begun" {
			_, err := http.ReadResponse(bufio.NewReader(conn), nil)
			check(t, err)
		}
		conn.Close()
		if err := <-gone; err != context.Canceled {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A head is not read without end, and neither are hints.
func TestHeadsWithoutEnd(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"lines": "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: aaaaaaaaaaaaaaaa\r\n", 20_000),
		"hints": strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 20_000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := plain(t, "", func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				check(t, err)
				defer conn.Close()
				_, _ = io.WriteString(conn, text)
				_, _ = conn.Read(make([]byte, 1)) // until the proxy closes it
			})
			resp, _ := r.get("/", "")
			if resp.StatusCode != http.StatusBadGateway {
				t.Error(resp.StatusCode)
			}
		})
	}
}

// What an application sets again as it came is not made again, which custody
// would have to record. What has another content, or came by an older version,
// is.
func TestSetAgain(t *testing.T) {
	t.Parallel()
	custody := newVault(recipe.CookieSignature, strings.Repeat("old-", 12), strings.Repeat("new-", 12))
	r := newRig(t, custody, rule("sid", state.ExpressCookie, ""), sees)
	public := func(version int, payload string) string {
		return escape(made(t, custody.versions[key][version], state.ExpressCookie, state.Params{}, payload))
	}
	for name, test := range map[string]struct {
		sent, set string
		calls     []string
	}{
		"as it came":          {sent: public(1, "alice"), set: "alice", calls: []string{"check 1"}},
		"another":             {sent: public(1, "alice"), set: "bob", calls: []string{"check 1", "make 1"}},
		"by an older version": {sent: public(0, "alice"), set: "alice", calls: []string{"check 1", "make 1"}},
		"none came":           {set: "alice", calls: []string{"make 1"}},
		"it was forged":       {sent: changed(public(1, "alice")), set: "alice", calls: []string{"check 1", "make 1"}},
	} {
		cookies := ""
		if test.sent != "" {
			cookies = "sid=" + test.sent
		}
		local := escape(made(t, r.own(recipe.CookieSignature), state.ExpressCookie, state.Params{}, test.set))
		custody.seen()
		resp, _ := r.get("/", cookies, "X-Set", "sid="+local+"; Path=/")
		if got, want := unescape(t, resp.Header.Get("Set-Cookie")), unescape(t, "sid="+public(1, test.set)+"; Path=/"); got != want {
			t.Errorf("%s: set %q, want %q", name, got, want)
		}
		if d := cmp.Diff(test.calls, custody.seen()); d != "" {
			t.Errorf("%s: (-want +got)\n%s", name, d)
		}
	}
}
