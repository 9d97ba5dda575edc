package server

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// requests are bodies as the adapters send them, which must be read without
// the general codec, and what makes them unusual.
var requests = map[string]bool{
	`{"key":"prod/shop/django","format":"django.session","tokens":["ZXlK","LV9-"]}`:                                                   true,
	`{"key": "prod/shop/django", "format": "django.signer", "params": {"salt": "x", "separator": ":"}, "payloads": ["eyJhIjoxfQ=="]}`: true,
	`{"key":"k","format":"f","params":{},"tokens":["-_-_"],"expired":true}`:                                                           true,
	`{"key":"k","format":"f","tokens":["AA"]}`:                                                                                        true,
	`{"params":{"salt":"a","name":"b","digest":"sha1","kdf":"sha256","derivation":"concat","iterations":1000,"size":32,"cipher":"gcm","encoding":"base64url",` +
		`"separator":".","issued":"2026-01-02T03:04:05Z","expires":"2026-01-02T03:04:05.678Z","compressed":true}}`: true,
	`{"params":{"salt2":"a","purpose":"p","purposes":["a","b"],"anyPurpose":true,"keyId":"1","over":"AA==","header":"e30=","properties":["AA==",""],` +
		`"class":"App","modifier":"AA==","whole":false}}`: true,
	`{"params":{"any_purpose":true,"key_id":"1"},"context":{"audience":"a","purpose":"b"}}`: true,
	" {\r\n\t\"key\" : \"k\" , \"tokens\" : [ ] } \n":                                       true,
	`{}`:                                  true,
	``:                                    false,
	`{"key":"k"`:                          false,
	`{"key":"k"}{}`:                       false,
	`{"key":"k",}`:                        false,
	`{"key":"k","key":"k"}`:               false,
	`{"key":"a\u0062"}`:                   false,
	`{"key":"é"}`:                         false,
	`{"key":null}`:                        false,
	`{"colour":"red"}`:                    false,
	`{"params":{"iterations":"5"}}`:       false,
	`{"params":{"iterations":01}}`:        false,
	`{"params":{"iterations":5e2}}`:       false,
	`{"params":{"size":4294967296}}`:      false,
	`{"params":{"keyId":"","key_id":""}}`: false,
	`{"params":{"compressed":truely}}`:    false,
	`{"params":{"issued":"0000-01-02T03:04:05Z"}}`:      false,
	`{"params":{"issued":"2026-01-02T03:04:05+00:00"}}`: false,
	`{"tokens":["*"],"payloads":["*"]}`:                 false,
	`{"tokens":["AA==="],"payloads":["AA==="]}`:         false,
}

// TestStateJSONReads says what is read without the general codec.
func TestStateJSONReads(t *testing.T) {
	t.Parallel()
	for text, want := range requests {
		_, checked := readUnprotect([]byte(strings.ReplaceAll(text, "payloads", "tokens")))
		_, made := readProtect([]byte(strings.NewReplacer("tokens", "payloads", `,"expired":true`, "").Replace(text)))
		if checked != want || made != want {
			t.Errorf("%s: was read is %v and %v, want %v", text, checked, made, want)
		}
	}
}

// FuzzStateJSONReads holds what is read against the general codec.
func FuzzStateJSONReads(f *testing.F) {
	for text := range requests {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if got, ok := readUnprotect(text); ok {
			var m clavigerv1.UnprotectRequest
			if err := fromJSON(text, &m); err != nil {
				t.Fatalf("%q was read, and is wrong: %v", text, err)
			}
			want, err := unprotectFrom(&m)
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Errorf("%q, %v (-want +got):\n%s", text, err, diff)
			}
		}
		if got, ok := readProtect(text); ok {
			var m clavigerv1.ProtectRequest
			if err := fromJSON(text, &m); err != nil {
				t.Fatalf("%q was read, and is wrong: %v", text, err)
			}
			want, err := protectFrom(&m)
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Errorf("%q, %v (-want +got):\n%s", text, err, diff)
			}
		}
	})
}

// FuzzStateJSONWrites holds what is written against the general codec.
func FuzzStateJSONWrites(f *testing.F) {
	f.Add([]byte("payload"), "login", "1", []byte(`{"alg":"HS256"}`), int64(1_700_000_000), int64(0), int64(1_800_000_000), int64(5e6), uint32(2), true, false, true)
	f.Add([]byte(nil), "", "", []byte(nil), int64(0), int64(0), int64(0), int64(1), uint32(0), false, false, false)
	f.Add([]byte{0xff}, "a\"b\\", "é", []byte("x"), int64(-62135596800), int64(0), int64(253402300800), int64(1e3), uint32(1), true, true, true)
	f.Add([]byte("x"), "\xff", "\n", []byte("x"), int64(-99999999999), int64(7), int64(1), int64(999999999), uint32(1), true, true, true)
	f.Fuzz(func(t *testing.T, payload []byte, purpose, keyID string, header []byte, issued, issuedNS, expires, expiresNS int64, version uint32, ok, compressed, renew bool) {
		full := keeper.Unprotected{Version: version, Renew: renew, Opened: state.Opened{OK: ok, Payload: payload, Facts: state.Facts{
			Issued: time.Unix(issued, issuedNS%1e9), Expires: time.Unix(expires, expiresNS%1e9), Purpose: purpose, KeyID: keyID, Compressed: compressed, Header: header,
		}}}
		for _, items := range [][]keeper.Unprotected{nil, {{}}, {full}, {full, {}, full}} {
			got, plain := writeUnprotected([]byte("before"), items)
			want, err := toJSON(nil, unprotectTo(items))
			compare(t, got, plain, want, err)
		}
		for _, tokens := range [][][]byte{nil, {payload}, {payload, nil, header}} {
			p := keeper.Protected{Tokens: tokens, Version: version}
			got, plain := writeProtected([]byte("before"), p)
			want, err := toJSON(nil, protectTo(p))
			compare(t, got, plain, want, err)
		}
	})
}

func compare(t *testing.T, got []byte, plain bool, want []byte, err error) {
	t.Helper()
	if !plain {
		return // the general codec has the word
	}
	if err != nil {
		t.Fatalf("%s was written, and is no message: %v", got, err)
	}
	var a, b bytes.Buffer
	rest, appended := bytes.CutPrefix(got, []byte("before"))
	if err := json.Compact(&a, rest); err != nil || !appended {
		t.Fatalf("%s: %v", got, err)
	}
	if err := json.Compact(&b, want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), a.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestStateJSONWrites says what is written without the general codec.
func TestStateJSONWrites(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		facts state.Facts
		want  bool
	}{
		"plain":      {state.Facts{Issued: at, Expires: at.Add(time.Millisecond), Purpose: "login", KeyID: "1"}, true},
		"other text": {state.Facts{Purpose: "é"}, false},
		"escape":     {state.Facts{KeyID: `"`}, false},
		"far future": {state.Facts{Expires: at.AddDate(9000, 0, 0)}, false},
	} {
		if _, got := writeUnprotected(nil, []keeper.Unprotected{{Opened: state.Opened{OK: true, Facts: tc.facts}}}); got != tc.want {
			t.Errorf("%s: was written is %v", name, got)
		}
	}
}

// TestStateJSONAllocates bounds the work of the usual call.
func TestStateJSONAllocates(t *testing.T) {
	text := []byte(`{"key":"prod/shop/django","format":"django.session","params":{"digest":"sha256"},"tokens":["ZXlKaElqb3hmUTozZXNzc3NzOmFhYQ=="]}`)
	out := make([]byte, 0, 1024)
	items := []keeper.Unprotected{{Version: 1, Opened: state.Opened{OK: true, Payload: []byte("payload"), Facts: state.Facts{Issued: time.Unix(1_700_000_000, 0)}}}}
	var params state.Params
	got := testing.AllocsPerRun(100, func() {
		r, ok := readUnprotect(text)
		if _, written := writeUnprotected(out, items); !ok || !written {
			t.Fatal("it is left to the general codec")
		}
		params = r.Params
	})
	if params.Digest != recipe.SHA256 {
		t.Errorf("the parameters are %+v", params)
	}
	if got > 8 {
		t.Errorf("%v allocations, want at most 8", got)
	}
}
