// Package proxy stands in front of an application that cannot be changed, and
// translates its cookies and hidden fields.
//
// It owns the random secret that the application has in place of the one in
// custody. What the public side presents is checked by custody and made again
// with the random secret; what the application sets is opened with the random
// secret and made by custody. It promises that nothing passes under the name of
// a rule that was not checked first, that what is not valid is dropped, that a
// custody which is away answers 503 and logs nobody out, and that everything
// else passes as it is. It must never hold a key of custody, keep the answer of
// a check for another request, or write a token anywhere but into the message.
package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"claviger.dev"
	"claviger.dev/internal/state"
)

// Proxy is the handler of the public side.
type Proxy struct {
	cfg      Config
	rules    []*rule
	own      application
	custody  custodian
	ready    func(context.Context) error
	dial     func(context.Context) (net.Conn, error)
	upstream *upstream
	buffers  buffers
	metrics  *metrics
	log      *slog.Logger
	seldom   rate.Sometimes // one line of log a second about what strangers can cause
}

// New makes the secrets of a start. ready says whether custody can be asked.
func New(cfg Config, custody Custody, ready func(context.Context) error, log *slog.Logger) (*Proxy, error) {
	p := &Proxy{cfg: cfg, ready: ready, buffers: newBuffers(), log: log, seldom: rate.Sometimes{First: 3, Interval: time.Second}}
	var err error
	if p.metrics, err = newMetrics(); err != nil {
		return nil, err
	}
	p.custody = custodian{custody, p.metrics.asked}
	formats := map[string][]state.Format{}
	for _, c := range cfg.Cookies {
		r, err := newRule(c)
		if err != nil {
			return nil, err
		}
		p.rules = append(p.rules, r)
		formats[r.key] = append(formats[r.key], r.format)
	}
	tried := p.rules
	if w := cfg.WebForms; w != nil {
		formats[w.Key] = append(formats[w.Key], state.ASPNETViewState)
		if sample := w.pageOf(strings.TrimRight(w.Application, "/") + "/default.aspx"); sample != nil {
			tried = append(slices.Clone(tried), sample.rules[viewState])
		}
	}
	if p.own.secrets, err = newSecrets(formats); err != nil {
		return nil, err
	}
	for _, r := range tried {
		if err := r.try(context.Background(), p.own); err != nil {
			return nil, err
		}
	}
	network, address, err := parseUpstream(cfg.Upstream)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	p.dial = func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, network, address) }
	p.upstream = &upstream{
		// Shorter than servers of applications keep theirs, so that no request
		// goes to a connection that is being closed.
		lines: lines{dial: p.dial, rest: 1500 * time.Millisecond},
		wait:  time.Duration(cfg.Limits.Answer),
	}
	p.upstream.others = &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) },
		DisableCompression:     true, // bodies pass as they are
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        p.upstream.rest,
		ResponseHeaderTimeout:  p.upstream.wait,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHead,
	}
	return p, nil
}

// exchange is one request and its answer.
type exchange struct {
	*Proxy
	page    *page
	checked []*token // valid, and by the newest version
	renew   []*token // valid, and by an older version
	answer  *answer
	outcome string // for the metrics
}

// refusal is an answer that the proxy gives by itself.
type refusal struct {
	status int
	text   string
}

func (r refusal) Error() string { return r.text }

var (
	errSlow    = refusal{http.StatusRequestTimeout, "the request did not come in time"}
	errMethod  = refusal{http.StatusMethodNotAllowed, "the method is not allowed here"}
	errTokens  = refusal{http.StatusRequestHeaderFieldsTooLarge, "too many cookies"}
	errBody    = refusal{http.StatusRequestEntityTooLarge, "the form is too long"}
	errForm    = refusal{http.StatusBadRequest, "the form is not understood"}
	errPage    = refusal{http.StatusBadRequest, "the state of the page is not valid: load it again"}
	errAway    = refusal{http.StatusServiceUnavailable, "signing is not available; you are still logged in: try again"}
	errRefused = refusal{http.StatusServiceUnavailable, "signing was refused; you are still logged in. The operator finds the reason in the log"}
	errForeign = refusal{http.StatusBadGateway, "the application's answer cannot be translated. The operator finds the reason in the log"}
	errGateway = refusal{http.StatusBadGateway, "the application does not answer"}
)

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{Proxy: p, outcome: "passed", answer: &answer{ResponseWriter: w, control: http.NewResponseController(w), stall: time.Duration(p.cfg.Limits.Stall)}}
	p.metrics.open.Inc()
	defer func() {
		p.metrics.open.Dec()
		p.metrics.requests.WithLabelValues(x.outcome).Inc()
	}()
	if r.Body != nil && r.Body != http.NoBody {
		_ = x.answer.control.EnableFullDuplex() // an answer may begin before the body has ended
		body := &upload{ReadCloser: r.Body, answer: x.answer, request: r}
		defer body.leave()
		r.Body = body
	}
	if err := x.admit(r); err != nil {
		x.fail(x.answer, r, err)
		return
	}
	forward := httputil.ReverseProxy{
		// An answer of unknown length is passed on at once in any case; of one
		// that tells its length, nothing waits for longer than this.
		Rewrite: x.rewrite, Transport: p.upstream, FlushInterval: time.Millisecond, ModifyResponse: x.translateAnswer, ErrorHandler: x.fail,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug), BufferPool: p.buffers,
	}
	forward.ServeHTTP(x.answer, r)
}

// admit translates a request, or refuses it.
func (x *exchange) admit(r *http.Request) error {
	// TRACE would show the application's cookies, and CONNECT is for proxies of
	// another kind.
	if r.Method == http.MethodTrace || r.Method == http.MethodConnect {
		return errMethod
	}
	// Whoever has any other protocol with the application is past this proxy.
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || len(r.Header["Upgrade"]) > 1 {
		r.Header.Del("Upgrade")
	}
	cookies, tokens, err := x.readCookies(r.Header["Cookie"])
	if err != nil {
		return err
	}
	x.page = x.cfg.WebForms.pageOf(r.URL.Path)
	query, form, err := x.readForms(r)
	if err != nil {
		return err
	}
	all := slices.Concat(tokens, query.tokens(), form.tokens())
	if len(all) > x.cfg.Limits.Tokens {
		return errTokens
	}
	if len(all) > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), time.Duration(x.cfg.Timeout))
		defer cancel()
		if err := translate(ctx, x.custody, x.own, all, nil); err != nil {
			return err
		}
	}
	for _, t := range all {
		x.metrics.token("in", t.text != nil)
		switch {
		case t.opened.ok && !t.opened.renew:
			x.checked = append(x.checked, t)
		case t.opened.renew && t.rule.renew != "":
			x.renew = append(x.renew, t)
		}
		if err := t.settle(); err != nil {
			return err
		}
	}
	if !query.valid() || !form.valid() {
		return errPage
	}
	x.writeRequest(r, cookies, query, form)
	return nil
}

// readCookies takes the cookies of a request apart. It returns nil where none
// is anybody's business here.
func (p *Proxy) readCookies(lines []string) (cookies []*cookie, tokens []*token, err error) {
	ours, count := false, 0
	for text := range strings.SplitSeq(strings.Join(lines, ";"), ";") {
		if text = strings.Trim(text, " \t"); text == "" {
			continue
		}
		c := p.cut(text)
		switch {
		case c.rule != nil:
			ours = true
			count++
		case p.nearly(text):
			ours = true
			p.metrics.token("in", false)
			continue
		}
		cookies = append(cookies, c)
	}
	if !ours {
		return nil, nil, nil
	}
	if count > 2*p.cfg.Limits.Tokens {
		return nil, nil, errTokens
	}
	if cookies == nil {
		cookies = []*cookie{}
	}
	return cookies, gather(cookies), nil
}

// readForms finds the hidden fields in a request for a page.
func (x *exchange) readForms(r *http.Request) (query, form *document, err error) {
	query, form = new(document), new(document)
	if x.page == nil {
		return query, form, nil
	}
	var ok bool
	if query, ok = x.page.form([]byte(r.URL.RawQuery)); !ok {
		return nil, nil, errForm
	}
	if r.Body == nil || r.Body == http.NoBody || !isForm(r.Header.Get("Content-Type")) {
		return query, form, nil
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, nil, errForm
	}
	text, fits, err := readBody(r.Body, x.page.body)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("read form: %w", errForm)
	case !fits:
		return nil, nil, errBody
	}
	if form, ok = x.page.posted(r.Header.Get("Content-Type"), text); !ok {
		return nil, nil, errForm
	}
	return query, form, nil
}

func (x *exchange) writeRequest(r *http.Request, cookies []*cookie, query, form *document) {
	if cookies != nil {
		var kept []string
		for _, c := range cookies {
			if !c.drop {
				kept = append(kept, c.String())
			}
		}
		r.Header.Del("Cookie")
		if len(kept) > 0 {
			r.Header.Set("Cookie", strings.Join(kept, "; "))
		}
	}
	if x.page == nil {
		return
	}
	// A page is rewritten on its way back: whole and as it is.
	r.Header.Set("Accept-Encoding", "identity")
	r.Header.Del("Range")
	r.Header.Del("If-Range")
	if len(query.places) > 0 {
		r.URL.RawQuery = string(query.bytes())
	}
	if form.text != nil {
		text := form.bytes()
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(text)), int64(len(text)), nil
	}
}

// translateAnswer translates what the application sets and shows.
func (x *exchange) translateAnswer(res *http.Response) error {
	var set []*cookie
	for _, line := range res.Header["Set-Cookie"] {
		c := x.cut(line)
		if c.rule != nil && c.value == "deleted" && strings.Contains(strings.ToLower(c.tail), "max-age=0") {
			c.value = "" // as PHP removes a cookie
		}
		set = append(set, c)
	}
	tokens := gather(set)
	for _, c := range set {
		if c.drop && c.value != "" {
			return fmt.Errorf("the application sets %s, which is no whole token: %w", c.rule.name, errForeign)
		}
	}
	shown, err := x.readPage(res)
	if err != nil {
		return err
	}
	all := slices.Concat(tokens, shown.tokens())
	if len(all) > x.cfg.Limits.Tokens {
		return fmt.Errorf("the application sets %d tokens in one answer: %w", len(all), errForeign)
	}
	if len(all) > 0 {
		ctx, cancel := context.WithTimeout(res.Request.Context(), time.Duration(x.cfg.Timeout))
		defer cancel()
		if err := translate(ctx, x.own, x.custody, all, x.checked); err != nil {
			return err
		}
	}
	for _, t := range all {
		x.metrics.token("out", t.text != nil)
		if t.text == nil {
			return fmt.Errorf("the application's %s was not made with the secret of this start, or not as configured: %w", t.rule.name, errForeign)
		}
		if err := t.settle(); err != nil {
			return err
		}
	}
	lines := append(each(set, (*cookie).String), x.renewed(res, set)...)
	if len(lines) > 0 {
		res.Header["Set-Cookie"] = lines
	}
	if shown.text != nil {
		text := shown.bytes()
		res.Body, res.ContentLength, res.TransferEncoding = io.NopCloser(bytes.NewReader(text)), int64(len(text)), nil
		res.Header.Set("Content-Length", strconv.Itoa(len(text)))
		for _, name := range []string{"Etag", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest", "Accept-Ranges"} {
			res.Header.Del(name) // they were of another text
		}
	}
	return nil
}

// readPage finds the hidden fields in an answer that is a page.
func (x *exchange) readPage(res *http.Response) (*document, error) {
	d := new(document)
	if x.page == nil {
		return d, nil
	}
	page, delta := isPage(res)
	if !page && !delta {
		return d, nil
	}
	if e := res.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") || res.StatusCode == http.StatusPartialContent {
		return nil, fmt.Errorf("the application sends a page encoded or in part: %w", errForeign)
	}
	text, fits, err := readBody(res.Body, x.page.body)
	res.Body.Close()
	if err != nil {
		return nil, err
	}
	if !fits {
		return nil, fmt.Errorf("the application sends a page of more than %d bytes: %w", x.page.body, errForeign)
	}
	if page {
		return x.page.html(text), nil
	}
	d, ok := x.page.delta(text)
	if !ok {
		return nil, fmt.Errorf("the application sends an update that is not understood: %w", errForeign)
	}
	return d, nil
}

// renewed sets cookies by an older version again, unless the application has
// set them, or others may keep the answer. It is no loss when that fails.
func (x *exchange) renewed(res *http.Response, set []*cookie) (lines []string) {
	cached := strings.ToLower(strings.Join(res.Header["Cache-Control"], ","))
	if strings.Contains(cached, "public") || strings.Contains(cached, "s-maxage") {
		return nil
	}
	tokens := slices.DeleteFunc(x.renew, func(t *token) bool {
		return slices.ContainsFunc(set, func(c *cookie) bool { return c.name == t.fields[0].name })
	})
	if len(tokens) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(res.Request.Context(), time.Duration(x.cfg.Timeout))
	defer cancel()
	if err := remake(ctx, x.custody, tokens); err != nil {
		x.seldom.Do(func() { x.log.Warn("a cookie by an older version was not set again", "error", err) })
		return nil
	}
	for _, t := range tokens {
		if t.settle() != nil {
			continue
		}
		x.metrics.renewed.Inc()
		for _, f := range t.fields {
			lines = append(lines, f.name+"="+f.value+"; "+t.rule.renew)
		}
	}
	return lines
}

// fail answers in place of the application.
func (x *exchange) fail(w http.ResponseWriter, r *http.Request, err error) {
	stalled := x.answer.stalled.Load()
	if r.Context().Err() != nil && !stalled {
		x.outcome = "gone"
		panic(http.ErrAbortHandler) // nobody is left to hear it
	}
	answer := errGateway
	x.outcome = "application"
	var known refusal
	var asked custodyError
	switch {
	case stalled:
		answer, x.outcome = errSlow, "refused"
	case errors.As(err, &asked):
		answer, x.outcome = errRefused, "custody"
		if slices.Contains([]claviger.Code{claviger.Unavailable, claviger.Deadline, claviger.Stale}, claviger.CodeOf(asked.error)) {
			answer = errAway
		}
	case errors.As(err, &known):
		answer = known
		if known.status < 500 {
			x.outcome = "refused"
		}
	}
	if answer.status >= 500 {
		x.seldom.Do(func() { x.log.Error("a request failed", "status", answer.status, "error", explain(err)) })
	}
	h := w.Header()
	clear(h)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	switch answer {
	case errAway:
		h.Set("Retry-After", "2")
	case errSlow:
		h.Set("Connection", "close")
	}
	w.WriteHeader(answer.status)
	_, _ = io.WriteString(w, answer.text+"\n")
}

// explain is an error for the log: with the next thing to do where one is known.
// Texts of others are not shown: an error about an answer that is malformed
// holds the line that is, which may be a cookie, and one about an address what
// is nobody's business.
func explain(err error) string {
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		return strings.TrimSuffix(fmt.Sprintf("%s (%s): %s", e.Msg, e.Code, e.Hint), ": ")
	}
	if _, own := errors.AsType[refusal](err); own {
		return err.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Error()
	}
	for _, plain := range []error{context.DeadlineExceeded, io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, plain) {
			return "the application's answer broke off: " + plain.Error()
		}
	}
	return "the application's answer is malformed, or did not come in time"
}
