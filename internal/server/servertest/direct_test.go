package servertest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server/servertest"
)

const (
	protectPath   = "/claviger.v1.StateService/Protect"
	unprotectPath = "/claviger.v1.StateService/Unprotect"
)

// TestDirectAnswersAsConnect sends each request in three ways: as applications
// do, on a connection that is new, for the local socket's own loop, and on one
// that net/http serves; and with a parameter of the content type, which only
// Connect serves.
func TestDirectAnswersAsConnect(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	local, fresh := s.Local(t), s.Local(t)
	token := machineKey(t, s, local, "dev/direct/state")
	texts := strings.Repeat(`"`+token+`",`, 1000)
	with := func(tokens string) string {
		return `{"key":"dev/direct/state","format":"django.session","tokens":[` + tokens + `]}`
	}
	for name, tc := range map[string]struct {
		path, body string
		status     int
		header     string // with the value "1"
	}{
		"token":                 {unprotectPath, with(`"` + token + `"`), 200, ""},
		"token twice":           {unprotectPath, with(`"` + token + `","` + token + `"`), 200, ""},
		"other tokens":          {unprotectPath, with(`"","AAAA","` + token[:len(token)-4] + `"`), 200, ""},
		"a thousand tokens":     {unprotectPath, with(strings.TrimSuffix(texts, ",")), 200, ""},
		"one more":              {unprotectPath, with(texts + `""`), 400, ""},
		"no token":              {unprotectPath, with(``), 400, ""},
		"URL base64":            {unprotectPath, with(`"-_-_"`), 200, ""},
		"no base64":             {unprotectPath, with(`"*"`), 400, ""},
		"white space":           {unprotectPath, " \n" + with(`"`+token+`"`) + "\t", 200, ""},
		"escapes":               {unprotectPath, `{"k\u0065y":"dev\/direct/state","format":"django.session","tokens":[]}`, 400, ""},
		"nulls":                 {unprotectPath, `{"key":null,"params":null,"tokens":null}`, 400, ""},
		"parameters":            {unprotectPath, `{"key":"dev/direct/state","format":"django.session","params":{"salt":"x","expires":"2026-01-02T03:04:05Z"},"tokens":["` + token + `"]}`, 200, ""},
		"time out of range":     {unprotectPath, `{"params":{"issued":"99999-01-01T00:00:00Z"}}`, 400, ""},
		"another format":        {unprotectPath, `{"key":"dev/direct/state","format":"rails.encrypted-cookie","tokens":["AAAA"]}`, 501, ""},
		"key that is none":      {unprotectPath, `{"key":"dev/direct/none","format":"django.session","tokens":["AAAA"]}`, 404, ""},
		"key of others":         {unprotectPath, `{"key":"prod/direct/state","format":"django.session","tokens":["AAAA"]}`, 403, ""},
		"name that is none":     {unprotectPath, `{"key":"../x","format":"django.session","tokens":["AAAA"]}`, 403, ""},
		"context that is none":  {unprotectPath, `{"key":"dev/direct/state","format":"django.session","tokens":["AAAA"],"context":{"purpose":"` + repeat("x", 5000) + `"}}`, 400, ""},
		"unknown field":         {unprotectPath, `{"key":"x","colour":"red"}`, 400, ""},
		"unknown field below":   {unprotectPath, `{"params":{"colour":"red"}}`, 400, ""},
		"member twice":          {unprotectPath, `{"key":"x","key":"y"}`, 400, ""},
		"wrong type":            {unprotectPath, `{"key":1}`, 400, ""},
		"nothing":               {unprotectPath, ``, 400, ""},
		"a list":                {unprotectPath, `[]`, 400, ""},
		"two values":            {unprotectPath, `{} {}`, 400, ""},
		"cut off":               {unprotectPath, `{"key":"dev`, 400, ""},
		"no UTF-8":              {unprotectPath, "{\"key\":\"\xff\"}", 400, ""},
		"lone surrogate":        {unprotectPath, `{"key":"\ud800"}`, 400, ""},
		"deep":                  {unprotectPath, strings.Repeat(`{"params":`, 4000), 400, ""},
		"deep list":             {unprotectPath, `{"tokens":` + strings.Repeat("[", 4000), 400, ""},
		"over the cap":          {unprotectPath, strings.Repeat(" ", 7<<20), 400, ""},
		"compressed":            {unprotectPath, with(`"` + token + `"`), 501, "Content-Encoding"},
		"protocol version":      {unprotectPath, with(`"` + token + `"`), 200, "Connect-Protocol-Version"},
		"payload of no format":  {protectPath, `{"key":"dev/direct/state","format":"none","payloads":["AAAA"]}`, 501, ""},
		"payload and no key":    {protectPath, `{"format":"django.session","payloads":["AAAA"]}`, 403, ""},
		"tokens to be made":     {protectPath, with(``), 400, ""},
		"payload at a set time": {protectPath, `{"key":"dev/direct/state","format":"django.session","payloads":["AAAA"],"params":{"issued":"2026-01-02T03:04:05Z"}}`, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			header := map[string]string{"Content-Type": "application/json"}
			if tc.header != "" {
				header[tc.header] = "1"
			}
			own := send(t, fresh, "POST", tc.path, header, strings.NewReader(tc.body))
			fresh.HTTP.CloseIdleConnections()
			direct := send(t, local, "POST", tc.path, header, strings.NewReader(tc.body))
			header["Content-Type"] += "; charset=utf-8"
			whole := send(t, local, "POST", tc.path, header, strings.NewReader(tc.body))
			if direct.status != tc.status {
				t.Errorf("got %d %s, want %d", direct.status, direct.body, tc.status)
			}
			if diff := cmp.Diff(settled(t, whole), settled(t, direct)); diff != "" {
				t.Errorf("Connect answers otherwise than the direct way (-Connect +direct):\n%s", diff)
			}
			if diff := cmp.Diff(settled(t, whole), settled(t, own)); diff != "" {
				t.Errorf("Connect answers otherwise than the local socket's loop (-Connect +loop):\n%s", diff)
			}
		})
	}
}

// machineKey makes a key for Django's tokens that the caller may use, and
// returns a token of it in base64.
func machineKey(t *testing.T, s *servertest.Server, local *servertest.Client, key string) string {
	t.Helper()
	me, err := local.WhoAmI(t.Context(), connect.NewRequest(&clavigerv1.WhoAmIRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(t, me.Msg.Principal.Name, "dev/direct/*", nil, claviger.Protect, claviger.Unprotect)
	if _, err := local.CreateKey(t.Context(), connect.NewRequest(&clavigerv1.CreateKeyRequest{Name: key, Algorithm: "machine-key", Recipe: "django"})); err != nil {
		t.Fatal(err)
	}
	made, err := local.Protect(t.Context(), connect.NewRequest(&clavigerv1.ProtectRequest{Key: key, Format: "django.session", Payloads: [][]byte{[]byte("payload")}}))
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(made.Msg.Tokens[0])
}

// settled is an answer without what differs from one to the next: its id,
// its date, the white space of its JSON and the parameter of its content type.
// Nor does the direct way say which compressions of requests Connect takes,
// which is none.
func settled(t *testing.T, a answer) map[string]string {
	t.Helper()
	out := map[string]string{"status": strconv.Itoa(a.status)}
	for name := range a.header {
		switch name {
		case "Date", "Content-Length", "Accept-Encoding":
		case "Claviger-Request-Id":
			out[name] = strconv.Itoa(len(a.header.Get(name)))
		default:
			out[name], _, _ = strings.Cut(strings.Join(a.header[name], ", "), ";")
		}
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, a.body); err != nil {
		t.Errorf("the body is no JSON: %v: %s", err, a.body)
	}
	out["body"] = compact.String()
	return out
}

// TestDirectTimeout holds the deadline that a caller sets: such a call goes to
// Connect, and one without goes the direct way.
func TestDirectTimeout(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	local := s.Local(t)
	token := machineKey(t, s, local, "dev/direct/late")
	body := `{"key":"dev/direct/late","format":"django.session","tokens":["` + token + `"]}`
	for timeout, status := range map[string]int{"": http.StatusOK, "0": http.StatusGatewayTimeout, "60000": http.StatusOK, "soon": http.StatusBadRequest} {
		header := map[string]string{"Content-Type": "application/json"}
		if timeout != "" {
			header["Connect-Timeout-Ms"] = timeout
		}
		if got := send(t, local, "POST", unprotectPath, header, strings.NewReader(body)); got.status != status {
			t.Errorf("timeout %q: got %d %s, want %d", timeout, got.status, got.body, status)
		} else if connects := got.header["Accept-Encoding"] != nil; status == http.StatusOK && connects != (timeout != "") {
			t.Errorf("timeout %q: Connect answered is %v", timeout, connects) // its mark is a header
		}
	}
}
