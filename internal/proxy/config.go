package proxy

import (
	"bytes"
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
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// The bounds of what is read from files.
const (
	maxConfig   = 1 << 20 // bytes of the configuration file
	maxTemplate = 1 << 20 // bytes of one template
)

// Config is the configuration file, in TOML. Keys that are not fields are
// refused. Every field says what it means when it is left out. No secret is a
// value here.
type Config struct {
	// Listen is the public address, "host:port". Required.
	Listen string `toml:"listen"`
	// Upstream is the application: "http://127.0.0.1:port" or "unix:/path". Required.
	Upstream string `toml:"upstream"`
	// Admin is the address of /livez, /readyz and /metrics, plain HTTP; it must
	// be a loopback address. Empty: none.
	Admin string `toml:"admin"`
	// Certificate and CertificateKey are PEM files for TLS. Empty: plain HTTP.
	Certificate    string `toml:"certificate"`
	CertificateKey string `toml:"certificate_key"`
	// Trust names the addresses whose X-Forwarded-For, -Host and -Proto are
	// taken over, and whose other headers of that kind pass, such as those of a
	// balancer: X-Real-IP, Client-Cert. Empty: nobody's do.
	Trust []netip.Prefix `toml:"trust"`
	// Directory is where the application finds its files. It should be in
	// memory, and is made when it is not there. One that is there belongs to root,
	// the proxy or the application, and nobody else writes to it. Empty: a new one
	// in /dev/shm.
	Directory string `toml:"directory"`
	// User is the account of the application, by name or number; only root may
	// name another than its own. Empty: the proxy's.
	User string `toml:"user"`
	// Timeout is how long custody may take for one request. Zero: 2 s.
	Timeout claviger.Duration `toml:"timeout"`

	// Cookies are the cookies that are translated. All others pass untouched.
	Cookies []Cookie `toml:"cookie"`
	// WebForms are the hidden fields of ASP.NET pages. Nil: no page is touched.
	WebForms *WebForms `toml:"webforms"`
	// Files are what the application is given its secrets in.
	Files []File `toml:"file"`
	// Environment are variables of the application, templates as in a File, for
	// applications that read their secret from nowhere else.
	Environment map[string]string `toml:"environment"`
	Limits      Limits            `toml:"limits"`
}

// Cookie is a rule for one kind of cookie.
type Cookie struct {
	// Name is the cookie's, or what it begins with and a "*". Required.
	Name string `toml:"name"`
	// Format is one of 'claviger state formats' that a cookie can carry. Required.
	Format state.Format `toml:"format"`
	// Key is the machine key in custody. Required.
	Key string `toml:"key"`
	// Text is how the token stands in the cookie: "raw" or "percent" (escaped as
	// by encodeURIComponent). Empty: as the format's framework has it.
	Text string `toml:"text"`
	// Renew are the attributes with which a cookie by an older version is set
	// again, such as "Path=/; HttpOnly; SameSite=Lax". Empty: it is left to the
	// application when a cookie is set again.
	Renew  string `toml:"renew"`
	Params Params `toml:"params"`
}

// Params are those parameters of a format that are the same for each token.
type Params struct {
	Salt       string      `toml:"salt"`
	Salt2      string      `toml:"salt2"`
	Name       string      `toml:"name"` // empty: the cookie's
	Purpose    string      `toml:"purpose"`
	Purposes   []string    `toml:"purposes"`
	Digest     recipe.Hash `toml:"digest"`
	KDF        recipe.Hash `toml:"kdf"`
	Derivation string      `toml:"derivation"`
	Iterations uint32      `toml:"iterations"`
	Size       uint32      `toml:"size"`
	Cipher     string      `toml:"cipher"`
	Encoding   string      `toml:"encoding"`
	Separator  string      `toml:"separator"`
	KeyID      string      `toml:"key_id"`
}

// WebForms says how the hidden fields of ASP.NET pages are made
// (compatibilityMode="Framework45").
type WebForms struct {
	// Key is the machine key in custody. Required.
	Key string `toml:"key"`
	// Application is its virtual path. Empty: "/".
	Application string `toml:"application"`
	// Digest and Cipher are those of machineKey. Empty: sha256, aes.
	Digest recipe.Hash `toml:"digest"`
	Cipher string      `toml:"cipher"`
	// Pages are the virtual paths of pages by the path of the URL, where that is
	// not the page's own, such as "/" = "/default.aspx".
	Pages map[string]string `toml:"pages"`
	// Body is the longest page, and the longest form, in bytes. Zero: 4 MiB.
	Body int64 `toml:"body"`
}

// File is a file that is made of a template, for the application alone (0600).
// The template has the functions secret, hex and base64 of a key's name, and
// decryption and validation for ASP.NET, id and master for Data Protection.
type File struct {
	// Name is its name in the directory. Required.
	Name string `toml:"name"`
	// Text is the template itself, or Template the path of one.
	Text     string `toml:"text"`
	Template string `toml:"template"`
}

// Limits bound what strangers can take.
type Limits struct {
	// Connections is the most that are open at once. Zero: 4096.
	Connections int `toml:"connections"`
	// Header is the most bytes of a request's headers. Zero: 64 KiB.
	Header int `toml:"header"`
	// Tokens is the most tokens of one request or answer. Zero: 64.
	Tokens int `toml:"tokens"`
	// HeaderTimeout is how long a request's headers may take. Zero: 10 s.
	HeaderTimeout claviger.Duration `toml:"header_timeout"`
	// Stall is how long a peer may neither send nor take a byte of a body that
	// waits for it. Zero: 1 min.
	Stall claviger.Duration `toml:"stall"`
	// Answer is how long the application may take until its answer begins. Zero: 2 min.
	Answer claviger.Duration `toml:"answer"`
	// Start is how long the application may take to listen. Zero: 1 min.
	Start claviger.Duration `toml:"start"`
	// Drain is how long requests may take to finish at a stop. Zero: 15 s.
	Drain claviger.Duration `toml:"drain"`
}

// Load reads, completes and checks a configuration file. Errors are
// [claviger.Invalid] and name the key at fault.
func Load(name string) (Config, error) {
	data, err := readUpTo(name, maxConfig)
	if err != nil {
		return Config{}, invalid("the configuration file cannot be read", "check its path, its permissions and that it is shorter than 1 MiB").Wrap(err)
	}
	var c Config
	meta, err := toml.NewDecoder(bytes.NewReader(data)).Decode(&c)
	if err != nil {
		line, _, _ := strings.Cut(strings.ToValidUTF8(err.Error(), "?"), "\n")
		return Config{}, invalid("the configuration is not valid TOML for this program: "+line[:min(len(line), claviger.MaxTextLength)], "correct that line")
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return Config{}, invalid(fmt.Sprintf("the configuration key %q is not known", unknown[0].String()), "remove it, or correct its spelling")
	}
	c.complete()
	return c, c.check()
}

func readUpTo(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	return data, err
}

func invalid(msg, hint string) *claviger.Error { return claviger.Errorf(claviger.Invalid, msg, hint) }

func setDefault[T comparable](v *T, d T) {
	if *v == *new(T) {
		*v = d
	}
}

// complete gives every field that was left out its documented meaning.
func (c *Config) complete() {
	setDefault(&c.Timeout, claviger.Duration(2*time.Second))
	l := &c.Limits
	setDefault(&l.Connections, 4096)
	setDefault(&l.Header, 64<<10)
	setDefault(&l.Tokens, 64)
	setDefault(&l.HeaderTimeout, claviger.Duration(10*time.Second))
	setDefault(&l.Stall, claviger.Duration(time.Minute))
	setDefault(&l.Answer, claviger.Duration(2*time.Minute))
	setDefault(&l.Start, claviger.Duration(time.Minute))
	setDefault(&l.Drain, claviger.Duration(15*time.Second))
	if w := c.WebForms; w != nil {
		setDefault(&w.Application, "/")
		setDefault(&w.Digest, recipe.SHA256)
		setDefault(&w.Cipher, "aes")
		setDefault(&w.Body, 4<<20)
	}
}

func (c *Config) check() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return invalid("listen is no address", "give it as host:port")
	}
	if _, _, err := parseUpstream(c.Upstream); err != nil {
		return err
	}
	if host, _, err := net.SplitHostPort(c.Admin); c.Admin != "" && (err != nil || host != "localhost" && !net.ParseIP(host).IsLoopback()) {
		return invalid("admin is no loopback address", "give it as 127.0.0.1:port, or leave it out")
	}
	if (c.Certificate == "") != (c.CertificateKey == "") {
		return invalid("one of certificate and certificate_key is missing", "give both, or none")
	}
	if c.Directory != "" && !filepath.IsAbs(c.Directory) {
		return invalid("directory is not absolute", "give the whole path")
	}
	if len(c.Cookies) == 0 && c.WebForms == nil {
		return invalid("nothing is translated", "add a [[cookie]] or [webforms]")
	}
	l := c.Limits
	if min(l.Connections, l.Header, l.Tokens, int(l.HeaderTimeout), int(l.Stall), int(l.Answer), int(l.Start), int(l.Drain), int(c.Timeout)) < 0 || l.Tokens > 1000 {
		return invalid("a limit is negative, or limits.tokens is over 1000", "leave it out for the usual value")
	}
	if len(c.Files) == 0 && len(c.Environment) == 0 {
		return invalid("the application is given no secret", "add a [[file]] with a template of its configuration")
	}
	for i, f := range c.Files {
		if f.Name == "" || f.Name != filepath.Base(f.Name) || f.Name[0] == '.' && len(f.Name) < 3 || (f.Text == "") == (f.Template == "") ||
			slices.ContainsFunc(c.Files[:i], func(o File) bool { return o.Name == f.Name }) {
			return invalid(fmt.Sprintf("the file %q cannot be made", f.Name), "a file has a name without slashes, once, and either text or template")
		}
	}
	if w := c.WebForms; w != nil && (w.Key == "" || w.Body < 0 || !strings.HasPrefix(w.Application, "/")) {
		return invalid("webforms has no key, or an application that is no path", "name the machine key, and the virtual path such as /shop")
	}
	return nil
}

// parseUpstream returns the network and the address of the application.
func parseUpstream(text string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok && filepath.IsAbs(path) {
		return "unix", path, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || u.Port() == "" {
		return "", "", invalid("upstream is no address of an application", "give it as http://127.0.0.1:port or unix:/path")
	}
	return "tcp", u.Host, nil
}
