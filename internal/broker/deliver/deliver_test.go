package deliver_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/broker/deliver"
	"claviger.dev/internal/keeper"
)

// quick is a Deliverer whose looks at the outbox do not hold a test up.
func quick(o *outbox) *deliver.Deliverer {
	return &deliver.Deliverer{Outbox: o, Issuer: issuer, Loopback: true, Every: time.Millisecond}
}

// TestTokens compares every claim of what is sent.
func TestTokens(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind        claviger.ReceiverKind
		contentType string
		typ         string
		want        func(d keeper.Delivery) map[string]any
	}{
		{claviger.LogoutReceiver, "application/x-www-form-urlencoded", "logout+jwt", func(d keeper.Delivery) map[string]any {
			return map[string]any{"sub": "ada", "sid": string(d.End.Session),
				"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}
		}},
		{claviger.CAEPReceiver, "application/secevent+jwt", "secevent+jwt", func(d keeper.Delivery) map[string]any {
			return map[string]any{
				"sub_id": map[string]any{"format": "complex",
					"session": map[string]any{"format": "opaque", "id": string(d.End.Session)},
					"user":    map[string]any{"format": "iss_sub", "iss": "https://login.example", "sub": "ada"}},
				"events": map[string]any{"https://schemas.openid.net/secevent/caep/event-type/session-revoked": map[string]any{
					"event_timestamp": float64(d.End.At.Unix()), "initiating_entity": "user", "reason_admin": map[string]any{"en": "logout"}}},
			}
		}},
	} {
		t.Run(string(tt.kind), func(t *testing.T) {
			t.Parallel()
			l := listen(t, ok)
			o := newOutbox(t, l.receiver("r1", tt.kind))
			d := o.put("r1", "d1")
			run(t, quick(o))
			o.arrivals(1)
			r := l.got[0]
			if r.Method != http.MethodPost || r.URL.Path != "/told" || r.Header.Get("Content-Type") != tt.contentType || r.Header.Get("Accept") != "application/json" {
				t.Errorf("sent %s %s %v", r.Method, r.URL, r.Header)
			}
			if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
				t.Errorf("something secret was sent: %v", r.Header)
			}
			jwt := r.Form["body"][0]
			if tt.kind == claviger.LogoutReceiver {
				form, err := url.ParseQuery(jwt)
				if err != nil || len(form) != 1 || len(form["logout_token"]) != 1 {
					t.Fatalf("form %q: %v", jwt, err)
				}
				jwt = form.Get("logout_token")
			}
			header, claims := claimsOf(t, jwt)
			if header["typ"] != tt.typ {
				t.Errorf("typ %v, want %s", header["typ"], tt.typ)
			}
			want := tt.want(d)
			want["iss"], want["aud"], want["jti"] = issuer, "cli-1", "d1"
			iat, _ := claims["iat"].(float64)
			if age := time.Since(time.Unix(int64(iat), 0)); age < -time.Second || age > time.Minute {
				t.Errorf("iat is %v ago", age)
			}
			want["iat"] = iat
			if tt.kind == claviger.LogoutReceiver {
				want["exp"] = iat + 120
			}
			if d := cmp.Diff(want, claims); d != "" {
				t.Errorf("claims (-want +got):\n%s", d)
			}
		})
	}
}

// TestAnswers: what a receiver says decides, and its body is read for one word
// at most.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		status  int
		body    string
		arrived bool
		error   string
	}{
		{"200", 200, "", true, ""},
		{"202, as RFC 8935 wants", 202, "", true, ""},
		{"204, as some frameworks make of 200", 204, "", true, ""},
		{"200 with a body without end", 200, strings.Repeat("x", 1<<20), true, ""},
		{"400 with RFC 8935's error", 400, `{"err":"invalid_audience","description":"` + strings.Repeat("long ", 100) + `"}`, false, "the receiver answered 400 invalid_audience"},
		{"400 with OAuth's error", 400, `{"error":"invalid_request"}`, false, "the receiver answered 400 invalid_request"},
		{"an error that is no word", 400, `{"error":"<script>alert(1)</script>"}`, false, "the receiver answered 400"},
		{"an answer that is no JSON", 500, "<html>secret", false, "the receiver answered 500"},
		{"a redirect is not followed", 302, "", false, "the receiver answered 302"},
		{"nor one that keeps the method", 307, "", false, "the receiver answered 307"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, func(int) (int, string) { return tt.status, tt.body })
			o := newOutbox(t, l.receiver("r1", claviger.CAEPReceiver))
			o.put("r1", "d1")
			run(t, quick(o))
			got := <-o.settled
			next := got.Next
			got.Next = time.Time{}
			if d := cmp.Diff(keeper.Settlement{Arrived: tt.arrived, Error: tt.error}, got); d != "" {
				t.Errorf("settlement (-want +got):\n%s", d)
			}
			if wait := time.Until(next); !tt.arrived && (wait <= 0 || wait > 2*time.Second) {
				t.Errorf("tried again in %v", wait)
			}
			if l.count() != 1 {
				t.Errorf("%d requests", l.count())
			}
		})
	}
}

// TestConnections are connections that must not come about, and ones beside them that do.
func TestConnections(t *testing.T) {
	t.Parallel()
	l := listen(t, ok)
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	t.Cleanup(plain.Close)
	for _, tt := range []struct {
		name    string
		change  func(*claviger.Receiver, *deliver.Deliverer)
		arrived bool
		error   string
	}{
		{"the control", func(*claviger.Receiver, *deliver.Deliverer) {}, true, ""},
		{"its certificate is not vouched for", func(r *claviger.Receiver, _ *deliver.Deliverer) { r.Roots = nil }, false, "certificate signed by unknown authority"},
		{"this host itself", func(_ *claviger.Receiver, d *deliver.Deliverer) { d.Loopback = false }, false, "an address that nothing is sent to"},
		{"http to this host, for a test", func(r *claviger.Receiver, _ *deliver.Deliverer) { r.URL = plain.URL }, true, ""},
		{"another name", func(r *claviger.Receiver, _ *deliver.Deliverer) {
			r.URL = strings.Replace(r.URL, "127.0.0.1", "localhost", 1)
		}, false, "certificate"},
		{"the link's own addresses", func(r *claviger.Receiver, _ *deliver.Deliverer) { r.URL = "https://169.254.169.254/latest" }, false, "an address that nothing is sent to"},
		{"written in IPv6", func(r *claviger.Receiver, _ *deliver.Deliverer) { r.URL = "https://[::ffff:169.254.169.254]/" }, false, "an address that nothing is sent to"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := l.receiver("r1", claviger.CAEPReceiver)
			o := newOutbox(t)
			d := quick(o)
			tt.change(&r, d)
			o.receivers = []claviger.Receiver{r}
			o.put("r1", "d1")
			run(t, d)
			if got := <-o.settled; got.Arrived != tt.arrived || !strings.Contains(got.Error, tt.error) || tt.error == "" && got.Error != "" {
				t.Errorf("settlement %+v", got)
			}
		})
	}
}

// TestCheckURL refuses addresses before they are registered.
func TestCheckURL(t *testing.T) {
	t.Parallel()
	for address, wants := range map[string][2]bool{ // without and with loopback
		"https://app.example/logout":           {true, true},
		"https://app.example:8443/a?b=c":       {true, true},
		"https://10.0.0.7/logout":              {true, true},
		"https://[2001:db8::1]/logout":         {true, true},
		"http://app.example/logout":            {false, false},
		"https://127.0.0.1/":                   {false, true},
		"http://127.0.0.1:8080/":               {false, true},
		"http://localhost/":                    {false, true},
		"https://x.localhost/":                 {false, true},
		"https://[::1]/":                       {false, true},
		"https://[::ffff:127.0.0.1]/":          {false, true},
		"https://0.0.0.0/":                     {false, false},
		"https://169.254.169.254/latest":       {false, false},
		"https://[fe80::1]/":                   {false, false},
		"https://[fd00:ec2::254]/":             {false, false},
		"https://224.0.0.1/":                   {false, false},
		"https://user:word@app.example/":       {false, false},
		"https://app.example/#part":            {false, false},
		"ftp://app.example/":                   {false, false},
		"https:app.example":                    {false, false},
		"/logout":                              {false, false},
		"":                                     {false, false},
		"https://" + strings.Repeat("a", 3000): {false, false},
	} {
		for i, loopback := range []bool{false, true} {
			if why := deliver.CheckURL(address, loopback); (why == "") != wants[i] {
				t.Errorf("%.60q, loopback %v: %q", address, loopback, why)
			}
		}
	}
}

// TestOneDeadReceiver: one that does not answer, one that hangs and one that
// is well have 50 deliveries each. Those of the one that is well all arrive.
func TestOneDeadReceiver(t *testing.T) {
	t.Parallel()
	gone := listen(t, ok)
	hung := make(chan struct{})
	slow := listen(t, func(int) (int, string) { <-hung; return 200, "" })
	t.Cleanup(func() { close(hung) })
	well := listen(t, ok)
	o := newOutbox(t, gone.receiver("gone", claviger.LogoutReceiver), slow.receiver("hung", claviger.LogoutReceiver), well.receiver("well", claviger.LogoutReceiver))
	gone.Close()
	for i := range 50 {
		for _, r := range []claviger.ID{"gone", "hung", "well"} {
			o.put(r, claviger.ID(fmt.Sprintf("%s-%02d", r, i)))
		}
	}
	run(t, quick(o))
	o.arrivals(50)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range o.arrived {
		if !strings.HasPrefix(string(id), "well") {
			t.Errorf("%s arrived", id)
		}
	}
	tried := 0
	for _, d := range o.rows {
		if d.Receiver == "gone" {
			tried += int(d.Tries)
		}
	}
	if tried > 8 { // those under way together, and one more
		t.Errorf("a receiver that does not answer was tried %d times in a moment", tried)
	}
	if n := slow.count(); n > 4 {
		t.Errorf("a receiver that hangs has %d requests at once", n)
	}
}

// TestUpAgain: a receiver that was down gets everything when it is up, each with
// the jti that it has had in every try.
func TestUpAgain(t *testing.T) {
	t.Parallel()
	l := listen(t, func(n int) (int, string) {
		if n <= 3 {
			return http.StatusServiceUnavailable, ""
		}
		return http.StatusOK, ""
	})
	o := newOutbox(t, l.receiver("r1", claviger.CAEPReceiver))
	o.put("r1", "d1")
	run(t, quick(o))
	for n := 1; n <= 3; n++ {
		s := <-o.settled
		if s.Arrived || s.Dead {
			t.Fatalf("try %d: %+v", n, s)
		}
		wait, most := time.Until(s.Next), 2*time.Second<<(n-1)
		if wait > most || wait < most/2-time.Second {
			t.Errorf("after try %d it waits for %v, want half of %v to the whole", n, wait, most)
		}
		o.mu.Lock()
		o.rows["d1"].Next = time.Now() // the time has come
		o.mu.Unlock()
	}
	o.arrivals(1)
	for i, r := range l.got {
		if _, claims := claimsOf(t, r.Form["body"][0]); claims["jti"] != "d1" {
			t.Errorf("try %d has jti %v", i+1, claims["jti"])
		}
	}
}

// TestDead gives a delivery up after its last try, and not before.
func TestDead(t *testing.T) {
	t.Parallel()
	l := listen(t, func(int) (int, string) { return http.StatusBadRequest, `{"err":"invalid_key"}` })
	o := newOutbox(t, l.receiver("r1", claviger.CAEPReceiver))
	o.put("r1", "d1")
	o.rows["d1"].Tries = 38
	run(t, quick(o))
	if s := <-o.settled; s.Dead {
		t.Fatalf("the 39th try: %+v", s)
	}
	o.mu.Lock()
	o.rows["d1"].Next = time.Now()
	o.mu.Unlock()
	if s := <-o.settled; !s.Dead || s.Error != "the receiver answered 400 invalid_key" {
		t.Fatalf("the 40th try: %+v", s)
	}
}

// TestStop: a server that stops while a receiver hangs counts no try, and does
// not wait for it.
func TestStop(t *testing.T) {
	t.Parallel()
	came, hung := make(chan struct{}), make(chan struct{})
	l := listen(t, func(int) (int, string) { close(came); <-hung; return 200, "" })
	t.Cleanup(func() { close(hung) })
	o := newOutbox(t, l.receiver("r1", claviger.CAEPReceiver))
	o.put("r1", "d1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); quick(o).Run(ctx) }()
	<-came
	cancel()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for a receiver that hangs")
	}
	if s := <-o.settled; s.Error != "" || s.Arrived || s.Dead || time.Until(s.Next) > 0 {
		t.Errorf("settlement %+v", s)
	}
}
