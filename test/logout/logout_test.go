// Package logout_test has whole servers tell receivers of the ends of sessions.
// The receiver is Node with npm jose, which knows of us what our metadata says.
package logout_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/rootkey"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
	"claviger.dev/internal/store"
)

func TestMain(m *testing.M) { os.Exit(servertest.Main(m)) }

// place is where a server and a receiver are, so that a second process finds
// both as the first left them.
type place struct {
	Dir        string
	Root       [64]byte // identity and root key
	Port       int      // of the server
	Receiver   int      // port
	Cert, Key  string
	Registered bool // the receivers and the client are there
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{Dir: t.TempDir(), Port: freePort(t), Receiver: freePort(t)}
	_, _ = rand.Read(p.Root[:])
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "receiver"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p.Cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	p.Key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return p
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (p *place) issuer() string { return fmt.Sprintf("https://localhost:%d", p.Port) }

// serve starts the server, and registers what there is to register.
func (p *place) serve(t *testing.T) *servertest.Server {
	t.Helper()
	root := &rootkey.Bundle{Generations: []rootkey.Generation{{Number: 1}}}
	copy(root.Identity[:], p.Root[:32])
	copy(root.Generations[0].Key[:], p.Root[32:])
	s := servertest.Start(t, servertest.Options{Dir: p.Dir, Root: root, Change: func(c *server.Config) {
		c.Listen, c.Dev = fmt.Sprintf("127.0.0.1:%d", p.Port), true
		c.Broker = broker.Config{Issuer: p.issuer()}
		if err := c.Broker.Validate(); err != nil {
			t.Fatal(err)
		}
	}})
	if p.Registered {
		return s
	}
	p.Registered = true
	_, principal := s.Enrol(t, "shop")
	s.Allow(t, "shop", "prod/shop/web", nil, claviger.OpenSession)
	op := p.operator(t, s)
	if _, err := s.Keeper.CreateClient(t.Context(), op, claviger.Client{Name: "prod/shop/web", Principal: claviger.ID(principal.Id), Kind: claviger.Confidential,
		Audiences: []string{"https://api.example/"}, GrantTypes: []string{"client_credentials"}}); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(p.Cert))
	for path, kind := range map[string]claviger.ReceiverKind{"logout": claviger.LogoutReceiver, "events": claviger.CAEPReceiver} {
		if _, err := s.Keeper.CreateReceiver(t.Context(), op, claviger.Receiver{Name: path, Kind: kind, Audience: "receiver",
			URL: fmt.Sprintf("https://127.0.0.1:%d/%s", p.Receiver, path), Roots: [][]byte{block.Bytes}}, ""); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (p *place) operator(t *testing.T, s *servertest.Server) claviger.Principal {
	t.Helper()
	op, err := s.Keeper.ByUID(t.Context(), claviger.Facts{UID: os.Geteuid()})
	if err != nil {
		t.Fatal(err)
	}
	return op
}

// end opens a session and ends it.
func (p *place) end(t *testing.T, s *servertest.Server) claviger.ID {
	t.Helper()
	record, err := s.Keeper.Principal(t.Context(), p.operator(t, s), "shop")
	if err != nil {
		t.Fatal(err)
	}
	by := claviger.Principal{ID: record.ID, Name: record.Name, Kind: record.Kind, Environments: record.Environments}
	session, err := s.Keeper.OpenSession(t.Context(), by, keeper.NewSession{Client: "prod/shop/web", KeyKind: claviger.CustodyKey,
		Subject: claviger.Subject{Issuer: "https://login.example", ID: "ada"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Keeper.EndSession(t.Context(), by, session.ID, keeper.End{Reason: keeper.EndLogout}); err != nil {
		t.Fatal(err)
	}
	return session.ID
}

// told is what the receiver says of one request.
type told struct {
	Port  int
	Path  string
	JTI   string
	SID   claviger.ID
	Again bool
	Error string
}

// receive starts the receiver.
func (p *place) receive(t *testing.T, s *servertest.Server) (next func() told) {
	t.Helper()
	var ca strings.Builder
	for _, root := range s.Keeper.Roots() {
		_ = pem.Encode(&ca, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}) // to memory
	}
	cmd := exec.CommandContext(t.Context(), "node", "receiver.mjs")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait() // it ends with its standard input
	})
	if err := json.NewEncoder(in).Encode(map[string]any{"issuer": p.issuer(), "ca": ca.String(), "cert": p.Cert, "key": p.Key, "port": p.Receiver, "audience": "receiver"}); err != nil {
		t.Fatal(err)
	}
	lines := make(chan told, 100)
	go func() {
		for dec := json.NewDecoder(out); ; {
			var line told
			if dec.Decode(&line) != nil {
				return
			}
			lines <- line
		}
	}()
	next = func() told {
		t.Helper()
		select {
		case line := <-lines:
			return line
		case <-time.After(40 * time.Second):
			t.Fatal("the receiver was not told")
			return told{}
		}
	}
	if line := next(); line.Port != p.Receiver {
		t.Fatalf("the receiver listens on %d", line.Port)
	}
	return next
}

// both waits until a session was told both ways, each once, with tokens that
// jose accepts.
func both(t *testing.T, next func() told, session claviger.ID) {
	t.Helper()
	seen := map[string]string{}
	for range 2 {
		line := next()
		if line.Error != "" || line.SID != session || line.JTI == "" || line.Again {
			t.Fatalf("told %+v, want session %s", line, session)
		}
		seen[line.Path] = line.JTI
	}
	if len(seen) != 2 || seen["/logout"] == seen["/events"] {
		t.Errorf("told %v", seen)
	}
}

// TestTold ends sessions while the receiver is there, and while it is away.
func TestTold(t *testing.T) {
	p := newPlace(t)
	s := p.serve(t)
	early := p.end(t, s) // nobody listens
	op := p.operator(t, s)
	for tried := false; !tried; { // it was tried, in vain
		list, _, err := s.Keeper.Deliveries(t.Context(), op, "", store.DeliveryQuery{})
		if err != nil || len(list) != 2 {
			t.Fatalf("%d deliveries: %v", len(list), err)
		}
		if tried = list[0].Tries > 0 && list[1].Tries > 0; !tried {
			<-time.After(20 * time.Millisecond)
		}
	}
	next := p.receive(t, s)
	both(t, next, early)
	both(t, next, p.end(t, s))
}

const childEnv = "CLAVIGER_LOGOUT_CHILD"

// TestKilled kills the server, and not only stops it, when a session has ended
// and its receivers were not told. The next server tells them.
func TestKilled(t *testing.T) {
	if text := os.Getenv(childEnv); text != "" {
		var p place
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\nended %s\n", p.end(t, p.serve(t)))
		select {} // until it is killed
	}
	p := newPlace(t)
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
	child.Env = append(os.Environ(), childEnv+"="+string(text))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var session claviger.ID
	for lines := bufio.NewScanner(io.LimitReader(out, 1<<20)); lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "ended "); ok {
			session = claviger.ID(id)
			break
		}
		t.Log(lines.Text())
	}
	if err := child.Process.Kill(); err != nil || session == "" {
		t.Fatalf("session %q: %v", session, err)
	}
	child.Wait() // killed
	p.Registered = true
	s := p.serve(t)
	both(t, p.receive(t, s), session)
}
