package proxy_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// plain is a proxy with one rule, in front of an application of the test's.
func plain(t *testing.T, more string, app http.HandlerFunc) *rig {
	t.Helper()
	return newRig(t, newVault(recipe.CookieSignature, strings.Repeat("old-", 12)), more+"\n"+rule("sid", state.ExpressCookie, ""),
		func(*rig) http.Handler { return app })
}

// raw writes a text on a connection of its own, and returns the connection.
func (r *rig) raw(text string) net.Conn {
	r.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.base, "http://"))
	check(r.t, err)
	r.t.Cleanup(func() { conn.Close() })
	check(r.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(conn, text)
	check(r.t, err)
	return conn
}

// What is written arrives at once, both ways.
func TestStreams(t *testing.T) {
	t.Parallel()
	r := plain(t, "", func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		w.Header().Set("Content-Type", "text/event-stream")
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "echo %s\n", lines.Text())
			_ = control.Flush()
		}
	})
	send, body := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, r.base+"/", send)
	check(t, err)
	go func() { _, _ = io.WriteString(body, "0\n") }()
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 5 {
		if !lines.Scan() || lines.Text() != fmt.Sprint("echo ", i) {
			t.Fatalf("line %d: %q %v", i, lines.Text(), lines.Err())
		}
		_, err = fmt.Fprintf(body, "%d\n", i+1)
		check(t, err)
	}
	check(t, body.Close())
}

// A large answer passes in pieces: the proxy does not hold it.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	r := plain(t, "", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, _ := io.Copy(sum, r.Body)
		w.Header().Set("X-Sum", fmt.Sprintf("%x %d", sum.Sum(nil), n))
		_, _ = io.CopyN(w, zeros{}, size)
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	req, err := http.NewRequest(http.MethodPost, r.base+"/", io.LimitReader(zeros{}, size))
	check(t, err)
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, resp.Body)
	check(t, err)
	runtime.ReadMemStats(&after)
	if want := fmt.Sprintf("%x %d", sum.Sum(nil), n); n != size || resp.Header.Get("X-Sum") != want {
		t.Errorf("%d bytes came, and %s went", n, resp.Header.Get("X-Sum"))
	}
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 32<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestTrailers(t *testing.T) {
	t.Parallel()
	r := plain(t, "", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-End")
		fmt.Fprintf(w, "%s|%s", r.Trailer.Get("X-Sum"), r.Trailer.Get("Cookie"))
		w.Header().Set("X-End", "done")
		w.Header().Set(http.TrailerPrefix+"X-Late", "too")
	})
	conn := r.raw("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Cookie\r\nConnection: close\r\n\r\n" +
		"3\r\nabc\r\n0\r\nX-Sum: 17\r\nCookie: sid=x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	check(t, err)
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if string(body) != "17|" || resp.Trailer.Get("X-End") != "done" || resp.Trailer.Get("X-Late") != "too" {
		t.Errorf("%q, trailers %v", body, resp.Trailer)
	}
}

// WebSocket upgrades pass, with their cookies checked; other protocols do not.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	custody := newVault(recipe.CookieSignature, strings.Repeat("old-", 12))
	r := newRig(t, custody, rule("sid", state.ExpressCookie, ""), func(r *rig) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Upgrade") == "" {
				fmt.Fprintf(w, "plain %s", req.Header.Get("Connection"))
				return
			}
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\nX-Sid: %s\r\n\r\n", req.Header.Get("Upgrade"), strings.Join(r.named(req.Header.Get("Cookie")), ","))
			_ = buf.Flush()
			_, _ = io.Copy(conn, buf)
		})
	})
	token := escape(made(t, custody.versions[key][0], state.ExpressCookie, state.Params{}, "alice"))
	conn := r.raw("GET /chat HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nCookie: sid=" + token + "; sid=forged\r\n\r\n")
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	check(t, err)
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("X-Sid") != "alice" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	for i := range 3 {
		want := strings.Repeat(fmt.Sprint(i), 100_000)
		go func() { _, _ = io.WriteString(conn, want) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(in, got); err != nil || string(got) != want {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	for _, upgrade := range []string{"h2c", "websocket, h2c", "websocket\r\nUpgrade: h2c", "tls/1.0"} {
		conn := r.raw("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nUpgrade: " + upgrade + "\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		check(t, err)
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "plain " {
			t.Errorf("upgrade to %q: %d %q", upgrade, resp.StatusCode, body)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	shows := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s|%s|%s|%s|%s", r.Method, r.Host, r.URL.RequestURI(), r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-Forwarded-Proto"),
			r.Header.Get("Forwarded")+r.Header.Get("X-Hop")+r.Header.Get("Keep-Alive")+r.Header.Get("X_Forwarded_For")+r.Header.Get("X-Forwarded_Proto")+r.Header.Get("X_Real-IP"))
		for _, name := range []string{"X-Real-Ip", "X-Forwarded-Port", "Client-Cert", "X-Ssl-Client-Verify", "X-Original-Url", "Remote-User", "X-Client-Version"} {
			fmt.Fprintf(w, " %s", r.Header.Get(name))
		}
	}
	const others = "X-Real-IP: 1\r\nX_Real-IP: 2\r\nX-Forwarded-Port: 3\r\nClient-Cert: 4\r\nX-SSL-Client-Verify: 5\r\nX-Original-URL: 6\r\nRemote-User: 7\r\nX-Client-Version: 8\r\n"
	for name, test := range map[string]struct{ config, want string }{
		"a stranger": {"", "GET shop.example /a%2Fb?x=%26&y|127.0.0.1|shop.example|http|       8"},
		"a balancer": {"trust = ['127.0.0.0/8']", "GET shop.example /a%2Fb?x=%26&y|9.9.9.9, 127.0.0.1|public.example|https| 1 3 4 5 6 7 8"},
	} {
		r := plain(t, test.config, shows)
		conn := r.raw("GET /a%2Fb?x=%26&y HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Host: public.example\r\nX-Forwarded-Proto: https\r\n" +
			others + "X_Forwarded_For: 9.9.9.9\r\nX-Forwarded_Proto: https\r\nForwarded: for=9.9.9.9\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 3\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		check(t, err)
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != test.want {
			t.Errorf("%s: %q, want %q", name, body, test.want)
		}
	}
}

// Bodies of two lengths, and methods that show what the application was sent,
// are not passed on.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	r := plain(t, "", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %q %d %v", r.URL.Path, body, r.ContentLength, r.TransferEncoding)
	})
	for name, test := range map[string]struct{ text, want string }{
		"two lengths":     {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", "400"},
		"length, chunks":  {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\n\r\n", `/a "a" -1 [chunked]`},
		"other coding":    {"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "501"},
		"coding, twice":   {"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", "501"},
		"space in a name": {"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc", "400"},
		"a bare newline":  {"GET /a HTTP/1.1\r\nHost: x\r\nX: a\n b: c\r\nCookie: sid=\x00\r\n\r\n", "400"},
		"no host":         {"GET /a HTTP/1.1\r\n\r\n", "400"},
		"TRACE":           {"TRACE /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "405"},
		"CONNECT":         {"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nConnection: close\r\n\r\n", "405"},
		"another's URL":   {"GET http://other/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", `/a "" 0 []`},
	} {
		resp, err := http.ReadResponse(bufio.NewReader(r.raw(test.text)), nil)
		check(t, err)
		body, err := io.ReadAll(resp.Body)
		check(t, err)
		if got := fmt.Sprint(resp.StatusCode); got != test.want && string(body) != test.want {
			t.Errorf("%s: %s %q, want %s", name, got, body, test.want)
		}
	}
}

// HTTP/2 comes in, here without TLS: browsers cut the Cookie header into pieces.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	r, public := express(t, "")
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := http.Client{Transport: &http.Transport{Protocols: protocols}, Timeout: 20 * time.Second}
	req, err := http.NewRequest(http.MethodGet, r.base+"/", nil)
	check(t, err)
	req.Header["Cookie"] = []string{"a=1", "sid=" + public("a"), "sid=forged"}
	resp, err := client.Do(req)
	check(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.ProtoMajor != 2 || !cmp.Equal(r.named(string(body)), []string{"a"}) || !strings.HasPrefix(string(body), "a=1; ") {
		t.Errorf("%s %d %q", resp.Proto, resp.StatusCode, body)
	}
}

// Hints that come before the answer have no cookies of the application in them.
func TestEarlyHints(t *testing.T) {
	t.Parallel()
	r := plain(t, "", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.Header().Set("Set-Cookie", "sid=x")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Set-Cookie")
	})
	var hints []textproto.MIMEHeader
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
		hints = append(hints, h)
		return nil
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+"/", nil)
	check(t, err)
	resp, _ := r.do(req)
	if d := cmp.Diff([]textproto.MIMEHeader{{"Link": {"</a.css>"}}}, hints); d != "" || resp.StatusCode != http.StatusOK {
		t.Error(d)
	}
}

// An application that is away or silent is said to be.
func TestApplicationAway(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	r := plain(t, "limits = {answer = '50ms'}", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/cut" {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.Close()
			}
			return
		}
		<-hold
	})
	defer close(hold)
	for _, path := range []string{"/", "/cut"} {
		if resp, body := r.get(path, ""); resp.StatusCode != http.StatusBadGateway || body != "the application does not answer\n" {
			t.Errorf("%s: %d %q", path, resp.StatusCode, body)
		}
	}
}

// Requests that have begun finish when the proxy stops.
func TestStop(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	custody := newVault(recipe.CookieSignature, strings.Repeat("old-", 12))
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-finish
		_, _ = io.WriteString(w, "whole")
	}))
	defer app.Close()
	stopped := &rig{t: t, vault: custody, log: &logged{}}
	stopped.open(app.Listener.Addr().String(), rule("sid", state.ExpressCookie, ""))
	public, err := stopped.proxy.Listen()
	check(t, err)
	stopped.base = "http://" + public.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- stopped.proxy.Serve(ctx, public) }()
	answered := make(chan string, 1)
	go func() {
		_, body := stopped.get("/", "")
		answered <- body
	}()
	<-begun
	stop()
	for { // until nobody listens any more
		conn, err := net.Dial("tcp", public.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
	}
	close(finish)
	if body := <-answered; body != "whole" {
		t.Errorf("the answer was cut off: %q", body)
	}
	check(t, <-ended)
}

// Strangers who are slow hold a bounded number of connections for a bounded
// time; streams that rest are none of them.
func TestSlow(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r := plain(t, "limits = {connections = 8, header_timeout = '150ms', stall = '150ms'}", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/rest":
			_, _ = io.WriteString(w, "a")
			_ = http.NewResponseController(w).Flush()
			<-release
			_, _ = io.WriteString(w, "b")
		case "/large":
			_, _ = io.CopyN(w, zeros{}, 64<<20)
		default:
			_, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, err)
		}
	})
	resting := r.raw("GET /rest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	for name, text := range map[string]string{
		"headers": "GET / HTTP/1.1\r\nHost: x\r\nX-A: ",
		"body":    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab",
		"chunks":  "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
	} {
		began := time.Now()
		conn := r.raw(text)
		rest, err := io.ReadAll(conn) // until the proxy closes it
		if took := time.Since(began); err != nil || took > 10*time.Second || name != "headers" && !strings.HasPrefix(string(rest), "HTTP/1.1 408 ") {
			t.Errorf("%s: held for %v: %q %v", name, took, rest, err)
		}
	}
	// More than may be open at once, and none says anything: all are let go.
	for range 24 {
		r.raw("GET / HT")
	}
	if resp, _ := r.get("/", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("nobody is answered behind slow ones: %d", resp.StatusCode)
	}
	// A peer that takes nothing is given up.
	deaf := r.raw("GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	_, err := deaf.Read(make([]byte, 1))
	check(t, err)
	for open := 2.0; open > 1; {
		text := r.metrics()
		_, rest, _ := strings.Cut(text, "\nclaviger_proxy_open ")
		_, err := fmt.Sscan(rest, &open)
		check(t, err)
	}
	if n, err := io.Copy(io.Discard, deaf); err == nil && n >= 64<<20 {
		t.Errorf("a peer that took nothing was sent %d bytes", n)
	}
	close(release)
	if text, err := io.ReadAll(resting); err != nil || !strings.Contains(string(text), "1\r\nb\r\n") {
		t.Errorf("a stream that rested ended with %q %v", text, err)
	}
}

// What an application sends that is no answer is in no log: it may be a cookie.
func TestMalformedAnswers(t *testing.T) {
	t.Parallel()
	const cookie = "s%3AaCookieThatIsNobodysBusiness"
	for name, text := range map[string]string{
		"a line without a colon": "HTTP/1.1 200 OK\r\nSet-Cookie sid=" + cookie + "\r\nContent-Length: 0\r\n\r\n",
		"a broken status":        "HTTP/1.1 " + cookie + "\r\n\r\n",
		"no protocol":            cookie + "\r\n\r\n",
		"a broken length":        "HTTP/1.1 200 OK\r\nContent-Length: " + cookie + "\r\n\r\n",
		"a broken coding":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + cookie + "\r\n\r\n",
		"nothing":                "",
	} {
		t.Run(name, func(t *testing.T) {
			r := plain(t, "", func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				check(t, err)
				_, _ = io.WriteString(conn, text)
				conn.Close()
			})
			resp, err := http.ReadResponse(bufio.NewReader(r.raw("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")), nil)
			check(t, err)
			body, err := io.ReadAll(resp.Body)
			check(t, err)
			if log := r.log.String(); resp.StatusCode != http.StatusBadGateway || strings.Contains(log+string(body), "NobodysBusiness") || !strings.Contains(log, "the application's answer") {
				t.Errorf("%d %q, and the log has %q", resp.StatusCode, body, log)
			}
		})
	}
}
