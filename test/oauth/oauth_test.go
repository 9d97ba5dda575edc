// Package oauth_test has clients that nobody here wrote use the authorization
// server, over https, with an OpenID provider that nobody here wrote. Everything
// is on loopback.
package oauth_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"claviger.dev"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/broker/upstream"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

func TestMain(m *testing.M) { os.Exit(servertest.Main(m)) }

// cluster is the issuer of a Kubernetes cluster, whose keys are in a file.
const cluster = "https://cluster.example"

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	doc, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func newKey(t *testing.T, id string) (private, public []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return encode(t, jose.JSONWebKey{Key: key, KeyID: id}), encode(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id}}})
}

// register makes a client with a principal of its own.
func register(t *testing.T, s *servertest.Server, operator claviger.Principal, name string, c claviger.Client) claviger.Client {
	t.Helper()
	_, p := s.Enrol(t, name)
	s.Allow(t, name, "prod/shop/"+name, nil, claviger.OpenSession)
	c.Name, c.Principal, c.Audiences, c.Scopes = claviger.Name("prod/shop/"+name), claviger.ID(p.Id), []string{"https://api.example/"}, []string{"read"}
	made, err := s.Keeper.CreateClient(t.Context(), operator, c)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// openIDProvider runs oidc-provider until the test ends.
func openIDProvider(t *testing.T, port int, issuer, ca string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", "op.mjs", fmt.Sprint(port), issuer)
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+ca)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // it ends with its standard input
		if t.Failed() {
			t.Logf("oidc-provider said:\n%s", said.String())
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "listening\n" {
		t.Fatalf("oidc-provider did not start: %q %v\n%s", line, err, said.String())
	}
}

// TestClients runs clients.mjs.
func TestClients(t *testing.T) {
	if _, err := os.Stat("node_modules"); err != nil {
		t.Fatal("the packages of test/oauth are not here: run make setup")
	}
	dir := t.TempDir()
	port, opPort := freePort(t), freePort(t)
	issuer, op := fmt.Sprintf("https://localhost:%d", port), fmt.Sprintf("http://localhost:%d", opPort)
	clusterKey, clusterSet := newKey(t, "cluster")
	write(t, filepath.Join(dir, "cluster.json"), clusterSet)
	var log bytes.Buffer
	s := servertest.Start(t, servertest.Options{Log: &log, Change: func(c *server.Config) {
		c.Listen = fmt.Sprintf("127.0.0.1:%d", port)
		c.Broker = broker.Config{Issuer: issuer, Issuers: []upstream.Config{
			{Issuer: op, ClientID: "claviger", PlainLoopback: true},
			{Issuer: cluster, Kind: upstream.Kubernetes, Keys: filepath.Join(dir, "cluster.json")}}}
		if err := c.Broker.Validate(); err != nil {
			t.Fatal(err)
		}
	}})
	var roots []byte
	for _, root := range s.Keeper.Roots() {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
	}
	ca := filepath.Join(dir, "ca.pem")
	write(t, ca, roots)
	operator, err := s.Keeper.ByUID(t.Context(), claviger.Facts{UID: os.Geteuid()})
	if err != nil {
		t.Fatal(err)
	}
	serviceKey, serviceSet := newKey(t, "k")
	service := register(t, s, operator, "service", claviger.Client{Kind: claviger.Confidential, JWKS: serviceSet,
		GrantTypes: []string{"client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"}})
	const redirect, bye = "https://shop.example/back", "https://shop.example/bye"
	page := register(t, s, operator, "page", claviger.Client{Kind: claviger.Public, RedirectURIs: []string{redirect}, PostLogoutURIs: []string{bye},
		GrantTypes: []string{"authorization_code", "refresh_token"}})
	openIDProvider(t, opPort, issuer, ca)
	site := filepath.Join(dir, "site.json")
	write(t, site, encode(t, map[string]any{"issuer": issuer, "op": op,
		"cluster": map[string]any{"issuer": cluster, "jwk": json.RawMessage(clusterKey)},
		"service": map[string]any{"id": service.ID, "jwk": json.RawMessage(serviceKey)},
		"page":    map[string]any{"id": page.ID, "redirect": redirect, "bye": bye}}))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "--test-reporter=spec", "--test-timeout=60000", "clients.mjs", site)
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+ca)
	cmd.WaitDelay = time.Second
	said, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "\nℹ fail 0\n") || !strings.Contains(string(said), "\nℹ skipped 0\n") {
		t.Errorf("%v\n%s", err, said)
	}
	t.Logf("%s", said)
}
