package server

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"claviger.dev"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/broker/forward"
	"claviger.dev/internal/proof"
)

// Limits of what configuration is read from files.
const (
	maxConfig = 1 << 20 // bytes of the configuration file
	maxBundle = 1 << 20 // bytes of one bundle of certificates
)

// Config is the configuration file, in TOML. Keys that are not fields are
// refused. Every field says what it means when it is left out. A secret is
// never a value here: it is the path of a file, or the name of the systemd
// credential of the root key or of a token's PIN.
type Config struct {
	// DataDir holds what must last: the parts of the server and of the unseal
	// process lie in directories of their own below it. Required, absolute.
	DataDir string `toml:"data_dir"`
	// Socket is the path of the local socket. Empty: run/claviger.sock in DataDir.
	Socket string `toml:"socket"`
	// Listen is the address for TLS, "host:port". Empty: the local socket alone.
	Listen string `toml:"listen"`
	// Names are the DNS names and IP addresses in the server's certificate.
	// Empty: the host of Listen when it is one address or name, "localhost" otherwise.
	Names []string `toml:"names"`
	// MetricsListen is the address for Prometheus, plain HTTP; it must be a
	// loopback address. Empty: no metrics.
	MetricsListen string `toml:"metrics_listen"`
	// Operators are the uids that administer over the local socket. Empty: the
	// uid of the server alone.
	Operators []int `toml:"operators"`
	// TrustDomain is the SPIFFE trust domain of the own CA. Empty: "claviger.internal".
	TrustDomain string `toml:"trust_domain"`
	// Drain is how long requests may take to finish at a stop. Zero: 10 s.
	Drain claviger.Duration `toml:"drain"`
	// Dev marks a server for trying things out: it says so wherever it can.
	Dev bool `toml:"dev"`

	Store        Store        `toml:"store"`
	Certificates Certificates `toml:"certificates"`
	ExternalCA   []ExternalCA `toml:"external_ca"`
	Audit        Audit        `toml:"audit"`
	Checkpoint   Checkpoint   `toml:"checkpoint"`
	Root         Root         `toml:"root"`
	Users        Users        `toml:"users"`
	Limits       Limits       `toml:"limits"`
	TPM          TPM          `toml:"tpm"`
	PKCS11       PKCS11       `toml:"pkcs11"`
	Evidence     Evidence     `toml:"evidence"`
	Notify       Notify       `toml:"notify"`

	// Broker is the authorization server. Left out: there is none.
	Broker broker.Config `toml:"broker"`
	// ForwardAuth are applications whose proxy asks of each request whether it
	// may pass. It takes Broker. Left out: none.
	ForwardAuth []forward.App `toml:"forward_auth"`
}

// Store says where records are kept.
type Store struct {
	// Kind is "sqlite" or "postgres". Empty: sqlite, in DataDir.
	Kind string `toml:"kind"`
	// DSNFile is a file with the connection string of PostgreSQL, readable by
	// the server alone. Required for postgres; refused for sqlite.
	DSNFile string `toml:"dsn_file"`
}

// Certificates says what the own CA issues.
type Certificates struct {
	// Lifetime is that of a certificate, of a principal or of the server
	// itself. Zero: 24 h. At most 90 days.
	Lifetime claviger.Duration `toml:"lifetime"`
}

// ExternalCA lets another CA name principals.
type ExternalCA struct {
	// TrustDomain is the one domain that the CA may name. Required; not the own one.
	TrustDomain string `toml:"trust_domain"`
	// Bundle is a PEM file with the CA's roots. Required.
	Bundle string `toml:"bundle"`
}

// Audit are the options of the record.
type Audit struct {
	// SegmentBytes is the size at which a segment file is sealed. Zero: 64 MiB.
	SegmentBytes int64 `toml:"segment_bytes"`
}

// Checkpoint says where signed heads of the record go. They should be kept
// where whoever holds this host cannot change them.
type Checkpoint struct {
	// Every is the time between two. Zero: one hour.
	Every claviger.Duration `toml:"every"`
	// File is a file to which each is appended as one line. Empty: none.
	File string `toml:"file"`
	// Webhook is an https address to which each is posted as one line of JSON.
	// An answer other than 2xx is a failure; redirects are not followed.
	// Empty: none.
	Webhook string `toml:"webhook"`
}

// Root says how the root key is opened at start. The slots themselves are in
// DataDir and belong to the unseal process.
type Root struct {
	// Source "passphrase" passes the supervisor's standard input to the unseal
	// process even where it is no terminal: its lines are passphrases. Empty: a
	// terminal alone is passed.
	Source string `toml:"source"`
	// Credential is the name of the systemd credential. Empty: "claviger-root".
	Credential string `toml:"credential"`
}

// Users are the accounts of the processes when the supervisor starts as root,
// by name or by number.
type Users struct {
	Server string `toml:"server"` // empty: claviger
	Keyd   string `toml:"keyd"`   // empty: claviger-keyd
	Unseal string `toml:"unseal"` // empty: claviger-unseal
	TPM    string `toml:"tpm"`    // empty: claviger-tpmd
	P11    string `toml:"p11"`    // empty: claviger-p11d
	// Single runs all of them under the account that starts them. A stolen
	// server can then read the root key; doctor and custody levels say so.
	Single bool `toml:"single"`
}

// Limits keep one caller from taking the server away from the others.
type Limits struct {
	// Connections is the most that are open at once on one listener; past it
	// the one that was idle longest is closed. Zero: 4096.
	Connections int `toml:"connections"`
	// HeaderTimeout is how long a request's headers may take. Zero: 5 s.
	HeaderTimeout claviger.Duration `toml:"header_timeout"`
	// BodyTimeout is how long a request's headers and body may take. Zero: 15 s.
	BodyTimeout claviger.Duration `toml:"body_timeout"`
	// IdleTimeout is how long a connection may be kept without a request. Zero: 2 min.
	IdleTimeout claviger.Duration `toml:"idle_timeout"`
	// Enroll is how many enrolments a minute one source address may try. Zero: 30.
	Enroll int `toml:"enroll_per_minute"`
	// Use is how many calls a second one principal may make to use keys. Zero: no limit here; grants have their own.
	Use int `toml:"use_per_second"`
	// Admin is how many administrative calls a second one principal may make. Zero: 1000.
	Admin int `toml:"admin_per_second"`
}

// Load reads, completes and checks a configuration file. Errors are
// [claviger.Invalid] and name the key at fault.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, claviger.Errorf(claviger.Invalid, "the configuration file cannot be read", "check the path and its permissions").Wrap(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, claviger.Errorf(claviger.Invalid, "the configuration file cannot be read", "check the path and its permissions").Wrap(err)
	}
	return Parse(data)
}

// Parse is [Load] for bytes that were read already.
func Parse(data []byte) (Config, error) {
	if len(data) > maxConfig {
		return Config{}, claviger.Errorf(claviger.TooLarge, "the configuration is longer than 1 MiB", "shorten it")
	}
	var c Config
	meta, err := toml.NewDecoder(bytes.NewReader(data)).Decode(&c)
	if err != nil {
		return Config{}, invalidConfig("the configuration is not valid TOML for this program: "+firstLine(err.Error()), "correct that line")
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return Config{}, invalidConfig(fmt.Sprintf("the configuration key %q is not known", unknown[0].String()), "remove it, or correct its spelling")
	}
	c.complete()
	return c, c.Validate()
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.ToValidUTF8(s, "?"), "\n")
	return s[:min(len(s), claviger.MaxTextLength)]
}

// complete gives every field that was left out its documented meaning.
func (c *Config) complete() {
	setDefault(&c.Socket, filepath.Join(c.DataDir, "run", "claviger.sock"))
	setDefault(&c.TrustDomain, "claviger.internal")
	setDefault(&c.Drain, claviger.Duration(10*time.Second))
	setDefault(&c.Store.Kind, "sqlite")
	setDefault(&c.Certificates.Lifetime, claviger.Duration(24*time.Hour))
	setDefault(&c.Audit.SegmentBytes, 64<<20)
	setDefault(&c.Checkpoint.Every, claviger.Duration(time.Hour))
	setDefault(&c.Root.Credential, "claviger-root")
	setDefault(&c.Users.Server, "claviger")
	setDefault(&c.Users.Keyd, "claviger-keyd")
	setDefault(&c.Users.Unseal, "claviger-unseal")
	setDefault(&c.Users.TPM, "claviger-tpmd")
	setDefault(&c.Users.P11, "claviger-p11d")
	setDefault(&c.Evidence.Every, claviger.Duration(24*time.Hour))
	setDefault(&c.Evidence.MaxAge, max(claviger.Duration(7*24*time.Hour), c.Evidence.Every))
	setDefault(&c.Limits.Connections, 4096)
	setDefault(&c.Limits.HeaderTimeout, claviger.Duration(5*time.Second))
	setDefault(&c.Limits.BodyTimeout, claviger.Duration(15*time.Second))
	setDefault(&c.Limits.IdleTimeout, claviger.Duration(2*time.Minute))
	setDefault(&c.Limits.Enroll, 30)
	setDefault(&c.Limits.Admin, 1000)
	if len(c.Operators) == 0 {
		c.Operators = []int{os.Geteuid()}
	}
	if len(c.Names) == 0 {
		c.Names = []string{"localhost"}
		if host, _, err := net.SplitHostPort(c.Listen); err == nil && host != "" {
			if ip, err := netip.ParseAddr(host); err != nil || !ip.IsUnspecified() {
				c.Names = []string{host}
			}
		}
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate checks a configuration. Errors are [claviger.Invalid], name the key
// and say what to do.
func (c *Config) Validate() error {
	const day = claviger.Duration(24 * time.Hour)
	switch {
	case !cleanPath(c.DataDir):
		return invalidConfig("data_dir is not an absolute path", "set data_dir to an absolute path such as /var/lib/claviger")
	case !cleanPath(c.Socket) || len(c.Socket) > 107: // sockaddr_un, unix(7)
		return invalidConfig("socket is not an absolute path of at most 107 bytes", "set socket to a shorter absolute path")
	case c.Listen != "" && !validAddress(c.Listen):
		return invalidConfig("listen is not host:port", "write it such as 127.0.0.1:7443 or [::]:7443")
	case c.MetricsListen != "" && !loopbackAddress(c.MetricsListen):
		return invalidConfig("metrics_listen is not a loopback address with a port", "write it such as 127.0.0.1:9443")
	case !proof.ValidTrustDomain(c.TrustDomain):
		return invalidConfig("trust_domain is not a SPIFFE trust domain", "use a-z, 0-9, '-', '_' and '.'")
	case slices.ContainsFunc(c.Operators, func(uid int) bool { return uid < 0 || int64(uid) >= 1<<32-1 }):
		return invalidConfig("operators holds what is no uid", "list numeric uids")
	case c.Drain < 0 || c.Drain > claviger.Duration(time.Hour):
		return invalidConfig("drain is not between 0 and 1h", "set it such as \"10s\"")
	case c.Certificates.Lifetime < claviger.Duration(time.Minute) || c.Certificates.Lifetime > 90*day:
		return invalidConfig("certificates.lifetime is not between 1m and 2160h", "set it such as \"24h\"")
	case c.Audit.SegmentBytes < 1<<20 || c.Audit.SegmentBytes > 1<<32:
		return invalidConfig("audit.segment_bytes is not between 1 MiB and 4 GiB", "leave it out for 64 MiB")
	case c.Root.Source != "" && c.Root.Source != "passphrase":
		return invalidConfig("root.source is not known", "use passphrase, or leave it out: the slots say how they are opened")
	case !validCredential(c.Root.Credential):
		return invalidConfig("root.credential is not the name of a systemd credential", "use its name alone, without a path")
	}
	for _, name := range c.Names {
		if !validHost(name) {
			return invalidConfig("names holds what is neither a DNS name nor an IP address", "list names such as keys.example.org or 10.0.0.1")
		}
	}
	for _, user := range []string{c.Users.Server, c.Users.Keyd, c.Users.Unseal, c.Users.TPM, c.Users.P11} {
		if strings.ContainsAny(user, "/:\x00\n ") || len(user) > 32 {
			return invalidConfig("users holds what is no account name", "use the name of an account")
		}
	}
	for _, check := range []func() error{c.Store.validate, c.validateExternal, c.Checkpoint.validate, c.Limits.validate,
		c.TPM.validate, c.PKCS11.validate, c.Evidence.validate, c.Notify.validate, c.Broker.Validate, c.validateForward} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s Store) validate() error {
	switch {
	case s.Kind == "sqlite" && s.DSNFile != "":
		return invalidConfig("store.dsn_file has no meaning for sqlite", "remove it, or set store.kind to postgres")
	case s.Kind == "postgres" && !cleanPath(s.DSNFile):
		return invalidConfig("store.dsn_file is not an absolute path", "put the connection string into a file that only the server can read, and its path here")
	case s.Kind != "sqlite" && s.Kind != "postgres":
		return invalidConfig("store.kind is not known", "use sqlite or postgres")
	}
	return nil
}

func (c *Config) validateExternal() error {
	seen := map[string]bool{c.TrustDomain: true}
	for _, ca := range c.ExternalCA {
		switch {
		case !proof.ValidTrustDomain(ca.TrustDomain):
			return invalidConfig("external_ca.trust_domain is not a SPIFFE trust domain", "use a-z, 0-9, '-', '_' and '.'")
		case seen[ca.TrustDomain]:
			return invalidConfig("external_ca.trust_domain is listed twice, or is the own one", "put all roots of a trust domain into one bundle")
		case !cleanPath(ca.Bundle):
			return invalidConfig("external_ca.bundle is not an absolute path", "set it to a PEM file with the CA's roots")
		}
		seen[ca.TrustDomain] = true
	}
	return nil
}

func (p Checkpoint) validate() error {
	u, err := url.Parse(p.Webhook)
	switch {
	case p.Every < claviger.Duration(time.Second):
		return invalidConfig("checkpoint.every is shorter than a second", "set it such as \"1h\"")
	case p.File != "" && !cleanPath(p.File):
		return invalidConfig("checkpoint.file is not an absolute path", "set it to an absolute path")
	case p.Webhook != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil):
		return invalidConfig("checkpoint.webhook is not an https address", "write it such as https://keep.example.org/claviger, without a password")
	}
	return nil
}

func (l Limits) validate() error {
	for _, d := range []claviger.Duration{l.HeaderTimeout, l.BodyTimeout, l.IdleTimeout} {
		if d < claviger.Duration(10*time.Millisecond) || d > claviger.Duration(time.Hour) {
			return invalidConfig("a timeout in limits is not between 10ms and 1h", "leave it out for its default")
		}
	}
	if l.Connections < 1 || l.Connections > 1<<20 || l.Enroll < 1 || l.Use < 0 || l.Admin < 1 {
		return invalidConfig("a number in limits is out of its range", "leave it out for its default")
	}
	return nil
}

// DSN reads the connection string of PostgreSQL.
func (s Store) DSN() (string, error) {
	data, err := readCapped(s.DSNFile, 16<<10)
	if err != nil {
		return "", invalidConfig("store.dsn_file cannot be read", "check that the server's account may read it").Wrap(err)
	}
	return strings.TrimSpace(string(data)), nil
}

// Roots reads the bundle of an external CA.
func (ca ExternalCA) Roots() ([]*x509.Certificate, error) {
	return readRoots("external_ca.bundle", ca.Bundle)
}

// readRoots reads the CA certificates of a PEM file, which the key names.
func readRoots(key, path string) ([]*x509.Certificate, error) {
	data, err := readCapped(path, maxBundle)
	if err != nil {
		return nil, invalidConfig(key+" cannot be read", "check that the server's account may read it").Wrap(err)
	}
	var roots []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil || !cert.IsCA {
			return nil, invalidConfig(key+" holds what is no CA certificate", "keep only PEM certificates of the CA in it").Wrap(err)
		}
		roots = append(roots, cert)
	}
	if len(roots) == 0 {
		return nil, invalidConfig(key+" holds no certificate", "put the CA's roots into it, in PEM")
	}
	return roots, nil
}

func readCapped(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("file is longer than %d bytes", limit)
	}
	return data, err
}

func invalidConfig(msg, hint string) *claviger.Error {
	return claviger.Errorf(claviger.Invalid, msg, hint)
}

func cleanPath(p string) bool {
	return filepath.IsAbs(p) && filepath.Clean(p) == p && !strings.ContainsRune(p, 0)
}

func validCredential(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\x00")
}

func validAddress(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host != "" && !validHost(host) {
		return false
	}
	_, err = net.LookupPort("tcp", port)
	return err == nil && port != ""
}

func loopbackAddress(s string) bool {
	host, _, err := net.SplitHostPort(s)
	ip, ipErr := netip.ParseAddr(host)
	return err == nil && validAddress(s) && (host == "localhost" || ipErr == nil && ip.IsLoopback())
}

// validHost accepts an IP address or a DNS name in its usual letters.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool {
				return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
			}) {
			return false
		}
	}
	return true
}

func (c *Config) validateForward() error {
	if len(c.ForwardAuth) > 0 && !c.Broker.Enabled() {
		return claviger.Errorf(claviger.Invalid, "forward_auth takes tokens of the broker, and there is none", "configure broker.issuer")
	}
	return forward.Validate(c.ForwardAuth)
}
