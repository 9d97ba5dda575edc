package policy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"claviger.dev"
	"claviger.dev/pubkey"
)

// Limits of the claims of a JWT.
const (
	maxClaims      = 16 << 10 // bytes
	maxClaimsDepth = 8
)

// registered are the claims that a template fixes by itself (RFC 7519, 4.1).
var registered = [...]string{"iss", "sub", "aud", "exp", "nbf", "iat"}

type jwtTemplate struct {
	*claviger.JWTTemplate
	claims map[string]*regexp.Regexp
}

func compileJWT(t *claviger.JWTTemplate) (*jwtTemplate, error) {
	c := &jwtTemplate{JWTTemplate: t, claims: make(map[string]*regexp.Regexp)}
	for name, p := range t.Claims {
		re, err := pattern(p)
		if err != nil {
			return nil, err
		}
		c.claims[name] = re
	}
	return c, nil
}

// check builds the signing input (RFC 7515, 5.1) from claims that match. The
// claims are parsed and written anew, so that what is signed has one reading.
func (t *jwtTemplate) check(key pubkey.Key, req *JWT, now time.Time) (*Structure, error) {
	typ := t.Type
	if typ == "" {
		typ = "JWT"
	}
	if req.Type != "" && req.Type != typ {
		return nil, errors.New("typ is another than the template's")
	}
	claims, err := parseClaims(req.Claims)
	if err != nil {
		return nil, err
	}
	if err := t.checkClaims(claims, now); err != nil {
		return nil, err
	}
	alg := key.Algorithm()
	header := canonical(map[string]any{"alg": pubkey.JWSAlgorithm(alg), "kid": key.Thumbprint(), "typ": typ})
	b64 := base64.RawURLEncoding
	input := b64.AppendEncode(nil, header)
	input = b64.AppendEncode(append(input, '.'), canonical(claims))
	return &Structure{ToBeSigned: input, assemble: func(sig []byte) ([]byte, error) {
		sig, err := pubkey.ToP1363(alg, sig) // RFC 7518, 3.4
		if err != nil {
			return nil, err
		}
		return b64.AppendEncode(append(slices.Clone(input), '.'), sig), nil
	}}, nil
}

func (t *jwtTemplate) checkClaims(claims map[string]any, now time.Time) error {
	if claims["iss"] != t.Issuer {
		return errors.New("iss is not the template's")
	}
	if claims["sub"] != t.Subject {
		return errors.New("sub is not the template's")
	}
	if !t.audience(claims["aud"]) {
		return errors.New("aud is not one or more of the template's audiences")
	}
	if err := t.times(claims, now); err != nil {
		return err
	}
	for name, value := range claims {
		if slices.Contains(registered[:], name) {
			continue
		}
		re := t.claims[name]
		if re == nil {
			return fmt.Errorf("the claim %.64q is not in the template", name)
		}
		text, ok := value.(string)
		if !ok {
			text = string(canonical(value))
		}
		if !re.MatchString(text) {
			return fmt.Errorf("the claim %.64q does not match its pattern", name)
		}
	}
	for _, name := range t.Required {
		if _, ok := claims[name]; !ok {
			return fmt.Errorf("the claim %.64q is required", name)
		}
	}
	return nil
}

func (t *jwtTemplate) audience(aud any) bool {
	if one, ok := aud.(string); ok {
		return slices.Contains(t.Audiences, one)
	}
	list, ok := aud.([]any)
	return ok && len(list) > 0 && !slices.ContainsFunc(list, func(v any) bool {
		s, ok := v.(string)
		return !ok || !slices.Contains(t.Audiences, s)
	})
}

// times checks iat, exp and nbf, which are whole seconds.
func (t *jwtTemplate) times(claims map[string]any, now time.Time) error {
	iat, ok := seconds(claims["iat"])
	if !ok {
		return errors.New("iat must be there, as a whole number of seconds")
	}
	exp, ok := seconds(claims["exp"])
	if !ok {
		return errors.New("exp must be there, as a whole number of seconds")
	}
	skew := int64(jwtSkew / time.Second)
	switch n := now.Unix(); {
	case iat < n-skew || iat > n+skew:
		return errors.New("iat is more than 60 seconds from the server's clock")
	case exp <= iat || exp <= n:
		return errors.New("exp is not after iat and now")
	case exp-iat > int64(time.Duration(t.MaxLifetime)/time.Second):
		return errors.New("exp is later than the template's longest lifetime")
	}
	if v, there := claims["nbf"]; there {
		nbf, ok := seconds(v)
		if !ok || nbf < iat-skew || nbf >= exp {
			return errors.New("nbf must be a whole number of seconds, not before iat and before exp")
		}
	}
	return nil
}

// seconds reads a NumericDate that is a plain integer below 2^53, which every
// reader understands alike.
func seconds(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	i, err := strconv.ParseInt(n.String(), 10, 64)
	return i, err == nil && i >= 0 && i < 1<<53 && strconv.FormatInt(i, 10) == n.String()
}

// parseClaims reads one JSON object strictly: valid UTF-8 without replaced
// characters, no name twice at any depth, at most 16 KiB and 8 levels.
func parseClaims(b []byte) (map[string]any, error) {
	if len(b) > maxClaims {
		return nil, errors.New("the claims are longer than 16 KiB")
	}
	if !utf8.Valid(b) || !json.Valid(b) {
		return nil, errors.New("the claims are not JSON in UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	v, err := parseValue(dec, 1)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("the claims are not one JSON object")
	}
	claims, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("the claims are not one JSON object")
	}
	return claims, nil
}

func parseValue(dec *json.Decoder, depth int) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, errors.New("the claims are not JSON")
	}
	if s, ok := tok.(string); ok && strings.ContainsRune(s, utf8.RuneError) {
		return nil, errors.New("the claims have a lone surrogate or a replacement character")
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth > maxClaimsDepth {
		return nil, errors.New("the claims are nested deeper than 8 levels")
	}
	object, list := make(map[string]any), []any{}
	for dec.More() {
		var name string
		if delim == '{' {
			n, err := parseValue(dec, depth+1)
			if err != nil {
				return nil, err
			}
			name, _ = n.(string)
			if _, twice := object[name]; twice {
				return nil, fmt.Errorf("the claims have the name %.64q twice", name)
			}
		}
		v, err := parseValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		object[name] = v
		list = append(list, v)
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("the claims are not JSON")
	}
	if delim == '{' {
		return object, nil
	}
	return list, nil
}

// canonical writes parsed JSON without white space, names sorted, numbers as
// they were.
func canonical(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // what parseValue makes always encodes
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
