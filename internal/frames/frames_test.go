package frames_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/recipe"
)

var binding = frames.Binding{
	KeyID: claviger.NewID(time.Unix(1e9, 0)), Version: 3, Algorithm: claviger.ECDSAP256,
	Recipe: claviger.PlainRecipe, Origin: claviger.Generated,
}

var use = frames.Use{Slot: frames.Slot{Epoch: 1 << 63, Number: 7}, Fingerprint: claviger.Fingerprint{1, 31: 2}}

// requests and responses have one of each verb.
func requests() []frames.Request {
	return []frames.Request{
		&frames.IdentityRequest{}, &frames.GenerateRequest{Binding: binding},
		&frames.OneTimeKeyRequest{Purpose: "import", Binding: binding},
		&frames.AdoptRequest{Binding: binding, OneTime: "abc", Sealed: []byte("sealed")},
		&frames.LoadRequest{Binding: binding, Blob: []byte("blob")}, &frames.UnloadRequest{Slot: use.Slot},
		&frames.SignRequest{Use: use, Prehashed: true, Inputs: [][]byte{[]byte("a"), nil}},
		&frames.MACRequest{Use: use, Inputs: [][]byte{nil}},
		&frames.VerifyMACRequest{Use: use, Inputs: [][]byte{[]byte("a")}, MACs: [][]byte{[]byte("b")}},
		&frames.SealRequest{Use: use, Items: []frames.Plain{{Plaintext: []byte("p"), AssociatedData: []byte("a")}, {}}},
		&frames.OpenRequest{Use: use, Items: []frames.Sealed{{Sealed: []byte("p"), AssociatedData: []byte("a")}}},
		&frames.RewrapRequest{Binding: binding, Blob: []byte("blob")}, &frames.SharesRequest{},
		&frames.VerifySharesRequest{OneTime: "abc", Sealed: [][]byte{[]byte("s")}},
		&frames.RestoreRequest{OneTime: "abc", Sealed: [][]byte{[]byte("s")}}, &frames.JoinKeyRequest{},
		&frames.JoinRequest{Wrapped: []byte("w"), Identity: []byte("i")}, &frames.AdmitRequest{JoinKey: []byte("j")},
		&frames.FindRequest{Use: use, Haystack: []byte("hay")}, &frames.EvidenceRequest{},
		&frames.RecipeRequest{Use: use, Recipe: recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: recipe.SHA1, MAC: recipe.SHA256,
			Salt: "s", Salt2: "t", Purposes: "p", Iterations: 1000, Size: 32}, Make: true, Items: []recipe.Item{{Data: []byte("d"), Aside: []byte("a")}, {}}},
		&frames.DeviceRequest{}, &frames.BindRequest{Binding: binding, Reference: "pkcs11:id=%01"},
		&frames.AttestRequest{Binding: binding, Blob: []byte("b"), Nonce: make([]byte, 32)}, &frames.EndorseRequest{},
		&frames.ActivateRequest{Credential: []byte("c"), Encrypted: []byte("e")}, &frames.ProbeRequest{Binding: binding, Blob: []byte("b"), Loud: true},
		&frames.DestroyRequest{Binding: binding, Blob: []byte("b")},
		&frames.SearchRequest{Items: []frames.Stored{{Binding: binding, Blob: []byte("b"), Fingerprint: use.Fingerprint}}, Haystack: []byte("hay")},
	}
}

func responses() []frames.Response {
	made := frames.Made{Blob: []byte("b"), Public: []byte("p"), Fingerprint: use.Fingerprint, Level: claviger.Isolated, Generation: 2, Reference: "pkcs11:id=%01"}
	f := use.Fingerprint
	return []frames.Response{
		&frames.IdentityResponse{Public: [32]byte{1}, Generation: 4, Joining: true}, &frames.GenerateResponse{Made: made},
		&frames.OneTimeKeyResponse{ID: "abc", Public: []byte("p"), Expires: 99, Identity: [32]byte{2}, Signature: [64]byte{3}},
		&frames.AdoptResponse{Made: made}, &frames.LoadResponse{Slot: use.Slot, Fingerprint: f}, &frames.UnloadResponse{},
		&frames.SignResponse{Fingerprint: f, Signatures: [][]byte{[]byte("s")}}, &frames.MACResponse{Fingerprint: f, MACs: [][]byte{[]byte("m")}},
		&frames.VerifyMACResponse{Fingerprint: f, Valid: []bool{true, false}}, &frames.SealResponse{Fingerprint: f, Sealed: [][]byte{[]byte("s")}},
		&frames.OpenResponse{Fingerprint: f, Opened: []frames.Opened{{OK: true, Plaintext: []byte("p")}, {}}},
		&frames.RewrapResponse{Blob: []byte("b"), Generation: 9}, &frames.SharesResponse{Threshold: 2, Shares: []frames.Share{{Holder: "ann", Encrypted: []byte("e")}}},
		&frames.VerifySharesResponse{Restores: true, Count: 3, Threshold: 2}, &frames.RestoreResponse{}, &frames.JoinKeyResponse{Public: []byte("p")},
		&frames.JoinResponse{}, &frames.AdmitResponse{Wrapped: []byte("w")}, &frames.FindResponse{Fingerprint: f, Found: true},
		&frames.EvidenceResponse{PID: 5, Level: claviger.Exposed, Measures: []frames.Measure{{Name: "n", State: "on", Detail: "d", Gain: "g"}}},
		&frames.DeviceResponse{Kind: claviger.TPM, Manufacturer: "m", Model: "o", Serial: "s", Firmware: "f", Software: true, Algorithms: []claviger.Algorithm{claviger.ECDSAP256}},
		&frames.BindResponse{Made: made},
		&frames.AttestResponse{KeyPublic: []byte("k"), Attest: []byte("a"), Signature: []byte("s"), AKPublic: []byte("p"), EKPublic: []byte("e"), EKCertificates: [][]byte{[]byte("c")}},
		&frames.EndorseResponse{AKPublic: []byte("p"), EKPublic: []byte("e"), EKCertificates: [][]byte{[]byte("c")}},
		&frames.ActivateResponse{Challenge: make([]byte, 32)},
		&frames.ProbeResponse{Level: claviger.Hardware, Finding: "f", Attempts: []claviger.Attempt{{Probe: "p", Tried: "t", Result: "r", Verdict: claviger.Held, Control: "c", Reason: "n"}}},
		&frames.DestroyResponse{Kept: true},
		&frames.RecipeResponse{Fingerprint: f, Results: []recipe.Result{{OK: true, Output: []byte("o")}, {OK: true}, {}}},
		&frames.SearchResponse{Found: []frames.Hit{{Item: 1, Offset: 2, Encoding: "hex"}}},
	}
}

func read(t testing.TB, wire []byte) frames.Frame {
	t.Helper()
	f, err := frames.Read(bufio.NewReader(bytes.NewReader(wire)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	verbs := map[frames.Verb]bool{}
	for _, want := range requests() {
		wire, err := frames.AppendRequest([]byte("before"), 1<<60, want)
		if err != nil {
			t.Fatal(err)
		}
		f := read(t, wire[6:])
		got, err := frames.ParseRequest(f)
		if err != nil {
			t.Fatalf("%T: %v", want, err)
		}
		if diff := cmp.Diff(want, got); diff != "" || f.ID != 1<<60 {
			t.Errorf("%T (-want +got):\n%s", want, diff)
		}
		verbs[want.Verb()] = true
	}
	for _, want := range responses() {
		wire, err := frames.AppendResponse(nil, 5, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := frames.ParseResponse(read(t, wire))
		if err != nil {
			t.Fatalf("%T: %v", want, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%T (-want +got):\n%s", want, diff)
		}
	}
	if len(verbs) != int(frames.VerbDestroy) || len(responses()) != len(verbs) {
		t.Errorf("%d verbs, %d responses are tested", len(verbs), len(responses()))
	}
}

func TestFault(t *testing.T) {
	t.Parallel()
	for _, code := range []claviger.Code{claviger.Invalid, claviger.Denied, claviger.NotFound, claviger.Conflict, claviger.Exhausted, claviger.TooLarge, claviger.Unsupported, claviger.Unavailable, claviger.Internal} {
		want := claviger.Errorf(code, "message", "hint")
		wire, err := frames.AppendFault(nil, 1, 200, frames.StatusOf(want), frames.Fault{Message: want.Msg, Hint: want.Hint})
		if err != nil {
			t.Fatal(err)
		}
		_, got := frames.ParseResponse(read(t, wire))
		if diff := cmp.Diff(error(want), got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	wire, err := frames.AppendFault(nil, 1, frames.VerbSign, frames.NotLoaded, frames.Fault{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := frames.ParseResponse(read(t, wire)); !errors.Is(err, frames.ErrNotLoaded) {
		t.Error(err)
	}
	for _, s := range []frames.Status{frames.OK, frames.Internal + 1, 255} {
		if _, err := frames.AppendFault(nil, 1, frames.VerbSign, s, frames.Fault{}); err == nil {
			t.Errorf("status %d of a fault was accepted", s)
		}
	}
	if frames.StatusOf(io.EOF) != frames.Internal {
		t.Error("an unknown error is not internal")
	}
}

// frame builds a frame by hand.
func frame(verb frames.Verb, status byte, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(10+len(body)))
	b = append(binary.BigEndian.AppendUint64(b, 1), byte(verb), status)
	return append(b, body...)
}

func TestRequestsAreStrict(t *testing.T) {
	t.Parallel()
	zeros := func(n int) string { return strings.Repeat("\x00", n) }
	head := zeros(16 + 32) // of a use
	for name, test := range map[string]struct {
		wire []byte
		want error
	}{
		"verb 0":                {frame(0, 0, ""), claviger.Unsupported},
		"verb after the last":   {frame(frames.VerbDestroy+1, 0, ""), claviger.Unsupported},
		"status":                {frame(frames.VerbIdentity, 1, ""), frames.ErrMalformed},
		"left over":             {frame(frames.VerbIdentity, 0, "x"), frames.ErrMalformed},
		"cut slot":              {frame(frames.VerbUnload, 0, zeros(15)), frames.ErrMalformed},
		"boolean 2":             {frame(frames.VerbSign, 0, head+"\x02\x00\x00\x00\x01"+zeros(4)), frames.ErrMalformed},
		"no items":              {frame(frames.VerbMAC, 0, head+zeros(4)), frames.ErrMalformed},
		"more items than bytes": {frame(frames.VerbMAC, 0, head+"\x00\x00\x03\xe8"+zeros(8)), frames.ErrMalformed},
		"too many items":        {frame(frames.VerbMAC, 0, head+"\x00\x00\x03\xe9"+zeros(4*1001)), claviger.TooLarge},
		"four billion items":    {frame(frames.VerbMAC, 0, head+"\xff\xff\xff\xff"), claviger.TooLarge},
		"item over 1 MiB":       {frame(frames.VerbMAC, 0, head+"\x00\x00\x00\x01\x00\x10\x00\x01"+zeros(1<<20+1)), claviger.TooLarge},
		"item longer than body": {frame(frames.VerbMAC, 0, head+"\x00\x00\x00\x01\x00\x00\x00\x09"+zeros(8)), frames.ErrMalformed},
		"codes for no input":    {frame(frames.VerbVerifyMAC, 0, head+"\x00\x00\x00\x02"+zeros(8)+"\x00\x00\x00\x01"+zeros(4)), frames.ErrMalformed},
	} {
		if _, err := frames.ParseRequest(read(t, test.wire)); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	for name, wire := range map[string][]byte{
		"plaintext unopened": frame(frames.VerbOpen, 0, zeros(32)+"\x00\x00\x00\x01\x00\x00\x00\x00\x01x"),
		"output not OK":      frame(frames.VerbRecipe, 0, zeros(32)+"\x00\x00\x00\x01\x00\x00\x00\x00\x01x"),
		"status 11":          frame(frames.VerbSign, 11, zeros(8)),
		"fault with more":    frame(frames.VerbSign, 2, zeros(9)),
	} {
		if _, err := frames.ParseResponse(read(t, wire)); !errors.Is(err, frames.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	good := frame(frames.VerbMAC, 0, "body")
	for n := 1; n < len(good); n++ {
		if _, err := frames.Read(bufio.NewReader(bytes.NewReader(good[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	if _, err := frames.Read(bufio.NewReader(bytes.NewReader(nil))); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}
	for _, length := range []uint32{0, 9, frames.MaxFrame + 1, 1<<32 - 1} {
		wire := append(binary.BigEndian.AppendUint32(nil, length), make([]byte, 64)...)
		if _, err := frames.Read(bufio.NewReader(bytes.NewReader(wire))); !errors.Is(err, frames.ErrMalformed) {
			t.Errorf("length %d: %v", length, err)
		}
	}
}

func TestCapsOfSender(t *testing.T) {
	t.Parallel()
	mib := make([]byte, frames.MaxInput)
	for name, r := range map[string]frames.Request{
		"items":    &frames.MACRequest{Use: use, Inputs: make([][]byte, frames.MaxItems+1)},
		"input":    &frames.MACRequest{Use: use, Inputs: [][]byte{append(mib, 0)}},
		"together": &frames.MACRequest{Use: use, Inputs: [][]byte{mib, mib, mib, mib, mib}},
		"text":     &frames.OneTimeKeyRequest{Purpose: strings.Repeat("x", 17)},
	} {
		got, err := frames.AppendRequest([]byte("kept"), 1, r)
		if claviger.CodeOf(err) != claviger.TooLarge || string(got) != "kept" {
			t.Errorf("%s: %v, %d bytes", name, err, len(got))
		}
	}
}

func TestBindingEncodingIsInjective(t *testing.T) {
	t.Parallel()
	seen := map[string]frames.Binding{}
	for _, change := range []func(*frames.Binding){
		func(*frames.Binding) {}, func(b *frames.Binding) { b.Version = 4 }, func(b *frames.Binding) { b.KeyID = "" },
		func(b *frames.Binding) { b.Recipe, b.Origin = b.Recipe+"g", b.Origin[1:] },
		func(b *frames.Binding) { b.Algorithm, b.Recipe = b.Algorithm+"p", b.Recipe[1:] },
		func(b *frames.Binding) { b.Origin = claviger.Imported }, func(b *frames.Binding) { *b = frames.Binding{} },
	} {
		b := binding
		change(&b)
		enc := string(b.Append(nil))
		if other, ok := seen[enc]; ok {
			t.Errorf("%+v and %+v have one encoding", b, other)
		}
		seen[enc] = b
	}
	if err := binding.Validate(); err != nil {
		t.Error(err)
	}
}

// TestResponsesCarryNothingPrivate names every field of every response. A
// field that is not in the list fails: whoever adds one says why it is safe.
func TestResponsesCarryNothingPrivate(t *testing.T) {
	t.Parallel()
	allowed := map[string]bool{}
	for field := range strings.FieldsSeq(`
		IdentityResponse.Public IdentityResponse.Generation IdentityResponse.Joining
		GenerateResponse.Made AdoptResponse.Made
		Made.Blob Made.Public Made.Fingerprint Made.Level Made.Generation
		OneTimeKeyResponse.ID OneTimeKeyResponse.Public OneTimeKeyResponse.Expires OneTimeKeyResponse.Identity OneTimeKeyResponse.Signature
		LoadResponse.Slot LoadResponse.Fingerprint Slot.Epoch Slot.Number
		SignResponse.Fingerprint SignResponse.Signatures MACResponse.Fingerprint MACResponse.MACs
		VerifyMACResponse.Fingerprint VerifyMACResponse.Valid SealResponse.Fingerprint SealResponse.Sealed
		OpenResponse.Fingerprint OpenResponse.Opened Opened.OK Opened.Plaintext
		RewrapResponse.Blob RewrapResponse.Generation
		SharesResponse.Threshold SharesResponse.Shares Share.Holder Share.Encrypted
		VerifySharesResponse.Restores VerifySharesResponse.Count VerifySharesResponse.Threshold
		JoinKeyResponse.Public AdmitResponse.Wrapped FindResponse.Fingerprint FindResponse.Found
		EvidenceResponse.PID EvidenceResponse.Level EvidenceResponse.Measures
		Measure.Name Measure.State Measure.Detail Measure.Gain Fault.Message Fault.Hint
		Made.Reference DeviceResponse.Kind DeviceResponse.Manufacturer DeviceResponse.Model DeviceResponse.Serial
		DeviceResponse.Firmware DeviceResponse.Software DeviceResponse.Algorithms BindResponse.Made
		AttestResponse.KeyPublic AttestResponse.Attest AttestResponse.Signature AttestResponse.AKPublic
		AttestResponse.EKPublic AttestResponse.EKCertificates
		EndorseResponse.AKPublic EndorseResponse.EKPublic EndorseResponse.EKCertificates ActivateResponse.Challenge
		ProbeResponse.Level ProbeResponse.Finding ProbeResponse.Attempts
		Attempt.Probe Attempt.Tried Attempt.Result Attempt.Verdict Attempt.Control Attempt.Reason
		RecipeResponse.Fingerprint RecipeResponse.Results Result.OK Result.Output
		DestroyResponse.Kept SearchResponse.Found Hit.Item Hit.Offset Hit.Encoding`) {
		allowed[field] = true
	}
	seen := map[string]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array:
			walk(typ.Elem())
		case reflect.Struct:
			for f := range typ.Fields() {
				name := typ.Name() + "." + f.Name
				if seen[name] = true; !allowed[name] {
					t.Errorf("%s may carry private material: it is not in the list", name)
				}
				walk(f.Type)
			}
		case reflect.Bool, reflect.String, reflect.Uint8, reflect.Uint32, reflect.Uint64:
		default:
			t.Errorf("%s has a kind that no response has", typ)
		}
	}
	for _, r := range append([]any{&frames.Fault{}}, anys(responses())...) {
		walk(reflect.TypeOf(r))
	}
	for name := range allowed {
		if !seen[name] {
			t.Errorf("%s is in the list and in no response", name)
		}
	}
}

func anys(in []frames.Response) (out []any) {
	for _, r := range in {
		out = append(out, r)
	}
	return out
}

func FuzzRequest(f *testing.F) {
	for _, r := range requests() {
		wire, err := frames.AppendRequest(nil, 3, r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		fr, err := frames.Read(bufio.NewReader(bytes.NewReader(wire)))
		if err != nil {
			return
		}
		r, err := frames.ParseRequest(fr)
		if err != nil {
			return
		}
		same(t, wire, func() ([]byte, error) { return frames.AppendRequest(nil, fr.ID, r) })
	})
}

func FuzzResponse(f *testing.F) {
	for _, r := range responses() {
		wire, err := frames.AppendResponse(nil, 3, r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Add(frame(frames.VerbSign, 2, "\x00\x00\x00\x01m\x00\x00\x00\x01h"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		fr, err := frames.Read(bufio.NewReader(bytes.NewReader(wire)))
		if err != nil {
			return
		}
		if fr.Status == frames.OK {
			if r, err := frames.ParseResponse(fr); err == nil {
				same(t, wire, func() ([]byte, error) { return frames.AppendResponse(nil, fr.ID, r) })
			}
			return
		}
		var fault frames.Fault
		if frames.ParseFault(fr, &fault) == nil {
			same(t, wire, func() ([]byte, error) { return frames.AppendFault(nil, fr.ID, fr.Verb, fr.Status, fault) })
		}
	})
}

// same checks that what was accepted encodes to itself.
func same(t *testing.T, wire []byte, encode func() ([]byte, error)) {
	t.Helper()
	again, err := encode()
	if err != nil || !bytes.HasPrefix(wire, again) || len(again) != int(binary.BigEndian.Uint32(wire))+4 {
		t.Fatalf("accepted %x, encodes to %x (%v)", wire, again, err)
	}
}
