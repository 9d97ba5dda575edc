package ops_test

import (
	"context"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/api/claviger/v1/clavigerv1connect"
	"claviger.dev/client"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/rootkey"
	"claviger.dev/internal/store/postgres/pgtest"
)

// shared makes a site on a PostgreSQL.
func shared(t *testing.T, dsn string) *site {
	t.Helper()
	password := filepath.Join(t.TempDir(), "dsn")
	check(t, os.Chmod(filepath.Dir(filepath.Dir(password)), 0o755))
	check(t, os.Chmod(filepath.Dir(password), 0o755))
	check(t, os.WriteFile(password, []byte(dsn), 0o400))
	check(t, os.Chown(password, serverUID, serverUID))
	return newSite(t, "\n[store]\nkind = \"postgres\"\ndsn_file = \""+password+"\"\n")
}

// database starts a PostgreSQL that the server's uid reaches.
func database(t *testing.T) string {
	t.Helper()
	dsn := pgtest.Start(t)
	host, _, _ := strings.Cut(strings.TrimPrefix(dsn, "host="), " ")
	check(t, os.Chmod(host, 0o711))
	return dsn
}

// denials counts the refusals of an action in the record.
func (s *site) denials(action string) (n int) {
	s.t.Helper()
	for _, err := range s.op.Audit(s.t.Context(), &pb.QueryRequest{Action: action, Outcome: "denied"}) {
		check(s.t, err)
		n++
	}
	return n
}

const joinKey = `'claviger root admit': ([0-9a-f]{64})`

func TestSecondServer(t *testing.T) {
	t.Parallel()
	dsn := database(t)
	first, second, stray := shared(t, dsn), shared(t, dsn), shared(t, dsn)
	pin := first.run("init", "--config", first.config, "--kind", "file")
	first.up()
	roots := filepath.Join(first.dir, "roots.pem")
	check(t, os.WriteFile(roots, []byte(first.run("server", "roots")), 0o644))
	k := first.key("prod/shop/receipts")
	at1, grant := first.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), at1, k))

	join := []string{"--join", "https://" + first.address, "--slot-kind", "file", "--ca", roots, "--identity"}
	second.launch(nil, append(join, pin)...)
	admitted := second.wait(0, joinKey)[1]
	second.wait(0, "is not admitted")
	if first.denials("server.admit") == 0 {
		t.Error("the record shows no refusal of a key that was not admitted")
	}
	stray.launch(nil, append(join, strings.Repeat("5a", 32))...)
	first.root("admit", admitted, stray.wait(0, joinKey)[1])
	first.hup()
	second.serving(0)
	stray.wait(0, "not of the key process that is pinned")
	if _, err := os.Stat(filepath.Join(stray.data, "unseal", "root.json")); err == nil {
		t.Error("a root key with another identity was kept")
	}
	stray.stop()
	if kept, err := os.ReadFile(filepath.Join(second.data, "identity")); err != nil || strings.TrimSpace(string(kept)) != pin {
		t.Errorf("the second server's identity file: %q, %v", kept, err)
	}
	second.stop() // and from its own slots
	second.up()

	profile := filepath.Join(first.dir, "shop")
	at2 := second.connect(reach(t, profile, second.address))
	check(t, sign(t.Context(), at2, k))
	rotated, err := first.op.RotateKey(t.Context(), &pb.RotateKeyRequest{Key: k.Name, Reason: "test"})
	check(t, err)
	first.settles(true)
	signed, err := at2.Sign(t.Context(), &pb.SignRequest{Key: k.Name, Inputs: [][]byte{{1}}})
	if err != nil || signed.Version != 2 {
		t.Errorf("the second server signs with version %d after the rotation on the first: %v", signed.GetVersion(), err)
	}
	check(t, sign(t.Context(), at1, rotated))
	_, said, status := first.try("", "grant", "revoke", grant.Id, "--reason", "test", "--wait")
	if status != 0 {
		t.Fatalf("revoke: exit status %d: %s", status, said)
	}
	if err := sign(t.Context(), at2, rotated); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("the second server after a revocation on the first: %v", err)
	}
	if n := strings.Count(said, "has confirmed it"); n != 2 || !strings.Contains(said, "it holds everywhere after") {
		t.Errorf("--wait says %q", said)
	}
	first.stopped(second)

	first.retires(at1, at2, second)

	writers := map[string]bool{}
	for r, err := range second.op.Audit(t.Context(), &pb.QueryRequest{Action: "use.sign"}) {
		check(t, err)
		var line struct{ Writer string }
		check(t, json.Unmarshal(r.Line, &line))
		writers[r.Writer] = r.Writer == line.Writer
	}
	if len(writers) != 2 {
		t.Errorf("writers %v", writers)
	}
	first.run("audit", "verify")
	second.run("audit", "verify")

	other, _ := second.caller("other", "prod/shop/*")
	first.kill()
	check(t, sign(t.Context(), other, rotated))
	if code := second.ready(); code != 200 {
		t.Errorf("readyz answers %d when the other server is dead", code)
	}
	second.run("audit", "verify")
}

// retires ends a version of a machine key once each of two servers has seen its
// callers with the next one, and not before.
func (s *site) retires(at1, at2 *client.Client, second *site) {
	s.t.Helper()
	const name = "prod/shop/cookies"
	ctx := s.t.Context()
	_, err := s.op.CreateKey(ctx, &pb.CreateKeyRequest{Name: name, Algorithm: "machine-key", Recipe: "cookie-signature", Owner: "tests"})
	check(s.t, err)
	_, err = s.op.CreateGrant(ctx, &pb.CreateGrantRequest{Principal: "shop", Selector: name, Operations: []string{"protect", "unprotect"}, Reason: "test"})
	check(s.t, err)
	protect := func(c *client.Client) {
		s.t.Helper()
		_, err := c.Protect(ctx, &pb.ProtectRequest{Key: name, Format: "express.cookie", Payloads: [][]byte{[]byte("x")}})
		check(s.t, err)
	}
	// left are the nodes that the watch shows with the version, and not with the active one.
	left := func(version uint32, want int) {
		s.t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
			d, err := s.op.Drain(ctx, &pb.DrainRequest{Key: name})
			if err != nil {
				s.t.Fatalf("waiting for %d nodes with version %d: %v", want, version, err)
			}
			nodes := 0
			for _, v := range d.Versions {
				for _, who := range v.Unconfirmed {
					if v.Number == version && strings.HasPrefix(who, "node ") {
						nodes++
					}
				}
			}
			if nodes == want {
				return
			}
		}
	}
	protect(at1)
	protect(at2)
	_, err = s.op.RotateKey(ctx, &pb.RotateKeyRequest{Key: name, Reason: "test"})
	check(s.t, err)
	s.settles(true)
	left(1, 2)
	protect(at1)
	left(1, 1)
	retire := &pb.RetireVersionRequest{Key: name, Version: 1, Reason: "test"}
	for _, op := range []*client.Client{s.op, second.op} {
		if _, err := op.RetireVersion(ctx, retire); claviger.CodeOf(err) != claviger.Conflict {
			s.t.Errorf("retired while a node was not seen with the active version: %v", err)
		}
	}
	protect(at2)
	left(1, 0)
	_, err = second.op.RetireVersion(ctx, retire)
	check(s.t, err)
}

// impostor is a server in the middle: it answers with a root key of its own.
type impostor struct {
	clavigerv1connect.UnimplementedServerServiceHandler
	bundle   *rootkey.Bundle
	identity []byte
}

func (i *impostor) Admit(_ context.Context, r *connect.Request[pb.AdmitRequest]) (*connect.Response[pb.AdmitResponse], error) {
	public, err := onetime.KEM().NewPublicKey(r.Msg.JoinKey)
	if err != nil {
		return nil, err
	}
	encoded, err := i.bundle.Encode()
	if err != nil {
		return nil, err
	}
	wrapped, err := hpke.Seal(public, onetime.KDF(), onetime.AEAD(), []byte("claviger join v1"), encoded)
	return connect.NewResponse(&pb.AdmitResponse{Wrapped: wrapped, Identity: i.identity}), err
}

// TestManInTheMiddle has the new server believe the certificate of whoever
// answers: the key process still takes nobody else's root key.
func TestManInTheMiddle(t *testing.T) {
	t.Parallel()
	own := &rootkey.Bundle{Generations: []rootkey.Generation{{Number: 1}}}
	_, _ = rand.Read(own.Identity[:])
	_, _ = rand.Read(own.Generations[0].Key[:])
	honest, _, err := ed25519.GenerateKey(nil)
	check(t, err)
	pinOf := func(public []byte) string {
		sum := pinSum(public)
		return hex.EncodeToString(sum[:])
	}
	mine := ed25519.NewKeyFromSeed(own.Identity[:]).Public().(ed25519.PublicKey)
	for _, tc := range []struct {
		name     string
		identity []byte // that it claims
		pin      string // that the operator gave
		refused  bool
	}{
		{"its own identity", mine, pinOf(honest), true},
		{"the identity of the honest one", honest, pinOf(honest), true},
		{"the control: its own identity, pinned", mine, pinOf(mine), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, handler := clavigerv1connect.NewServerServiceHandler(&impostor{bundle: own, identity: tc.identity})
			middle := httptest.NewTLSServer(handler)
			t.Cleanup(middle.Close)
			s := newSite(t, "")
			roots := filepath.Join(s.dir, "roots.pem")
			check(t, os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: middle.Certificate().Raw}), 0o644))
			s.launch(nil, "--join", middle.URL, "--slot-kind", "file", "--ca", roots, "--identity", tc.pin)
			if !tc.refused {
				s.serving(0)
				return
			}
			s.wait(0, "not of the key process that is pinned")
			if _, err := os.Stat(filepath.Join(s.data, "unseal", "root.json")); err == nil {
				t.Error("the root key of somebody else was kept")
			}
		})
	}
}

// settles asks until when what was changed holds everywhere, and checks whether
// every server confirmed it.
func (s *site) settles(all bool) {
	s.t.Helper()
	resp, err := s.op.Settle(s.t.Context())
	check(s.t, err)
	confirmed := 0
	for _, one := range resp.Servers {
		if one.Confirmed {
			confirmed++
		}
	}
	if len(resp.Servers) != 2 || (confirmed == 2) != all || all == (resp.Took.AsDuration() >= 2*time.Second) {
		s.t.Errorf("settled, all %v: %v", all, resp)
	}
}

// stopped revokes at one server while the process of the other is stopped: what
// that does when it goes on is refused.
func (s *site) stopped(other *site) {
	s.t.Helper()
	k := s.key("prod/shop/stopped")
	_, grant := s.caller("stopped", "prod/shop/*")
	there := other.connect(reach(s.t, filepath.Join(s.dir, "stopped"), other.address))
	s.settles(true)
	check(s.t, sign(s.t.Context(), there, k))
	check(s.t, syscall.Kill(other.pid("server"), syscall.SIGSTOP))
	sent := make(chan error, 8) // what waits in its sockets meanwhile
	for range cap(sent) {
		go func() { sent <- sign(s.t.Context(), there, k) }()
	}
	_, err := s.op.RevokeGrant(s.t.Context(), &pb.RevokeGrantRequest{Id: grant.Id, Reason: "test"})
	check(s.t, err)
	s.settles(false)
	check(s.t, syscall.Kill(other.pid("server"), syscall.SIGCONT))
	codes := map[claviger.Code]int{}
	for range cap(sent) {
		codes[claviger.CodeOf(<-sent)]++
	}
	if err := sign(s.t.Context(), there, k); claviger.CodeOf(err) != claviger.Denied {
		s.t.Errorf("after it was stopped: %v", err)
	}
	if codes[""] != 0 {
		s.t.Errorf("a server that was stopped let through what was revoked meanwhile: %v", codes)
	}
	s.settles(true)
}
