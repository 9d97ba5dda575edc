package proxy

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/state"
)

// Custody makes and checks tokens by handle; *client.Client does. A token that
// is not valid is an answer; an error means that nothing was found out.
type Custody interface {
	Protect(ctx context.Context, r *pb.ProtectRequest) (*pb.ProtectResponse, error)
	Unprotect(ctx context.Context, r *pb.UnprotectRequest) (*pb.UnprotectResponse, error)
}

// kind says what a token is held to. Tokens of one kind are checked in one call.
type kind struct {
	rule *rule
	name string // of the cookie
	over string // what a detached signature is over
}

// form is a kind with what a token says of itself. Tokens of one form are made
// in one call.
type form struct {
	kind
	issued, expires time.Time
	compressed      bool
	keyID, header   string
}

// field is a place in a message where a token, or a part of one, stands.
type field struct {
	name, value string
	drop        bool // the token is not valid
}

// token is one token on its way from one secret to the other.
type token struct {
	kind
	text   []byte // nil once it was found not to be valid
	came   []byte // the text before it was translated
	opened opened
	fields []*field // a pair has two; what is cut into chunks has many
}

type opened struct {
	ok, renew bool
	payload   []byte
	facts     state.Facts
}

func (t *token) form() form {
	f := t.opened.facts
	return form{kind: t.kind, issued: f.Issued, expires: f.Expires, compressed: f.Compressed, keyID: f.KeyID, header: string(f.Header)}
}

// params are the parameters of the format for a token of the form.
func (f form) params() state.Params {
	c := f.rule.params
	p := state.Params{
		Salt: c.Salt, Salt2: c.Salt2, Name: c.Name, Purpose: c.Purpose, Purposes: c.Purposes, Digest: c.Digest, KDF: c.KDF,
		Derivation: c.Derivation, Iterations: c.Iterations, Size: c.Size, Cipher: c.Cipher, Encoding: c.Encoding,
		Separator: c.Separator, KeyID: c.KeyID, Issued: f.issued, Expires: f.expires, Compressed: f.compressed,
	}
	setDefault(&p.Name, f.name)
	setDefault(&p.KeyID, f.keyID)
	if f.over != "" {
		p.Over = []byte(f.over)
	}
	if f.header != "" {
		p.Header = []byte(f.header)
	}
	return p
}

// side opens and makes tokens with one of the two secrets.
type side interface {
	open(ctx context.Context, k kind, tokens [][]byte) ([]opened, error)
	make(ctx context.Context, f form, payloads [][]byte) ([][]byte, error)
}

// translate opens tokens on one side and makes those that are valid on the
// other. The text of the others is nil afterwards. A token that says what one
// of the same exchange said which came from the other side becomes that one:
// frameworks set again what they were sent.
func translate(ctx context.Context, from, to side, tokens, known []*token) error {
	err := grouped(ctx, tokens, func(t *token) kind { return t.kind }, func(ctx context.Context, k kind, group []*token) error {
		answers, err := from.open(ctx, k, each(group, func(t *token) []byte { return t.text }))
		for i := range answers {
			group[i].opened = answers[i]
		}
		return err
	})
	if err != nil {
		return err
	}
	changed := make([]*token, 0, len(tokens))
	for _, t := range tokens {
		t.came, t.text = t.text, nil
		same := func(k *token) bool { return k.form() == t.form() && bytes.Equal(k.opened.payload, t.opened.payload) }
		if i := slices.IndexFunc(known, same); t.opened.ok && i >= 0 {
			t.text = known[i].came
		} else if t.opened.ok {
			changed = append(changed, t)
		}
	}
	return remake(ctx, to, changed)
}

// remake makes tokens of what was opened.
func remake(ctx context.Context, to side, tokens []*token) error {
	return grouped(ctx, tokens, (*token).form, func(ctx context.Context, f form, group []*token) error {
		made, err := to.make(ctx, f, each(group, func(t *token) []byte { return t.opened.payload }))
		for i := range made {
			group[i].text = made[i]
		}
		return err
	})
}

// grouped calls do once for each group of tokens that have the same key, at
// once where there are several.
func grouped[K comparable](ctx context.Context, tokens []*token, by func(*token) K, do func(context.Context, K, []*token) error) error {
	if len(tokens) == 0 {
		return nil
	}
	groups := map[K][]*token{}
	for _, t := range tokens {
		groups[by(t)] = append(groups[by(t)], t)
	}
	if len(groups) == 1 {
		return do(ctx, by(tokens[0]), tokens)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for k, group := range groups {
		g.Go(func() error { return do(ctx, k, group) })
	}
	return g.Wait()
}

func each[T, U any](list []T, f func(T) U) []U {
	out := make([]U, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}

// application is the side of the application's own secrets.
type application struct{ secrets }

func (a application) open(ctx context.Context, k kind, tokens [][]byte) ([]opened, error) {
	found, err := state.UnprotectAll(ctx, a.secrets[k.rule.key], k.rule.format, form{kind: k}.params(), tokens)
	return each(found, func(o state.Opened) opened { return opened{ok: o.OK, payload: o.Payload, facts: o.Facts} }), err
}

func (a application) make(ctx context.Context, f form, payloads [][]byte) ([][]byte, error) {
	return state.ProtectAll(ctx, a.secrets[f.rule.key], f.rule.format, f.params(), payloads)
}

// custodian is the side of custody. There is no cache: a version that was
// withdrawn is refused by the next request.
type custodian struct {
	custody Custody
	seconds func(call string, began time.Time)
}

// custodyError is a call that custody did not answer, or refused.
type custodyError struct{ error }

func (e custodyError) Unwrap() error { return e.error }

var errOther = claviger.Errorf(claviger.Internal, "custody answered something else than it was asked for", "report this")

func (c custodian) open(ctx context.Context, k kind, tokens [][]byte) ([]opened, error) {
	defer c.seconds("unprotect", time.Now())
	answer, err := c.custody.Unprotect(ctx, &pb.UnprotectRequest{
		Key: k.rule.key, Format: string(k.rule.format), Params: apiParams(form{kind: k}.params()), Tokens: tokens})
	if err == nil && len(answer.Items) != len(tokens) {
		err = errOther
	}
	if err != nil {
		return nil, custodyError{err}
	}
	return each(answer.Items, func(u *pb.Unprotected) opened {
		f := state.Facts{KeyID: u.KeyId, Purpose: u.Purpose, Compressed: u.Compressed, Header: u.Header}
		if u.Issued != nil {
			f.Issued = u.Issued.AsTime()
		}
		if u.Expires != nil {
			f.Expires = u.Expires.AsTime()
		}
		return opened{ok: u.Ok, renew: u.Renew, payload: u.Payload, facts: f}
	}), nil
}

func (c custodian) make(ctx context.Context, f form, payloads [][]byte) ([][]byte, error) {
	defer c.seconds("protect", time.Now())
	answer, err := c.custody.Protect(ctx, &pb.ProtectRequest{
		Key: f.rule.key, Format: string(f.rule.format), Params: apiParams(f.params()), Payloads: payloads})
	if err == nil && len(answer.Tokens) != len(payloads) {
		err = errOther
	}
	if err != nil {
		return nil, custodyError{err}
	}
	return answer.Tokens, nil
}

func apiParams(p state.Params) *pb.StateParams {
	out := &pb.StateParams{
		Salt: p.Salt, Salt2: p.Salt2, Name: p.Name, Purpose: p.Purpose, Purposes: p.Purposes, Digest: string(p.Digest), Kdf: string(p.KDF),
		Derivation: p.Derivation, Iterations: p.Iterations, Size: p.Size, Cipher: p.Cipher, Encoding: p.Encoding,
		Separator: p.Separator, KeyId: p.KeyID, Compressed: p.Compressed, Over: p.Over, Header: p.Header,
	}
	if !p.Issued.IsZero() {
		out.Issued = timestamppb.New(p.Issued)
	}
	if !p.Expires.IsZero() {
		out.Expires = timestamppb.New(p.Expires)
	}
	return out
}

// settle puts what became of a token into its fields.
func (t *token) settle() error {
	if t.text == nil {
		for _, f := range t.fields {
			f.drop = true
		}
		return nil
	}
	if t.rule.format == state.CookieSession {
		t.text = t.text[bytes.LastIndexByte(t.text, '=')+1:]
	}
	text, err := t.rule.write(t.text)
	if err != nil {
		return err
	}
	if t.rule.pair {
		t.fields[1].value = text
		return nil
	}
	// Chunks stay as long as they were; the last takes what is left.
	for i, f := range t.fields {
		n := min(len(f.value), len(text))
		if i == len(t.fields)-1 {
			n = len(text)
		}
		f.value, text = text[:n], text[n:]
	}
	return nil
}

var errText = errors.New("a token has characters that a cookie cannot carry; set text = \"percent\"")
