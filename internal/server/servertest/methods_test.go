package servertest_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server/servertest"
)

// forStrangers are the methods that ask for no principal.
const forStrangers = "Enroll BeginEnroll FinishEnroll BeginRenew FinishRenew Admit"

// everyMethod is the whole API as it is described; a new service is in it.
func everyMethod(t *testing.T) (all []protoreflect.MethodDescriptor) {
	t.Helper()
	protoregistry.GlobalFiles.RangeFilesByPackage(clavigerv1.File_claviger_v1_keys_proto.Package(), func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			list := file.Services().Get(i).Methods()
			for j := range list.Len() {
				all = append(all, list.Get(j))
			}
		}
		return true
	})
	seen := map[string]bool{}
	for _, m := range all {
		seen[string(m.Parent().Name())] = true
	}
	for _, service := range []string{"KeyService", "StateService", "SessionService", "ClientService", "ReceiverService"} {
		if !seen[service] {
			t.Fatalf("the methods of %s are not among the %d that were found", service, len(all))
		}
	}
	return all
}

func procedureOf(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

// shape is what a message is filled with, for every field of that kind.
type shape struct {
	name   string
	text   string
	bytes  []byte
	number uint64
	list   int // entries of a list
}

func shapes() []shape {
	return []shape{
		{"nothing", "", nil, 0, 0},
		{"paths", "../../etc/passwd\x00", []byte{0xff}, 1, 1},
		{"wildcards", "*", []byte("{}"), 1 << 31, 40},
		{"ids of nobody", "00000000000000000000000000", make([]byte, 32), 2, 2},
		{"long", repeat("a/", 8<<10), make([]byte, 8<<10), 1<<64 - 1, 3},
	}
}

// fill fills a message, and those in it up to a depth.
func (s shape) fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
		case f.IsList():
			list := m.Mutable(f).List()
			for range s.list {
				if v, ok := s.value(f, list.NewElement, depth); ok {
					list.Append(v)
				}
			}
		default:
			if v, ok := s.value(f, func() protoreflect.Value { return m.NewField(f) }, depth); ok {
				m.Set(f, v)
			}
		}
	}
}

func (s shape) value(f protoreflect.FieldDescriptor, fresh func() protoreflect.Value, depth int) (protoreflect.Value, bool) {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(s.text), true
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(s.bytes), true
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(s.number&1 == 1), true
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(s.number)), true
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(s.number), true
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(s.number)), true
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(s.number)), true
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(-float64(s.number)), true
	case protoreflect.MessageKind:
		v := fresh()
		if depth > 0 && s.number > 0 {
			s.fill(v.Message(), depth-1)
		}
		return v, s.number > 0
	}
	return protoreflect.Value{}, false
}

// call sends a message as it is sent on the wire.
func call(t *testing.T, c *servertest.Client, m protoreflect.MethodDescriptor, message proto.Message) answer {
	t.Helper()
	raw, err := proto.MarshalOptions{AllowPartial: true}.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	kind, body := "application/proto", io.Reader(bytes.NewReader(raw))
	if m.IsStreamingServer() {
		kind, body = "application/connect+proto", io.MultiReader(bytes.NewReader(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw)))), body)
	}
	return send(t, c, "POST", procedureOf(m), map[string]string{"Content-Type": kind, "Connect-Protocol-Version": "1"}, body)
}

// TestHostileArguments calls every method of the API with what none is made
// for. None fails from inside, and nothing is there afterwards.
func TestHostileArguments(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	local := s.Local(t)
	methods := everyMethod(t)
	for _, m := range methods {
		for _, shape := range shapes() {
			if m.Name() == "Rewrap" || m.IsStreamingServer() && shape.number > 0 {
				continue // it takes no argument and is the work of minutes; a stream refuses in its own words
			}
			message := dynamicpb.NewMessage(m.Input())
			shape.fill(message, 3)
			began := time.Now()
			got := call(t, local, m, message)
			if code := claviger.Code(got.header.Get("Claviger-Code")); got.status >= 500 && got.status != 501 && code != claviger.Unavailable || code == claviger.Internal {
				t.Errorf("%s with %s: %d %s %.200q", procedureOf(m), shape.name, got.status, code, got.body)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("%s with %s took %v", procedureOf(m), shape.name, took)
			}
		}
	}
	page := scrape(t, s)
	for _, m := range methods {
		if m.Name() != "Rewrap" && !strings.Contains(page, fmt.Sprintf("method=%q", procedureOf(m))) {
			t.Errorf("%s was not reached", procedureOf(m))
		}
	}
	ctx := t.Context()
	keys, err1 := local.ListKeys(ctx, connect.NewRequest(&clavigerv1.ListKeysRequest{}))
	clients, err2 := local.ListClients(ctx, connect.NewRequest(&clavigerv1.ListClientsRequest{}))
	sessions, err3 := local.ListSessions(ctx, connect.NewRequest(&clavigerv1.ListSessionsRequest{IncludeEnded: true}))
	receivers, err4 := local.ListReceivers(ctx, connect.NewRequest(&clavigerv1.ListReceiversRequest{}))
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := len(keys.Msg.Keys) + len(clients.Msg.Clients) + len(sessions.Msg.Sessions) + len(receivers.Msg.Receivers); n != 0 {
		t.Errorf("after all that there are %v %v %v %v", keys.Msg, clients.Msg, sessions.Msg, receivers.Msg)
	}
}

// TestStrangersReachNothing calls every method without a certificate.
func TestStrangersReachNothing(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	remote := s.Remote(t, nil)
	for _, m := range everyMethod(t) {
		if strings.Contains(" "+forStrangers+" ", " "+string(m.Name())+" ") {
			continue
		}
		got := call(t, remote, m, dynamicpb.NewMessage(m.Input()))
		if m.IsStreamingServer() {
			if !bytes.Contains(got.body, []byte(`"unauthenticated"`)) {
				t.Errorf("%s: %d %.200q, want unauthenticated", procedureOf(m), got.status, got.body)
			}
			continue
		}
		if got.status != 401 || got.header.Get("Claviger-Code") != "unauthenticated" {
			t.Errorf("%s: %d %v, want unauthenticated", procedureOf(m), got.status, got.header)
		}
	}
	serving(t, s)
}
