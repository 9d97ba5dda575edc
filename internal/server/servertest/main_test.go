package servertest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/api/claviger/v1/clavigerv1connect"
	"claviger.dev/internal/server/servertest"
)

// TestMain is also a program that signs over a socket and says how that went.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "sign" {
		fmt.Print(signLocally(os.Args[2], os.Args[3]))
		os.Exit(0)
	}
	os.Exit(servertest.Main(m))
}

func signLocally(socket, key string) string {
	h := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	_, err := clavigerv1connect.NewUseServiceClient(h, "http://claviger").Sign(context.Background(),
		connect.NewRequest(&clavigerv1.SignRequest{Key: key, Inputs: [][]byte{[]byte("message")}}))
	return string(codeOf(err))
}

// codeOf reads the code of an error as a client does; "" for none.
func codeOf(err error) claviger.Code {
	if err == nil {
		return ""
	}
	c := new(connect.Error)
	if e, ok := err.(*connect.Error); ok { //nolint:errorlint // clients return it bare
		c = e
	}
	return claviger.Code(c.Meta().Get("Claviger-Code"))
}

// wantCode checks a refusal: its code, a message, a hint and a request's id.
func wantCode(t *testing.T, err error, code claviger.Code) {
	t.Helper()
	if got := codeOf(err); got != code {
		t.Fatalf("got %v (code %q), want code %q", err, got, code)
	}
	if e, ok := err.(*connect.Error); ok && (e.Meta().Get("Claviger-Hint") == "" || e.Message() == "") { //nolint:errorlint // as above
		t.Errorf("the error has no hint or no message: %v %v", e, e.Meta())
	}
}

// answer is one answer of HTTP.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// code is what the body says, in the words of Connect.
func (a answer) code() string {
	var m struct{ Code string }
	_ = json.Unmarshal(a.body, &m) // "" for what is no such body
	return m.Code
}

// send sends one request and reads the answer.
func send(t *testing.T, c *servertest.Client, method, path string, header map[string]string, body io.Reader) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, c.Base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w, err := c.HTTP.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Body.Close()
	out, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{status: w.StatusCode, header: w.Header, body: out}
}

// serving checks that a server still answers a caller.
func serving(t *testing.T, s *servertest.Server) {
	t.Helper()
	if _, err := s.Local(t).WhoAmI(t.Context(), connect.NewRequest(&clavigerv1.WhoAmIRequest{})); err != nil {
		t.Fatalf("the server does not answer any more: %v", err)
	}
}

func repeat(s string, n int) string { return string(bytes.Repeat([]byte(s), n)) }
