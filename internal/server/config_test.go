package server_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/server"
)

const fullConfig = `
data_dir = "/var/lib/claviger"
socket = "/run/claviger/claviger.sock"
listen = "0.0.0.0:7443"
names = ["keys.example.org", "10.0.0.1"]
metrics_listen = "127.0.0.1:9443"
operators = [0, 1000]
trust_domain = "example.org"
drain = "20s"

[store]
kind = "postgres"
dsn_file = "/etc/claviger/dsn"

[certificates]
lifetime = "12h"

[[external_ca]]
trust_domain = "partner.example"
bundle = "/etc/claviger/partner.pem"

[audit]
segment_bytes = 33554432

[checkpoint]
every = "10m"
file = "/mnt/elsewhere/checkpoints"
webhook = "https://keep.example.org/claviger"

[root]
source = "passphrase"

[users]
server = "keys"

[limits]
connections = 100
header_timeout = "1s"

[tpm]
device = "/dev/tpmrm0"

[[tpm.roots]]
name = "Infineon"
bundle = "/etc/claviger/infineon.pem"

[[tpm.roots]]
name = "bench"
bundle = "/etc/claviger/bench.pem"
test = true

[pkcs11]
uri = "pkcs11:token=keys?module-path=/usr/lib/softhsm/libsofthsm2.so"
pin_credential = "claviger-pin"
environment = { SOFTHSM2_CONF = "/etc/claviger/softhsm2.conf", A = "/b" }

[evidence]
every = "6h"

[notify]
webhook = "http://127.0.0.1:9000/alerts"
`

func TestParseFullConfig(t *testing.T) {
	t.Parallel()
	got, err := server.Parse([]byte(fullConfig))
	if err != nil {
		t.Fatal(err)
	}
	d := func(v time.Duration) claviger.Duration { return claviger.Duration(v) }
	want := server.Config{
		DataDir: "/var/lib/claviger", Socket: "/run/claviger/claviger.sock", Listen: "0.0.0.0:7443",
		Names: []string{"keys.example.org", "10.0.0.1"}, MetricsListen: "127.0.0.1:9443", Operators: []int{0, 1000},
		TrustDomain: "example.org", Drain: d(20 * time.Second),
		Store:        server.Store{Kind: "postgres", DSNFile: "/etc/claviger/dsn"},
		Certificates: server.Certificates{Lifetime: d(12 * time.Hour)},
		ExternalCA:   []server.ExternalCA{{TrustDomain: "partner.example", Bundle: "/etc/claviger/partner.pem"}},
		Audit:        server.Audit{SegmentBytes: 32 << 20},
		Checkpoint:   server.Checkpoint{Every: d(10 * time.Minute), File: "/mnt/elsewhere/checkpoints", Webhook: "https://keep.example.org/claviger"},
		Root:         server.Root{Source: "passphrase", Credential: "claviger-root"},
		Users:        server.Users{Server: "keys", Keyd: "claviger-keyd", Unseal: "claviger-unseal", TPM: "claviger-tpmd", P11: "claviger-p11d"},
		Limits: server.Limits{Connections: 100, HeaderTimeout: d(time.Second), BodyTimeout: d(15 * time.Second),
			IdleTimeout: d(2 * time.Minute), Enroll: 30, Admin: 1000},
		TPM: server.TPM{Device: "/dev/tpmrm0", Roots: []server.EKRoot{{Name: "Infineon", Bundle: "/etc/claviger/infineon.pem"},
			{Name: "bench", Bundle: "/etc/claviger/bench.pem", Test: true}}},
		PKCS11: server.PKCS11{URI: "pkcs11:token=keys?module-path=/usr/lib/softhsm/libsofthsm2.so", PINCredential: "claviger-pin",
			Environment: map[string]string{"SOFTHSM2_CONF": "/etc/claviger/softhsm2.conf", "A": "/b"}},
		Evidence: server.Evidence{Every: d(6 * time.Hour), MaxAge: d(7 * 24 * time.Hour)},
		Notify:   server.Notify{Webhook: "http://127.0.0.1:9000/alerts"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"A=/b", "SOFTHSM2_CONF=/etc/claviger/softhsm2.conf"}, got.PKCS11.Variables()); diff != "" {
		t.Errorf("the module's environment (-want +got):\n%s", diff)
	}
}

func TestParseMinimalConfig(t *testing.T) {
	t.Parallel()
	got, err := server.Parse([]byte(`data_dir = "/srv/keys"`))
	if err != nil {
		t.Fatal(err)
	}
	if got.Socket != "/srv/keys/run/claviger.sock" || got.Store.Kind != "sqlite" || got.TrustDomain != "claviger.internal" {
		t.Errorf("defaults are not as documented: %+v", got)
	}
	if diff := cmp.Diff([]int{os.Geteuid()}, got.Operators); diff != "" {
		t.Errorf("operators (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"localhost"}, got.Names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const ok = "data_dir = \"/d\"\n"
	for name, tc := range map[string]struct{ toml, names string }{
		"unknown key":                 {ok + "datadir = 1", "datadir"},
		"unknown key in a table":      {ok + "[store]\ndsn = \"postgres://u:secret@h\"", "store.dsn"},
		"unknown table":               {ok + "[stores]\nkind = \"sqlite\"", "stores"},
		"TPM without manager":         {ok + "[tpm]\ndevice = \"/dev/tpm0\"", "tpm.device"},
		"TPM by a relative socket":    {ok + "[tpm]\ndevice = \"unix:sock\"", "tpm.device"},
		"EK root without a name":      {ok + "[[tpm.roots]]\nbundle = \"/b\"", "tpm.roots.name"},
		"EK root twice":               {ok + "[[tpm.roots]]\nname = \"a\"\nbundle = \"/b\"\n[[tpm.roots]]\nname = \"a\"\nbundle = \"/c\"", "tpm.roots"},
		"EK root without a bundle":    {ok + "[[tpm.roots]]\nname = \"a\"", "tpm.roots.bundle"},
		"unknown key in an EK root":   {ok + "[[tpm.roots]]\nname = \"a\"\nbundle = \"/b\"\ntesting = true", "tpm.roots.testing"},
		"token without a URI":         {ok + "[pkcs11]\npin_credential = \"p\"", "pkcs11"},
		"no URI":                      {ok + "[pkcs11]\nuri = \"token=a?module-path=/m&pin-source=file:/p\"", "pkcs11.uri"},
		"PIN in the URI":              {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=/m&pin-value=secret\"", "pkcs11.uri"},
		"relative module":             {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=m&pin-source=file:/p\"", "module-path"},
		"no source of the PIN":        {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=/m\"", "PIN"},
		"two sources of the PIN":      {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=/m&pin-source=file:/p\"\npin_credential = \"p\"", "PIN"},
		"PIN from a program":          {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=/m&pin-source=%7Ccat\"", "pin-source"},
		"PIN credential by path":      {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=/m\"\npin_credential = \"/p\"", "pin_credential"},
		"loader variable":             {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=/m\"\npin_credential = \"p\"\nenvironment = { LD_PRELOAD = \"/x\" }", "environment"},
		"variable that is no path":    {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=/m\"\npin_credential = \"p\"\nenvironment = { PIN = \"1234\" }", "environment"},
		"variable of two":             {ok + "[pkcs11]\nuri = \"pkcs11:token=a?module-path=/m\"\npin_credential = \"p\"\nenvironment = { \"A=B\" = \"/x\" }", "environment"},
		"evidence too often":          {ok + "[evidence]\nevery = \"1s\"", "evidence.every"},
		"evidence that lapses first":  {ok + "[evidence]\nevery = \"48h\"\nmax_age = \"24h\"", "evidence.max_age"},
		"notice in the clear":         {ok + "[notify]\nwebhook = \"http://alerts.example.org/\"", "notify.webhook"},
		"notice with a password":      {ok + "[notify]\nwebhook = \"https://u:p@alerts.example.org/\"", "notify.webhook"},
		"no data_dir":                 {"", "data_dir"},
		"relative data_dir":           {`data_dir = "d"`, "data_dir"},
		"unclean data_dir":            {`data_dir = "/d/../e"`, "data_dir"},
		"NUL in a path":               {`data_dir = "/d` + "\\u0000" + `"`, "data_dir"},
		"long socket":                 {ok + `socket = "/` + strings.Repeat("s", 120) + `"`, "socket"},
		"listen without a port":       {ok + `listen = "127.0.0.1"`, "listen"},
		"metrics to everybody":        {ok + `metrics_listen = "0.0.0.0:9443"`, "metrics_listen"},
		"metrics on an outside name":  {ok + `metrics_listen = "example.org:9443"`, "metrics_listen"},
		"negative operator":           {ok + `operators = [-1]`, "operators"},
		"operator nobody can be":      {ok + `operators = [4294967295]`, "operators"},
		"trust domain with a path":    {ok + `trust_domain = "a/b"`, "trust_domain"},
		"drain that is no duration":   {ok + `drain = "soon"`, "drain"},
		"negative drain":              {ok + `drain = "-1s"`, "drain"},
		"wrong type":                  {ok + `names = "localhost"`, "names"},
		"name with a slash":           {ok + `names = ["a/b"]`, "names"},
		"unknown store":               {ok + "[store]\nkind = \"mysql\"", "store.kind"},
		"postgres without a file":     {ok + "[store]\nkind = \"postgres\"", "store.dsn_file"},
		"postgres with an inline DSN": {ok + "[store]\nkind = \"postgres\"\ndsn_file = \"postgres://u:secret@h/d\"", "store.dsn_file"},
		"postgres with a credential":  {ok + "[store]\nkind = \"postgres\"\ndsn_file = \"credential:dsn\"", "store.dsn_file"},
		"a source that slots name":    {ok + "[root]\nsource = \"file\"", "root.source"},
		"sqlite with a DSN":           {ok + "[store]\ndsn_file = \"/x\"", "store.dsn_file"},
		"long certificate":            {ok + "[certificates]\nlifetime = \"2161h\"", "certificates"},
		"external CA of our domain":   {ok + "[[external_ca]]\ntrust_domain = \"claviger.internal\"\nbundle = \"/b\"", "external_ca.trust_domain"},
		"external CA twice":           {ok + strings.Repeat("[[external_ca]]\ntrust_domain = \"x\"\nbundle = \"/b\"\n", 2), "external_ca.trust_domain"},
		"external CA without roots":   {ok + "[[external_ca]]\ntrust_domain = \"x\"", "external_ca.bundle"},
		"webhook without TLS":         {ok + "[checkpoint]\nwebhook = \"http://keep.example.org\"", "checkpoint.webhook"},
		"webhook with a password":     {ok + "[checkpoint]\nwebhook = \"https://u:p@keep.example.org\"", "checkpoint.webhook"},
		"root from elsewhere":         {ok + "[root]\nsource = \"env\"", "root.source"},
		"user with a colon":           {ok + "[users]\nserver = \"a:b\"", "users"},
		"no connections":              {ok + "[limits]\nconnections = -1", "limits"},
		"header timeout of a day":     {ok + "[limits]\nheader_timeout = \"24h\"", "limits"},
		"key given twice":             {ok + ok, "data_dir"},
		"not TOML":                    {"{", ""},
		"invalid UTF-8":               {"data_dir = \"/\xff\"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := server.Parse([]byte(tc.toml))
			e, ok := errors.AsType[*claviger.Error](err)
			if !ok || e.Code != claviger.Invalid {
				t.Fatalf("got %v, want an error of code invalid", err)
			}
			if !strings.Contains(e.Msg, tc.names) || e.Hint == "" {
				t.Errorf("message %q, hint %q; want the message to name %q, and a hint", e.Msg, e.Hint, tc.names)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error repeats a secret: %v", err)
			}
		})
	}
}

func TestParseTooLarge(t *testing.T) {
	t.Parallel()
	if _, err := server.Parse(bytes.Repeat([]byte("#"), 1<<20+1)); !errors.Is(err, claviger.TooLarge) {
		t.Errorf("got %v, want too_large", err)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "claviger.toml")
	if _, err := server.Load(path); !errors.Is(err, claviger.Invalid) {
		t.Errorf("load of a missing file: got %v, want invalid", err)
	}
	if err := os.WriteFile(path, []byte(fullConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Load(path); err != nil {
		t.Error(err)
	}
}

func TestDSN(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dsn"), []byte("host=/run/postgresql\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		file string
		want string
	}{
		"path":    {filepath.Join(dir, "dsn"), "host=/run/postgresql"},
		"missing": {filepath.Join(dir, "none"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := server.Store{Kind: "postgres", DSNFile: tc.file}.DSN()
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestExternalRoots(t *testing.T) {
	t.Parallel()
	ca, leaf := selfSigned(t, true), selfSigned(t, false)
	for name, tc := range map[string]struct {
		bundle []byte
		want   int
	}{
		"two roots":         {append(bytes.Clone(ca), ca...), 2},
		"a leaf":            {leaf, 0},
		"a root and a leaf": {append(bytes.Clone(ca), leaf...), 0},
		"nothing":           {nil, 0},
		"a private key":     {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "bundle.pem")
			if err := os.WriteFile(path, tc.bundle, 0o600); err != nil {
				t.Fatal(err)
			}
			roots, err := server.ExternalCA{TrustDomain: "x", Bundle: path}.Roots()
			if len(roots) != tc.want || (err == nil) != (tc.want > 0) {
				t.Errorf("got %d roots, %v; want %d", len(roots), err, tc.want)
			}
		})
	}
}

func selfSigned(t *testing.T, ca bool) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, IsCA: ca,
		BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// FuzzConfig checks that whatever is accepted is complete: written out and read
// again it is the same, and it passes its own checks.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(fullConfig))
	f.Add([]byte(`data_dir = "/d"`))
	f.Add([]byte("data_dir = \"/d\"\n[limits]\nconnections = 1\n"))
	f.Add([]byte("data_dir = \"/d\"\nunknown = 1\n"))
	f.Add([]byte("[[external_ca]]\n[[external_ca]]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := server.Parse(data)
		if err != nil {
			if e, ok := errors.AsType[*claviger.Error](err); !ok || e.Hint == "" {
				t.Fatalf("an error without code and hint: %v", err)
			}
			return
		}
		var out bytes.Buffer
		if err := toml.NewEncoder(&out).Encode(c); err != nil {
			t.Fatal(err)
		}
		again, err := server.Parse(out.Bytes())
		if err != nil {
			t.Fatalf("what was accepted is refused when written out: %v\n%s", err, out.Bytes())
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Fatalf("written out and read again (-want +got):\n%s", diff)
		}
	})
}
