package servertest_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

// TestCheckpointsAreKeptElsewhere has a file and a webhook get checkpoints,
// with which the record then verifies.
func TestCheckpointsAreKeptElsewhere(t *testing.T) {
	t.Parallel()
	posted := make(chan []byte, 16)
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		select {
		case posted <- line:
		default:
		}
	}))
	t.Cleanup(hook.Close)
	file := filepath.Join(t.TempDir(), "checkpoints")
	s := servertest.Start(t, servertest.Options{Webhooks: hook.Client(), Change: func(c *server.Config) {
		c.Checkpoint = server.Checkpoint{Every: claviger.Duration(time.Second), File: file, Webhook: hook.URL}
	}})
	s.Key(t, "dev/app/token", claviger.Ed25519)
	var line []byte
	select {
	case line = <-posted:
	case <-time.After(30 * time.Second):
		t.Fatal("no checkpoint was posted")
	}
	kept, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(kept, bytes.TrimSpace(line)) || !bytes.HasSuffix(kept, []byte("}\n")) {
		t.Errorf("the file holds\n%s\nthe webhook got\n%s", kept, line)
	}
	r, err := s.Local(t).VerifyAudit(t.Context(), connect.NewRequest(&clavigerv1.VerifyAuditRequest{Checkpoint: line}))
	if err != nil || !r.Msg.Ok || r.Msg.Records == 0 {
		t.Errorf("the record against its checkpoint: %v, %v", r, err)
	}
}

func TestAuditFormats(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	s.Key(t, "dev/app/token", claviger.Ed25519)
	for format, holds := range map[string]string{"": `"action":"key.create"`, "json": `"action":"key.create"`, "ocsf": `"class_uid"`} {
		stream, err := s.Local(t).Query(t.Context(), connect.NewRequest(&clavigerv1.QueryRequest{Format: format, Action: "key.create"}))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for stream.Receive() {
			n++
			if m := stream.Msg(); !bytes.Contains(m.Line, []byte(holds)) || bytes.ContainsRune(m.Line, '\n') || m.Seq == 0 {
				t.Errorf("format %q: %d %s", format, m.Seq, m.Line)
			}
		}
		if stream.Err() != nil || n == 0 {
			t.Errorf("format %q: %d records, %v", format, n, stream.Err())
		}
	}
	stream, err := s.Local(t).Query(t.Context(), connect.NewRequest(&clavigerv1.QueryRequest{Format: "xml"}))
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		t.Error("a record in a format that is not known")
	}
	wantCode(t, stream.Err(), claviger.Invalid)
}
