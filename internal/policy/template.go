package policy

import (
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/pubkey"
)

// How far a structure's times may be from the server's clock.
const (
	jwtSkew  = 60 * time.Second // of iat
	certSkew = 5 * time.Minute  // of the begin of a certificate
)

// maxCached bounds the cache of compiled templates: 4096 templates. The cache
// is emptied when it is full, which costs a compilation each.
const maxCached = 4096

type cacheKey struct {
	grant    claviger.ID
	revision uint64
}

// templateCache keeps compiled templates by grant and revision: a grant does
// not change without a new revision.
type templateCache struct {
	mu   sync.Mutex // guards kept
	kept map[cacheKey]*template
}

func (c *templateCache) get(g *claviger.Grant) (*template, error) {
	key := cacheKey{g.ID, g.Revision}
	c.mu.Lock()
	t := c.kept[key]
	c.mu.Unlock()
	if t != nil {
		return t, nil
	}
	t, err := compile(g.Conditions.Template)
	if err != nil || g.ID == "" { // a grant that was not stored has no identity to keep it by
		return t, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil || len(c.kept) >= maxCached {
		c.kept = make(map[cacheKey]*template)
	}
	c.kept[key] = t
	return t, nil
}

// template is a template with its patterns compiled.
type template struct {
	jwt  *jwtTemplate
	x509 *x509Template
	ssh  *sshTemplate
}

func compile(t *claviger.Template) (*template, error) {
	switch {
	case t == nil:
		return nil, errors.New("there is no template")
	case t.JWT != nil && t.X509 == nil && t.SSH == nil:
		j, err := compileJWT(t.JWT)
		return &template{jwt: j}, err
	case t.X509 != nil && t.JWT == nil && t.SSH == nil:
		x, err := compileX509(t.X509)
		return &template{x509: x}, err
	case t.SSH != nil && t.JWT == nil && t.X509 == nil:
		s, err := compileSSH(t.SSH)
		return &template{ssh: s}, err
	}
	return nil, errors.New("a template has exactly one of jwt, x509 and ssh")
}

// pattern compiles an RE2 pattern that must match a whole value.
func pattern(p string) (*regexp.Regexp, error) {
	if p == "" || len(p) > MaxText {
		return nil, errors.New("a pattern has 1 to 512 bytes")
	}
	// Alone first: a stray parenthesis could otherwise close the group that
	// anchors it.
	if _, err := regexp.Compile(p); err != nil {
		return nil, fmt.Errorf("the pattern %q is not RE2", p)
	}
	re, err := regexp.Compile(`^(?:` + p + `)$`)
	if err != nil {
		return nil, fmt.Errorf("the pattern %q is not RE2", p)
	}
	return re, nil
}

func patterns(list []string) ([]*regexp.Regexp, error) {
	var all []*regexp.Regexp
	for _, p := range list {
		re, err := pattern(p)
		if err != nil {
			return nil, err
		}
		all = append(all, re)
	}
	return all, nil
}

func anyMatches(all []*regexp.Regexp, s string) bool {
	for _, re := range all {
		if re.MatchString(s) {
			return true
		}
	}
	return false
}

// structure checks what is to be signed against the grant's template.
func (e *Engine) structure(in *Input, g *claviger.Grant, v *claviger.Version) (*Structure, error) {
	t, err := e.templates.get(g)
	if err != nil {
		return nil, err
	}
	key, err := pubkey.Parse(in.Key.Algorithm, v.Public)
	if err != nil {
		return nil, errors.New("the version has no valid public key")
	}
	var s *Structure
	switch r := in.Structured; {
	case r.JWT != nil && r.X509TBS == nil && r.SSHTBS == nil && t.jwt != nil:
		s, err = t.jwt.check(key, r.JWT, in.Now)
	case r.X509TBS != nil && r.JWT == nil && r.SSHTBS == nil && t.x509 != nil:
		s, err = t.x509.check(key, r.X509TBS, in.Now)
	case r.SSHTBS != nil && r.JWT == nil && r.X509TBS == nil && t.ssh != nil:
		s, err = t.ssh.check(key, r.SSHTBS, in.Now)
	default:
		return nil, errors.New("it is of another kind than the template")
	}
	if err != nil {
		return nil, err
	}
	s.KID = key.Thumbprint()
	return s, nil
}
