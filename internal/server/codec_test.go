package server

import (
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
)

func codecNamed(t *testing.T, name string) connect.Codec {
	t.Helper()
	for _, c := range codecList() {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("there is no codec %q", name)
	return nil
}

func TestJSONIsStrict(t *testing.T) {
	t.Parallel()
	c := codecNamed(t, "json")
	for name, tc := range map[string]struct {
		body string
		says string // part of the message; "ok" where it is accepted
	}{
		"fields":                    {`{"name":"dev/a/b","algorithm":"ed25519","preActivation":true}`, "ok"},
		"fields by their own names": {`{"name":"dev/a/b","pre_activation":true}`, "ok"},
		"empty message":             {`{}`, "ok"},
		"unknown field":             {`{"name":"dev/a/b","colour":"red"}`, `unknown field "colour"`},
		"unknown field below":       {`{"settings":{"max":1}}`, `unknown field "max"`},
		"member twice":              {`{"name":"dev/a/b","name":"dev/a/c"}`, `duplicate field "name"`},
		"member by both names":      {`{"preActivation":true,"pre_activation":false}`, `duplicate field "pre_activation"`},
		"label twice":               {`{"labels":{"a":"1","a":"2"}}`, "line 1:"},
		"nothing":                   {``, "body is not"},
		"null":                      {`null`, "body is not"},
		"a list":                    {`[]`, "body is not"},
		"two messages":              {`{}{}`, "line 1:3"},
		"cut off":                   {`{"name":"dev`, "body is not"},
		"invalid UTF-8":             {"{\"name\":\"dev/\xff/b\"}", "body is not"},
		"lone surrogate":            {`{"name":"\ud800"}`, "body is not"},
		"wrong type":                {`{"name":1}`, "body is not"},
		"deep list in a field":      {`{"name":` + strings.Repeat("[", 100000) + `}`, "body is not"},
		"deep unknown":              {strings.Repeat(`{"a":`, 100000), `unknown field "a"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m clavigerv1.CreateKeyRequest
			if err := c.Unmarshal([]byte(tc.body), &m); err != nil {
				t.Fatalf("unmarshal failed at once: %v", err)
			}
			checkDecoded(t, &m, tc.says)
		})
	}
}

func checkDecoded(t *testing.T, m proto.Message, says string) {
	t.Helper()
	err := decoded(m)
	if says == "ok" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	e, ok := errors.AsType[*claviger.Error](err)
	if !ok || e.Code != claviger.Invalid || e.Hint == "" || !strings.Contains(e.Msg, says) || len(e.Msg) > 300 {
		t.Errorf("got %v, want invalid with a hint, saying %q", err, says)
	}
}

// TestJSONQuotesNoValue checks that an error repeats no value of a request.
func TestJSONQuotesNoValue(t *testing.T) {
	t.Parallel()
	const secret = "hunter2hunter2"
	for _, body := range []string{
		`{"items":[{"plaintext":"` + secret + `!"}]}`, `{"items":"` + secret + `"}`, secret, `{"key":` + secret + `}`, `{"key":"a" "` + secret + `"}`,
	} {
		var m clavigerv1.SealRequest
		if err := codecNamed(t, "json").Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		if err := decoded(&m); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("body %q: got %v, want an error without the value", body, err)
		}
	}
}

func TestBinaryIsStrict(t *testing.T) {
	t.Parallel()
	c := codecNamed(t, "proto")
	good, err := proto.Marshal(&clavigerv1.CreateGrantRequest{Principal: "p", Conditions: &clavigerv1.Conditions{
		Rate: &clavigerv1.Rate{PerSecond: 1}, Template: &clavigerv1.Template{Kind: &clavigerv1.Template_Ssh{Ssh: &clavigerv1.SshTemplate{CriticalOptions: map[string]string{"a": "b"}}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	below := func(inner []byte) []byte { // in the conditions
		return protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), inner)
	}
	deep := []byte{}
	for range 200 {
		deep = protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), deep)
	}
	for name, tc := range map[string]struct {
		body []byte
		says string
	}{
		"good":                {good, "ok"},
		"empty":               {nil, "ok"},
		"unknown field":       {append(good[:len(good):len(good)], unknown...), "body is not"},
		"unknown field below": {below(unknown), "body is not"},
		"unknown in a rate":   {below(protowire.AppendBytes(protowire.AppendTag(nil, 9, protowire.BytesType), unknown)), "body is not"},
		"cut off":             {good[:len(good)-1], "body is not"},
		"invalid UTF-8":       {[]byte{0x0a, 0x01, 0xff}, "body is not"},
		"deep":                {deep, "body is not"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m clavigerv1.CreateGrantRequest
			if err := c.Unmarshal(tc.body, &m); err != nil {
				t.Fatalf("unmarshal failed at once: %v", err)
			}
			checkDecoded(t, &m, tc.says)
		})
	}
}

func TestUnknownInListsAndMaps(t *testing.T) {
	t.Parallel()
	m := &clavigerv1.VerifyRequest{Items: []*clavigerv1.Signed{{}, {}}}
	checkDecoded(t, m, "ok")
	m.Items[1].ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	checkDecoded(t, m, "body is not")
}

func BenchmarkDecoded(b *testing.B) {
	m := &clavigerv1.SignRequest{Key: "prod/a/b", Inputs: [][]byte{[]byte("message")}}
	for b.Loop() {
		if decoded(m) != nil {
			b.Fatal("refused")
		}
	}
}
