package server

import (
	"fmt"
	"regexp"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"claviger.dev"
)

// maxDepth is how deep a message may be nested. The deepest request that there
// is, a grant with a template, has five levels.
const maxDepth = 16

// codec decodes strictly: fields that are not known, members that stand twice,
// deep nesting and strings that are not UTF-8 are refused, in JSON and in
// binary alike. A server that dropped what it does not know would make a grant
// without the condition that a newer client asked for.
//
// Connect gives an error of a codec a text and a code but neither hint nor
// metadata. So a message that does not decode is handed on with a mark among
// its unknown fields, and the interceptor answers for it, see [decoded].
type codec struct {
	name      string
	marshal   func(dst []byte, m proto.Message) ([]byte, error)
	unmarshal func(data []byte, m proto.Message) error
}

// codecList holds the encodings of the API, under every name that Connect
// looks for.
func codecList() []codec {
	return []codec{
		{name: "proto", marshal: proto.MarshalOptions{}.MarshalAppend, unmarshal: proto.UnmarshalOptions{RecursionLimit: maxDepth}.Unmarshal},
		{name: "json", marshal: toJSON, unmarshal: fromJSON},
		{name: "json; charset=utf-8", marshal: toJSON, unmarshal: fromJSON},
	}
}

func fromJSON(data []byte, m proto.Message) error {
	return protojson.UnmarshalOptions{RecursionLimit: maxDepth}.Unmarshal(data, m)
}

func toJSON(dst []byte, m proto.Message) ([]byte, error) {
	return protojson.MarshalOptions{}.MarshalAppend(dst, m)
}

// Name implements [connect.Codec].
func (c codec) Name() string { return c.name }

// IsBinary reports whether the encoding is not text.
func (c codec) IsBinary() bool { return c.name == "proto" }

// Marshal implements [connect.Codec].
func (c codec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalStable is Marshal: no method of the API answers to GET.
func (c codec) MarshalStable(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend is Marshal into a buffer of the caller.
func (c codec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("encode %T: not a protobuf message", message)
	}
	return c.marshal(dst, m)
}

// Unmarshal implements [connect.Codec].
func (c codec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("decode %T: not a protobuf message", message)
	}
	if err := c.unmarshal(data, m); err != nil {
		proto.Reset(m)
		m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), complaint(err.Error())))
	}
	return nil
}

// complaints are the parts of protojson's texts that name a place or a member
// and quote no value of the request.
var complaints = regexp.MustCompile(`line \d+:\d+|(?:unknown|duplicate) field "[A-Za-z0-9_.\[\]]{1,64}"`)

func complaint(message string) string {
	text := ""
	for _, part := range complaints.FindAllString(message, 2) {
		text += ", " + part
	}
	return text
}

// decoded returns what was wrong with a request that a codec handed on.
func decoded(message any) error {
	m, ok := message.(proto.Message)
	if !ok || !hasUnknown(m.ProtoReflect()) {
		return nil
	}
	return malformed(string(m.ProtoReflect().GetUnknown()))
}

// malformed is the error for a body that did not decode, of which the decoder
// said why.
func malformed(why string) *claviger.Error {
	return claviger.Errorf(claviger.Invalid, "the body is not the message that this method takes"+complaint(why),
		"send exactly the fields of the method, each once, as UTF-8; bytes are base64 in JSON")
}

// hasUnknown reports whether a message holds a field that its type has not.
func hasUnknown(m protoreflect.Message) bool {
	found := len(m.GetUnknown()) > 0
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				found = found || hasUnknown(v.Message())
				return !found
			})
		case field.IsList() && field.Message() != nil:
			for i := 0; i < value.List().Len() && !found; i++ {
				found = hasUnknown(value.List().Get(i).Message())
			}
		case !field.IsMap() && !field.IsList() && field.Message() != nil:
			found = found || hasUnknown(value.Message())
		}
		return !found
	})
	return found
}
