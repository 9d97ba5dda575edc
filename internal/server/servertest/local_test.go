package servertest_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

// wire is a connection to the local socket, and what comes back on it.
type wire struct {
	net.Conn
	in *bufio.Reader
}

func dial(t testing.TB, s *servertest.Server) wire {
	t.Helper()
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return wire{conn, bufio.NewReader(conn)}
}

// answer reads one answer.
func (w wire) answer(t testing.TB) answer {
	t.Helper()
	r, err := http.ReadResponse(w.in, nil)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	if r.Close { // net/http takes the header away
		r.Header.Set("Connection", "close")
	}
	return answer{r.StatusCode, r.Header, body}
}

// unprotectText is a request as adapters write it.
func unprotectText(key, token string) string {
	body := `{"key":"` + key + `","format":"django.session","tokens":["` + token + `"]}`
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: claviger\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", unprotectPath, len(body), body)
}

// TestLocalRequests sends requests in ways in which they may arrive, and others
// after them, which net/http serves on the same connection.
func TestLocalRequests(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	token := machineKey(t, s, s.Local(t), "dev/direct/local")
	one := unprotectText("dev/direct/local", token)
	head, body, _ := strings.Cut(one, "\r\n\r\n")
	const page = "GET /livez HTTP/1.1\r\nHost: claviger\r\n\r\n"
	for name, tc := range map[string]struct {
		parts    []string
		statuses []int
	}{
		"one":                       {[]string{one}, []int{200}},
		"three at once":             {[]string{one + one + one}, []int{200, 200, 200}},
		"head and body":             {[]string{head + "\r\n\r\n", body}, []int{200}},
		"byte by byte":              {strings.Split(one, ""), []int{200}},
		"one and a half":            {[]string{one + head, "\r\n\r\n" + body}, []int{200, 200}},
		"another page":              {[]string{page}, []int{200}},
		"another page after":        {[]string{one + page + one}, []int{200, 200, 200}},
		"another page after a part": {[]string{one + page[:9], page[9:], one}, []int{200, 200, 200}},
		"chunks": {[]string{strings.Replace(head, "Content-Length: "+fmt.Sprint(len(body)), "Transfer-Encoding: chunked", 1) + "\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body), one}, []int{200, 200}},
		"both framings":         {[]string{head + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, []int{400}},
		"closed after":          {[]string{head + "\r\nConnection: close\r\n\r\n" + body + one}, []int{200}},
		"no HTTP":               {[]string{"what\r\n\r\n"}, []int{400}},
		"a refusal and another": {[]string{unprotectText("prod/x/y", token) + one}, []int{403, 200}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := dial(t, s)
			for _, part := range tc.parts {
				if _, err := io.WriteString(w, part); err != nil {
					t.Fatal(err)
				}
			}
			for i, want := range tc.statuses {
				if got := w.answer(t); got.status != want {
					t.Errorf("answer %d is %d %s, want %d", i, got.status, got.body, want)
				}
			}
		})
	}
}

// TestLocalTimeouts begins requests and does not end them.
func TestLocalTimeouts(t *testing.T) {
	t.Parallel()
	const short = 200 * time.Millisecond
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) {
		c.Limits.HeaderTimeout, c.Limits.BodyTimeout, c.Limits.IdleTimeout = claviger.Duration(short), claviger.Duration(short), claviger.Duration(short)
	}})
	token := machineKey(t, s, s.Local(t), "dev/direct/slow")
	one := unprotectText("dev/direct/slow", token)
	for name, tc := range map[string]struct {
		text  string
		whole int // requests that are answered
	}{
		"nothing":        {"", 0},
		"begun":          {one[:20], 0},
		"idle":           {one, 1},
		"idle and begun": {one + one[:20], 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := dial(t, s)
			if _, err := io.WriteString(w, tc.text); err != nil {
				t.Fatal(err)
			}
			for range tc.whole {
				if got := w.answer(t); got.status != 200 {
					t.Errorf("got %d %s", got.status, got.body)
				}
			}
			if rest, err := io.ReadAll(w.in); err != nil {
				t.Errorf("the connection is not closed: %q, %v", rest, err)
			}
		})
	}
	t.Run("no body", func(t *testing.T) {
		t.Parallel()
		w := dial(t, s)
		if _, err := io.WriteString(w, one[:len(one)-1]); err != nil {
			t.Fatal(err)
		}
		if got := w.answer(t); got.code() != "deadline_exceeded" {
			t.Errorf("got %d %s", got.status, got.body)
		}
	})
}

// TestLocalStop stops a server with idle connections on its socket, and with a
// request under way, which is answered.
func TestLocalStop(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	token := machineKey(t, s, s.Local(t), "dev/direct/stop")
	one := unprotectText("dev/direct/stop", token)
	idle, fresh, busy := dial(t, s), dial(t, s), dial(t, s)
	for _, w := range []wire{idle, busy} {
		if _, err := io.WriteString(w, one); err != nil {
			t.Fatal(err)
		}
		if got := w.answer(t); got.status != 200 {
			t.Fatalf("got %d %s", got.status, got.body)
		}
	}
	if err := s.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(busy, one); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	under := time.NewTimer(300 * time.Millisecond) // the request is at the key process by then
	defer under.Stop()
	<-under.C
	go func() { stopped <- s.Stop() }()
	for _, w := range []wire{idle, fresh} {
		if rest, err := io.ReadAll(w.in); err != nil || len(rest) > 0 {
			t.Errorf("an idle connection ends with %q, %v", rest, err)
		}
	}
	select {
	case err := <-stopped:
		t.Errorf("the server did not wait for the request: %v", err)
	default:
	}
	if err := s.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	got := busy.answer(t)
	if got.status != 200 || got.header.Get("Connection") != "close" {
		t.Errorf("the request under way got %d %s %v", got.status, got.body, got.header)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestLocalConnections opens more connections than there may be.
func TestLocalConnections(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) { c.Limits.Connections = 8 }})
	token := machineKey(t, s, s.Local(t), "dev/direct/many")
	one := unprotectText("dev/direct/many", token)
	wires := make([]wire, 9)
	for i := range wires {
		wires[i] = dial(t, s)
		if _, err := io.WriteString(wires[i], one); err != nil {
			t.Fatal(err)
		}
		if got := wires[i].answer(t); got.status != 200 {
			t.Fatalf("got %d %s", got.status, got.body)
		}
	}
	if rest, err := io.ReadAll(wires[0].in); err != nil || len(rest) > 0 {
		t.Errorf("the connection that was idle for longest ends with %q, %v", rest, err)
	}
	if _, err := io.WriteString(wires[8], one); err != nil {
		t.Fatal(err)
	}
	if got := wires[8].answer(t); got.status != 200 {
		t.Errorf("the last connection got %d %s", got.status, got.body)
	}
}

// TestLocalAllocations bounds the work of a check, all of the server's together.
func TestLocalAllocations(t *testing.T) {
	s := servertest.Start(t, servertest.Options{})
	one := []byte(unprotectText("dev/direct/work", machineKey(t, s, s.Local(t), "dev/direct/work")))
	w := dial(t, s)
	answer := make([]byte, 4096)
	call := func() {
		if _, err := w.Write(one); err != nil {
			t.Fatal(err)
		}
		if n, err := w.Read(answer); err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 200 ") {
			t.Fatalf("%q, %v", answer[:n], err)
		}
	}
	if got := testing.AllocsPerRun(1000, call); got > 50 {
		t.Errorf("%v allocations, want at most 50", got)
	}
}
