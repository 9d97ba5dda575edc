package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/semaphore"

	"claviger.dev"
)

func TestRoutesCoverEveryMethod(t *testing.T) {
	t.Parallel()
	if err := checkRoutes(routes(), services()); err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, f := range services() {
		for i := range f.Services().Len() {
			count += f.Services().Get(i).Methods().Len()
		}
	}
	if count != len(routes()) || count < 40 {
		t.Errorf("there are %d methods and %d rows, want as many, and at least 40", count, len(routes()))
	}
}

func TestRoutesFailClosed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func([]route) []route{
		"a method without a row": func(r []route) []route { return r[1:] },
		"a row twice":            func(r []route) []route { return append(r, r[0]) },
		"a row for no method": func(r []route) []route {
			return append(r, route{procedure: "/claviger.v1.UseService/Export", body: 1, deadline: 1, auth: authAny, class: classUse})
		},
		"no body cap":          func(r []route) []route { r[0].body = 0; return r },
		"no deadline":          func(r []route) []route { r[0].deadline = 0; return r },
		"no authenticator":     func(r []route) []route { r[0].auth = ""; return r },
		"no rate class":        func(r []route) []route { r[0].class = ""; return r },
		"streams, says no row": func(r []route) []route { r[0].stream = true; return r },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := checkRoutes(change(routes()), services()); err == nil {
				t.Error("the table is accepted")
			}
		})
	}
}

// TestUnauthenticatedRoutes fixes the list of methods that strangers may call.
func TestUnauthenticatedRoutes(t *testing.T) {
	t.Parallel()
	var open []string
	for _, r := range routes() {
		if r.auth == authNone {
			open = append(open, r.procedure)
			if r.class != classEnroll || r.body > small {
				t.Errorf("%s is open to strangers, but not strict", r.procedure)
			}
		}
	}
	want := []string{"/claviger.v1.PrincipalService/Enroll", "/claviger.v1.PrincipalService/BeginEnroll", "/claviger.v1.PrincipalService/FinishEnroll",
		"/claviger.v1.PrincipalService/BeginRenew", "/claviger.v1.PrincipalService/FinishRenew", "/claviger.v1.ServerService/Admit"}
	if diff := cmp.Diff(want, open); diff != "" {
		t.Errorf("open methods (-want +got):\n%s", diff)
	}
}

func TestOutward(t *testing.T) {
	t.Parallel()
	secret := errors.New("open /var/lib/claviger: permission denied")
	for name, tc := range map[string]struct {
		err  error
		code claviger.Code
		rpc  connect.Code
		msg  string
		logs bool
	}{
		"known":            {claviger.Errorf(claviger.Denied, "no grant", "ask for one"), claviger.Denied, connect.CodePermissionDenied, "no grant", false},
		"wrapped":          {fmt.Errorf("sign: %w", claviger.Errorf(claviger.NotFound, "no such key", "look again").Wrap(secret)), claviger.NotFound, connect.CodeNotFound, "no such key", false},
		"unavailable":      {claviger.Errorf(claviger.Unavailable, "no", "wait").Wrap(secret), claviger.Unavailable, connect.CodeUnavailable, "no", true},
		"unknown":          {secret, claviger.Internal, connect.CodeInternal, "a fault of the server", true},
		"internal":         {claviger.Errorf(claviger.Internal, "details", "").Wrap(secret), claviger.Internal, connect.CodeInternal, "a fault of the server", true},
		"deadline":         {fmt.Errorf("read: %w", context.DeadlineExceeded), claviger.Deadline, connect.CodeDeadlineExceeded, "the deadline passed", false},
		"caller went away": {fmt.Errorf("read: %w", context.Canceled), claviger.Deadline, connect.CodeDeadlineExceeded, "the caller went away", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var logged strings.Builder
			got := outward(t.Context(), slog.New(slog.NewTextHandler(&logged, nil)), "/x", "the-request", tc.err)
			if got.Code() != tc.rpc || got.Message() != tc.msg || got.Meta().Get(headerCode) != string(tc.code) || got.Meta().Get(headerHint) == "" {
				t.Errorf("got %v %q %v", got.Code(), got.Message(), got.Meta())
			}
			if strings.Contains(got.Error()+got.Meta().Get(headerHint), "permission denied") {
				t.Error("the cause leaves the server")
			}
			if (logged.Len() > 0) != tc.logs || tc.logs && !strings.Contains(logged.String(), "the-request") {
				t.Errorf("logged %q", logged.String())
			}
		})
	}
}

// TestEveryCodeHasItsRPC checks that clients can tell every code by its RPC
// code alone, as they must where an error carries no metadata.
func TestEveryCodeHasItsRPC(t *testing.T) {
	t.Parallel()
	for code, mapping := range claviger.Mappings {
		if got := codeOf(connect.NewError(connect.Code(mapping.RPC), errors.New("x"))); got != code {
			t.Errorf("RPC code %d is read as %q, want %q", mapping.RPC, got, code)
		}
	}
}

func TestBuckets(t *testing.T) {
	t.Parallel()
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	b := newBuckets(1, 2)
	for i, step := range []struct {
		caller string
		at     float64
		want   bool
	}{
		{"a", 0, true}, {"a", 0, true}, {"a", 0, false}, {"b", 0, true}, {"a", 0.5, false}, {"a", 1, true}, {"a", 1, false}, {"a", 100, true}, {"a", 100, true}, {"a", 100, false},
	} {
		if got := b.allow(step.caller, at(step.at)); got != step.want {
			t.Errorf("step %d: caller %s at %v: %v, want %v", i, step.caller, step.at, got, step.want)
		}
	}
	if none := (*buckets)(nil); !none.allow("a", at(0)) {
		t.Error("a class without a limit refuses")
	}
}

func TestBucketsAreBounded(t *testing.T) {
	t.Parallel()
	b := newBuckets(0.001, 1)
	now := time.Unix(1000, 0)
	if !b.allow("busy", now) {
		t.Fatal("the first call is refused")
	}
	for i := range 10 * maxBuckets {
		b.allow(strconv.Itoa(i), now)
		if i%100 == 0 && b.allow("busy", now) {
			t.Fatalf("a busy caller is forgotten after %d others", i)
		}
	}
	if n := len(b.young) + len(b.old); n > maxBuckets {
		t.Errorf("%d callers are remembered, want at most %d", n, maxBuckets)
	}
}

func TestConnectionsEvictTheIdle(t *testing.T) {
	t.Parallel()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := newConnections(3, "test", m)
	conns := make([]*spyConn, 6)
	for i := range conns {
		conns[i] = &spyConn{}
	}
	closed := func() (out []int) {
		for i, conn := range conns {
			if conn.closed {
				out = append(out, i)
				if !conn.reported { // as its goroutine does
					conn.reported = true
					c.track(conn, http.StateClosed)
				}
			}
		}
		return out
	}
	c.track(conns[0], http.StateNew)
	c.track(conns[0], http.StateActive)
	c.track(conns[1], http.StateNew)
	c.track(conns[2], http.StateNew)
	c.track(conns[1], http.StateActive)
	c.track(conns[1], http.StateIdle) // now 2 has waited longest
	if got := closed(); got != nil {
		t.Fatalf("closed %v below the limit", got)
	}
	c.track(conns[3], http.StateNew)
	if diff := cmp.Diff([]int{2}, closed()); diff != "" {
		t.Errorf("closed (-want +got):\n%s", diff)
	}
	c.track(conns[3], http.StateActive)
	c.track(conns[1], http.StateActive)
	c.track(conns[4], http.StateNew) // all others are busy: it is turned away
	if diff := cmp.Diff([]int{2, 4}, closed()); diff != "" {
		t.Errorf("closed (-want +got):\n%s", diff)
	}
	if c.open != 3 || c.waiting.Len() != 0 || len(c.places) != 0 {
		t.Errorf("%d open, %d waiting, %d places; want 3, 0, 0", c.open, c.waiting.Len(), len(c.places))
	}
}

type spyConn struct {
	net.Conn
	closed, reported bool
}

func (s *spyConn) Close() error { s.closed = true; return nil }

func TestPanicIsInternal(t *testing.T) {
	t.Parallel()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	g := &gate{log: slog.New(slog.NewTextHandler(&logged, nil)), now: time.Now, metrics: m, stopping: t.Context(), bodies: semaphore.NewWeighted(bodyMemory), errors: connect.NewErrorWriter()}
	row := route{procedure: "/x/y", body: small, deadline: time.Second, auth: authNone, class: classUse}
	handler := g.guard(row, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("secret detail") }))
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/x/y", strings.NewReader("{}"))
	r.Header.Set("Content-Type", "application/json")
	handler.ServeHTTP(w, r)
	if w.Code != 500 || w.Header().Get(headerCode) != "internal" || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("got %d %v %s", w.Code, w.Header(), w.Body)
	}
	id := w.Header().Get(headerRequestID)
	if id == "" || !strings.Contains(logged.String(), id) || !strings.Contains(logged.String(), "secret detail") {
		t.Errorf("request %q; logged %q", id, logged.String())
	}
}

func TestJWKSCaching(t *testing.T) {
	t.Parallel()
	set := newJWKS([][]byte{[]byte(`{"kid":"a"}`), []byte(`{"kid":"b"}`)}, 90*time.Second)
	get := func(match string) *http.Response {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if match != "" {
			r.Header.Set("If-None-Match", match)
		}
		set.serve(w, r)
		return w.Result()
	}
	first := get("")
	body, err := io.ReadAll(first.Body)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"keys":[{"kid":"a"},{"kid":"b"}]}` + "\n"; string(body) != want {
		t.Errorf("body %q, want %q", body, want)
	}
	tag := first.Header.Get("ETag")
	for match, want := range map[string]int{"": 200, tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, "*": 304, `"x"`: 200, strings.Trim(tag, `"`): 200} {
		got := get(match)
		if got.StatusCode != want || got.Header.Get("ETag") != tag || got.Header.Get("Cache-Control") != "public, max-age=90" {
			t.Errorf("If-None-Match %q: %d %v, want %d", match, got.StatusCode, got.Header, want)
		}
	}
}
