package client

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"claviger.dev"
)

// The files of a profile's directory (0700), each 0600.
const (
	profileFile = "profile.json" // address, principal, pin
	caFile      = "ca.pem"
	certFile    = "cert.pem"
	keyFile     = "key.pem" // PKCS#8
)

// maxFile is the longest file of a profile that is read: 1 MiB.
const maxFile = 1 << 20

// Profile is how a caller reaches one server: the address, what to trust, and
// its own key with the certificate.
type Profile struct {
	Address   string   // as in Config
	Principal string   // name, as enrolled
	Identity  [32]byte // SHA-256 of the key process's identity key, for imports
	Roots     []*x509.Certificate
	// Certificate is the own one, with its key. Empty for a local socket, where
	// the caller is known by its uid.
	Certificate tls.Certificate
}

type profileJSON struct {
	Address   string `json:"address"`
	Principal string `json:"principal,omitempty"`
	Identity  string `json:"identity"`
}

// ProfileDir returns the directory of a named profile,
// <user's configuration>/claviger/<name>; "default" when the name is empty.
func ProfileDir(name string) (string, error) {
	if name == "" {
		name = "default"
	}
	if !filepath.IsLocal(name) || filepath.Base(name) != name || name[0] == '.' {
		return "", claviger.Errorf(claviger.Invalid, "the profile's name is not the name of a directory", "use letters, digits, '-' and '_'")
	}
	base, err := os.UserConfigDir()
	if err != nil {
		return "", claviger.Errorf(claviger.Invalid, "the directory of the user's configuration is not known", "set HOME").Wrap(err)
	}
	return filepath.Join(base, "claviger", name), nil
}

// LoadProfile reads a profile. A key that others than its owner can read is
// refused.
func LoadProfile(dir string) (*Profile, error) {
	var p Profile
	raw, err := readProfile(dir, profileFile)
	if err != nil {
		return nil, err
	}
	var j profileJSON
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	pin, pinErr := []byte(nil), error(nil)
	if err := dec.Decode(&j); err == nil {
		pin, pinErr = hex.DecodeString(j.Identity)
	} else {
		return nil, damaged(profileFile).Wrap(err)
	}
	if pinErr != nil || len(pin) != len(p.Identity) {
		return nil, damaged(profileFile)
	}
	p.Address, p.Principal, p.Identity = j.Address, j.Principal, [32]byte(pin)
	if raw, err = readProfile(dir, caFile); err == nil {
		p.Roots, err = certificates(raw)
	}
	if err != nil && !errors.Is(err, claviger.NotFound) {
		return nil, err
	}
	key, err := readProfile(dir, keyFile)
	if errors.Is(err, claviger.NotFound) {
		return &p, nil
	} else if err != nil {
		return nil, err
	}
	cert, err := readProfile(dir, certFile)
	if err != nil {
		return nil, err
	}
	if p.Certificate, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, damaged(certFile).Wrap(err)
	}
	return &p, nil
}

func damaged(name string) *claviger.Error {
	return claviger.Errorf(claviger.Invalid, "the profile's file "+name+" is damaged", "remove the profile's directory and enrol again")
}

func readProfile(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, claviger.Errorf(claviger.NotFound, "there is no such profile", "enrol first, or name another profile").Wrap(err)
	}
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, claviger.Errorf(claviger.Invalid, "the profile's file "+name+" cannot be read", "check its permissions").Wrap(err)
	}
	if name == keyFile && info.Mode().Perm()&0o077 != 0 {
		return nil, claviger.Errorf(claviger.Denied, "the profile's key can be read by others", "run 'chmod 600' on "+path+", or enrol again if others may have read it")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, claviger.Errorf(claviger.Invalid, "the profile's file "+name+" cannot be read", "check its permissions").Wrap(err)
	}
	return raw, nil
}

func certificates(raw []byte) (certs []*x509.Certificate, err error) {
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, damaged(caFile).Wrap(err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

func pemOf(kind string, ders ...[]byte) []byte {
	var b []byte
	for _, der := range ders {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return b
}

// SaveProfile writes a profile into a directory that is not there yet, whole
// or not at all. An existing one is claviger.Conflict; a disk or permission that
// prevents it, claviger.Unavailable.
func SaveProfile(dir string, p *Profile) error {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return claviger.Errorf(claviger.Conflict, "the profile exists already", "choose another name, or remove "+dir)
	}
	if err := p.save(dir); err != nil {
		return claviger.Errorf(claviger.Unavailable, "the profile cannot be stored", "check the disk and the permissions of "+filepath.Dir(dir)).Wrap(err)
	}
	return nil
}

func (p *Profile) save(dir string) error {
	j, err := json.MarshalIndent(profileJSON{p.Address, p.Principal, hex.EncodeToString(p.Identity[:])}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode profile: %w", err)
	}
	files := map[string][]byte{profileFile: append(j, '\n')}
	if len(p.Roots) > 0 {
		files[caFile] = pemOf("CERTIFICATE", rawOf(p.Roots)...)
	}
	if _, inDevice := p.Certificate.PrivateKey.(Holder); inDevice {
		files[certFile] = pemOf("CERTIFICATE", p.Certificate.Certificate...)
	} else if p.Certificate.PrivateKey != nil {
		der, err := x509.MarshalPKCS8PrivateKey(p.Certificate.PrivateKey)
		if err != nil {
			return fmt.Errorf("encode key of profile: %w", err)
		}
		files[keyFile], files[certFile] = pemOf("PRIVATE KEY", der), pemOf("CERTIFICATE", p.Certificate.Certificate...)
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fmt.Errorf("make directory of profiles: %w", err)
	}
	work, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+"-") // 0700
	if err != nil {
		return fmt.Errorf("make directory of profile: %w", err)
	}
	defer os.RemoveAll(work)
	for name, content := range files {
		if err := writeFile(filepath.Join(work, name), content); err != nil {
			return err
		}
	}
	if err := os.Rename(work, dir); err != nil {
		return fmt.Errorf("put profile in place: %w", err)
	}
	return syncDir(parent)
}

func rawOf(certs []*x509.Certificate) (ders [][]byte) {
	for _, cert := range certs {
		ders = append(ders, cert.Raw)
	}
	return ders
}

// saveCertificate replaces a profile's certificate, whole or not at all.
func saveCertificate(dir string, chain [][]byte) error {
	f, err := os.CreateTemp(dir, "."+certFile+"-") // 0600
	if err != nil {
		return fmt.Errorf("make certificate file: %w", err)
	}
	defer os.Remove(f.Name())
	if err := f.Close(); err != nil {
		return fmt.Errorf("make certificate file: %w", err)
	}
	if err := writeFile(f.Name(), pemOf("CERTIFICATE", chain...)); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, certFile)); err != nil {
		return fmt.Errorf("put certificate in place: %w", err)
	}
	return syncDir(dir)
}

func writeFile(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync profile: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync profile: %w", err)
	}
	return nil
}

// Config returns the configuration of a client of the profile.
func (p *Profile) Config() Config {
	config := Config{Address: p.Address}
	if len(p.Roots) > 0 {
		config.Roots = x509.NewCertPool()
		for _, root := range p.Roots {
			config.Roots.AddCert(root)
		}
	}
	if p.Certificate.PrivateKey != nil {
		cert := p.Certificate
		cert.Certificate = slices.Clone(cert.Certificate)
		config.Certificate = &cert
	}
	return config
}

// Open returns a client of the profile in the directory. When two thirds of
// the life of its certificate are over, the next call renews it first and
// stores the new one.
func Open(dir string) (*Client, error) {
	p, err := LoadProfile(dir)
	if err != nil {
		return nil, err
	}
	c, err := New(p.Config())
	if err != nil {
		return nil, err
	}
	if signer, ok := p.Certificate.PrivateKey.(crypto.Signer); ok {
		c.renewal.dir, c.renewal.signer, c.renewal.roots = dir, signer, p.Roots
		c.renewal.schedule(p.Certificate.Leaf)
	}
	return c, nil
}
