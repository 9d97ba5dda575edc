package servertest_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

const (
	signPath = "/claviger.v1.UseService/Sign"
	keyPath  = "/claviger.v1.KeyService/CreateKey"
)

var jsonType = map[string]string{"Content-Type": "application/json"}

// hostile is one request and how it is refused.
type hostile struct {
	name   string
	method string
	path   string
	header map[string]string
	body   io.Reader
	status int
	code   claviger.Code
}

func hostileRequests() []hostile {
	with := func(k, v string) map[string]string {
		return map[string]string{"Content-Type": "application/json", k: v}
	}
	chunked := func(n int64) io.Reader { return io.MultiReader(io.LimitReader(zeros{}, n)) }
	key := func(name string) string { return `{"name":"` + name + `","algorithm":"ed25519","owner":"x"}` }
	return []hostile{
		{"body over the cap", "POST", signPath, jsonType, strings.NewReader(repeat(" ", 7<<20)), 400, claviger.TooLarge},
		{"body over the cap, chunked", "POST", signPath, jsonType, chunked(7 << 20), 400, claviger.TooLarge},
		{"body over a small cap, chunked", "POST", keyPath, jsonType, chunked(65 << 10), 400, claviger.TooLarge},
		{"deep JSON", "POST", keyPath, jsonType, strings.NewReader(repeat(`{"settings":`, 4000)), 400, claviger.Invalid},
		{"deep list", "POST", keyPath, jsonType, strings.NewReader(`{"labels":` + repeat("[", 30000)), 400, claviger.Invalid},
		{"invalid UTF-8", "POST", keyPath, jsonType, strings.NewReader(key("dev/\xff/b")), 400, claviger.Invalid},
		{"unknown field", "POST", keyPath, jsonType, strings.NewReader(`{"private_key":"x"}`), 400, claviger.Invalid},
		{"member twice", "POST", keyPath, jsonType, strings.NewReader(`{"name":"a/b/c","name":"a/b/d"}`), 400, claviger.Invalid},
		{"two values", "POST", keyPath, jsonType, strings.NewReader(`{} {}`), 400, claviger.Invalid},
		{"nothing", "POST", keyPath, jsonType, strings.NewReader(""), 400, claviger.Invalid},
		{"name with ..", "POST", keyPath, jsonType, strings.NewReader(key("dev/../b")), 400, claviger.Invalid},
		{"name with dots inside", "POST", keyPath, jsonType, strings.NewReader(key("dev/a..b/c")), 400, claviger.Invalid},
		{"name with NUL", "POST", keyPath, jsonType, strings.NewReader(key(`dev/a\u0000/b`)), 400, claviger.Invalid},
		{"name of 60 KiB", "POST", keyPath, jsonType, strings.NewReader(key("dev/a/" + repeat("b", 60<<10))), 400, claviger.Invalid},
		{"name of 64 KiB", "POST", keyPath, jsonType, strings.NewReader(key("dev/a/" + repeat("b", 64<<10))), 400, claviger.TooLarge},
		{"name in upper case", "POST", keyPath, jsonType, strings.NewReader(key("dev/A/b")), 400, claviger.Invalid},
		{"time out of range", "POST", "/claviger.v1.AuditService/Query", map[string]string{"Content-Type": "application/connect+json"}, envelope(`{"since":"9999-12-31T23:59:60Z"}`), 200, ""},
		{"no content type", "POST", keyPath, nil, strings.NewReader("{}"), 400, claviger.Invalid},
		{"form", "POST", keyPath, map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, strings.NewReader("name=x"), 400, claviger.Invalid},
		{"text", "POST", keyPath, map[string]string{"Content-Type": "text/plain"}, strings.NewReader("{}"), 400, claviger.Invalid},
		{"another codec", "POST", keyPath, map[string]string{"Content-Type": "application/xml"}, strings.NewReader("<a/>"), 400, claviger.Invalid},
		{"binary that is none", "POST", keyPath, map[string]string{"Content-Type": "application/proto"}, strings.NewReader("\xff\xff\xff"), 400, claviger.Invalid},
		{"GET", "GET", signPath, nil, nil, 501, claviger.Unsupported},
		{"GET with a message", "GET", signPath + "?encoding=json&message={}", nil, nil, 501, claviger.Unsupported},
		{"PUT", "PUT", signPath, jsonType, strings.NewReader("{}"), 501, claviger.Unsupported},
		{"compressed", "POST", keyPath, with("Content-Encoding", "gzip"), strings.NewReader("\x1f\x8b"), 501, claviger.Unsupported},
		{"another compression", "POST", keyPath, with("Content-Encoding", "br"), strings.NewReader("x"), 501, claviger.Unsupported},
		{"timeout that is none", "POST", keyPath, with("Connect-Timeout-Ms", "soon"), strings.NewReader("{}"), 400, claviger.Invalid},
		{"negative timeout", "POST", keyPath, with("Connect-Timeout-Ms", "-1"), strings.NewReader("{}"), 400, claviger.Invalid},
		{"timeout of ages", "POST", keyPath, with("Connect-Timeout-Ms", repeat("9", 30)), strings.NewReader("{}"), 400, claviger.Invalid},
		{"no time at all", "POST", keyPath, with("Connect-Timeout-Ms", "0"), strings.NewReader(key("dev/a/b")), 504, claviger.Deadline},
		{"another protocol version", "POST", keyPath, with("Connect-Protocol-Version", "2"), strings.NewReader("{}"), 400, claviger.Invalid},
		{"method that is none", "POST", "/claviger.v1.KeyService/ExportKey", jsonType, strings.NewReader("{}"), 404, claviger.NotFound},
		{"service that is none", "POST", "/claviger.v1.SecretService/Get", jsonType, strings.NewReader("{}"), 404, claviger.NotFound},
		{"method with a slash", "POST", signPath + "/", jsonType, strings.NewReader("{}"), 404, claviger.NotFound},
		{"method by a detour", "POST", "/x/.." + signPath, jsonType, strings.NewReader("{}"), 404, claviger.NotFound},
		{"page that is none", "GET", "/debug/pprof/", nil, nil, 404, claviger.NotFound},
		{"metrics where callers are", "GET", "/metrics", nil, nil, 404, claviger.NotFound},
		{"key set that is none", "GET", "/jwks/prod/none", nil, nil, 404, claviger.NotFound},
		{"key set of dots", "GET", "/jwks/..%2f..%2fetc/passwd", nil, nil, 404, claviger.NotFound},
		{"duration out of range", "POST", keyPath, jsonType, strings.NewReader(`{"name":"dev/a/b","settings":{"rotateEvery":"315576000000s"}}`), 400, claviger.Invalid},
		{"negative duration", "POST", keyPath, jsonType, strings.NewReader(`{"name":"dev/a/b","settings":{"rotateEvery":"-1s"}}`), 400, claviger.Invalid},
	}
}

func TestHostileRequests(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	local := s.Local(t)
	for _, tc := range hostileRequests() {
		t.Run(tc.name, func(t *testing.T) {
			got := send(t, local, tc.method, tc.path, tc.header, tc.body)
			if got.status != tc.status || claviger.Code(got.header.Get("Claviger-Code")) != tc.code {
				t.Fatalf("got %d %v\n%s\nwant %d with code %q", got.status, got.header, got.body, tc.status, tc.code)
			}
			if tc.code != "" && (got.header.Get("Claviger-Hint") == "" || got.header.Get("Claviger-Request-Id") == "") {
				t.Errorf("no hint or no request id: %v", got.header)
			}
			if len(got.body) > 1024 {
				t.Errorf("the answer has %d bytes", len(got.body))
			}
		})
	}
	serving(t, s)
	if list, err := local.ListKeys(t.Context(), connect.NewRequest(&clavigerv1.ListKeysRequest{})); err != nil || len(list.Msg.Keys) != 0 {
		t.Errorf("after all that there are keys: %v, %v", list, err)
	}
}

// zeros never end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// envelope is one message of a stream.
func envelope(s string) io.Reader {
	return io.MultiReader(bytes.NewReader([]byte{0, 0, 0, byte(len(s) >> 8), byte(len(s))}), strings.NewReader(s))
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	remote := s.Remote(t, nil)
	for _, path := range []string{
		signPath, keyPath, "/claviger.v1.AuditService/VerifyAudit", "/claviger.v1.ServerService/Info", "/claviger.v1.PrincipalService/WhoAmI", "/claviger.v1.PrincipalService/Renew",
	} {
		got := send(t, remote, "POST", path, jsonType, strings.NewReader("{}"))
		if got.status != 401 || got.header.Get("Claviger-Code") != "unauthenticated" || got.header.Get("Claviger-Hint") == "" || got.code() != "unauthenticated" {
			t.Errorf("%s: %d %v %s, want unauthenticated", path, got.status, got.header, got.body)
		}
	}
	_, err := remote.Enroll(t.Context(), connect.NewRequest(&clavigerv1.EnrollRequest{Code: "clv1_x", Csr: []byte("x")}))
	wantCode(t, err, claviger.Invalid)
	stream, err := remote.Query(t.Context(), connect.NewRequest(&clavigerv1.QueryRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if stream.Receive() {
		t.Error("a stranger reads the record")
	}
	wantCode(t, stream.Err(), claviger.Unauthenticated)
	serving(t, s)
}

func TestEnrolmentsAreRationed(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) { c.Limits.Enroll = 3 }})
	remote := s.Remote(t, nil)
	for i := range 5 {
		_, err := remote.Enroll(t.Context(), connect.NewRequest(&clavigerv1.EnrollRequest{Code: "clv1_x", Csr: []byte("x")}))
		want := claviger.Invalid
		if i >= 3 {
			want = claviger.Exhausted
		}
		wantCode(t, err, want)
	}
	serving(t, s) // others are not held up
}

func TestHugeHeaders(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	got := send(t, s.Local(t), "POST", signPath, map[string]string{"Content-Type": "application/json", "X-Junk": repeat("x", 64<<10)}, strings.NewReader("{}"))
	if got.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %d, want 431", got.status)
	}
	serving(t, s)
}

// TestSlowCallers waits for the server to end each connection.
func TestSlowCallers(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) {
		c.Limits.HeaderTimeout = claviger.Duration(300 * time.Millisecond)
		c.Limits.BodyTimeout = claviger.Duration(600 * time.Millisecond)
		c.Limits.IdleTimeout = claviger.Duration(300 * time.Millisecond)
	}})
	const head = "POST /claviger.v1.PrincipalService/Enroll HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	for name, tc := range map[string]struct {
		send  string
		plain bool   // without TLS
		says  string // in what comes back before the end
	}{
		"no handshake":         {plain: true},
		"half a handshake":     {plain: true, send: "\x16\x03\x01\x02\x00\x01"},
		"nothing":              {},
		"half a request line":  {send: "POST /clav"},
		"headers without end":  {send: head},
		"half a body":          {send: head + "Content-Length: 100\r\n\r\n{\"code\":", says: "Claviger-Code: deadline"},
		"half a chunk":         {send: head + "Transfer-Encoding: chunked\r\n\r\n10\r\n{", says: "Claviger-Code: deadline"},
		"one request, then no": {send: "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", says: "200 OK"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", s.Address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if !tc.plain {
				conn = tls.Client(conn, &tls.Config{RootCAs: s.Roots, ServerName: "127.0.0.1", NextProtos: []string{"http/1.1"}})
			}
			if _, err := io.WriteString(conn, tc.send); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the server kept the connection; it said %q", got)
			}
			if !strings.Contains(string(got), tc.says) {
				t.Errorf("the server said %q, want %q in it", got, tc.says)
			}
		})
	}
}

// TestIdleConnections opens ten thousand connections that say nothing.
func TestIdleConnections(t *testing.T) {
	const idle, limit = 10000, 1000
	files := unix.Rlimit{Cur: 40000, Max: 40000}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil || files.Max < idle+2*limit {
			t.Fatalf("at most %d descriptors may be open here, %v; the test needs %d", files.Max, err, idle+2*limit)
		}
		files.Cur = files.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
			t.Fatal(err)
		}
	}
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) { c.Limits.Connections = limit }})
	cert, _ := s.Enrol(t, "web")
	busy := s.Remote(t, cert)
	before := memory()
	conns := make([]net.Conn, 0, idle)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range idle {
		c, err := net.Dial("tcp", s.Address)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
		if i%500 == 499 {
			if _, err := busy.WhoAmI(t.Context(), connect.NewRequest(&clavigerv1.WhoAmIRequest{})); err != nil {
				t.Fatalf("with %d idle connections another caller gets %v", i+1, err)
			}
		}
	}
	if _, err := s.Remote(t, cert).WhoAmI(t.Context(), connect.NewRequest(&clavigerv1.WhoAmIRequest{})); err != nil {
		t.Fatalf("with all of them open, a new caller gets %v", err)
	}
	if _, err := conns[0].Read(make([]byte, 1)); err == nil {
		t.Error("the oldest idle connection has something to read, want its end")
	}
	if grown := memory() - before; grown > 128<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
	if n := metric(t, s, `claviger_connections{listener="tls"}`); n > limit+1 {
		t.Errorf("%v connections are open, want at most %d", n, limit)
	}
	serving(t, s)
}

// memory is what the process has in use, in bytes.
func memory() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// metric reads one number from the metrics page.
func metric(t *testing.T, s *servertest.Server, series string) float64 {
	t.Helper()
	for line := range strings.Lines(scrape(t, s)) {
		var v float64
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("there is no series %s", series)
	return 0
}

func scrape(t *testing.T, s *servertest.Server) string {
	t.Helper()
	w, err := http.Get("http://" + s.Metrics + "/metrics") //nolint:noctx // loopback, in a test
	if err != nil {
		t.Fatal(err)
	}
	defer w.Body.Close()
	page, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// TestRapidReset opens and resets streams as fast as it can.
func TestRapidReset(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	conn, err := tls.Dial("tcp", s.Address, &tls.Config{RootCAs: s.Roots, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(conn)
	_, _ = w.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(w, bufio.NewReader(conn))
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	ended := make(chan error, 1)
	go func() { // the server's frames, up to the end that it puts to this
		for {
			if _, err := framer.ReadFrame(); err != nil {
				ended <- err
				return
			}
		}
	}()
	most := 0
	for i := range 50000 {
		block.Reset()
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", signPath}, {"content-type", "application/json"}} {
			if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
				t.Fatal(err)
			}
		}
		id := uint32(2*i + 1)
		err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
		if err == nil {
			err = framer.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err == nil && i%100 == 0 {
			err = w.Flush()
		}
		if err != nil {
			break // the server has had enough
		}
		most = max(most, runtime.NumGoroutine())
	}
	if most > 2000 {
		t.Errorf("there were %d goroutines at once", most)
	}
	serving(t, s)
	conn.Close()
	<-ended
}

// TestUnfinishedBodies sends large bodies in parts, on as many connections as
// fill the memory for them, and none of them to the end.
func TestUnfinishedBodies(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) { c.Limits.BodyTimeout = claviger.Duration(2 * time.Second) }})
	const each, n = 5 << 20, 60
	for range n {
		conn, err := net.Dial("unix", s.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() { // ends when the server closes the connection, at the latest
			_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", signPath, each+1)
			_, _ = conn.Write(bytes.Repeat([]byte(" "), each))
		}()
	}
	serving(t, s)
}
