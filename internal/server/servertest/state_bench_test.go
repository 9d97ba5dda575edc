package servertest_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server/servertest"
)

// BenchmarkUnprotect checks tokens one by one over the local socket, 32 at once.
func BenchmarkUnprotect(b *testing.B) {
	s := servertest.Start(b, servertest.Options{})
	operator := s.Local(b)
	me, err := operator.WhoAmI(b.Context(), connect.NewRequest(&clavigerv1.WhoAmIRequest{}))
	if err != nil {
		b.Fatal(err)
	}
	s.Allow(b, me.Msg.Principal.Name, "dev/bench/*", nil, claviger.Protect, claviger.Unprotect)
	if _, err := operator.CreateKey(b.Context(), connect.NewRequest(&clavigerv1.CreateKeyRequest{Name: "dev/bench/state", Algorithm: "machine-key", Recipe: "django"})); err != nil {
		b.Fatal(err)
	}
	made, err := operator.Protect(b.Context(), connect.NewRequest(&clavigerv1.ProtectRequest{Key: "dev/bench/state", Format: "django.session", Payloads: [][]byte{make([]byte, 64)}}))
	if err != nil {
		b.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"key": "dev/bench/state", "format": "django.session", "tokens": made.Msg.Tokens})
	if err != nil {
		b.Fatal(err)
	}
	request := fmt.Appendf(nil, "POST /claviger.v1.StateService/Unprotect HTTP/1.1\r\nHost: claviger\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("unix", s.Socket)
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for pb.Next() {
			if _, err := conn.Write(request); err != nil {
				b.Error(err)
				return
			}
			r, err := http.ReadResponse(in, nil)
			if err != nil || r.StatusCode != 200 {
				b.Errorf("answer %v, %v", r, err)
				return
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
