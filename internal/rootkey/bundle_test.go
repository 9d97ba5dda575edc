package rootkey_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"claviger.dev/internal/rootkey"
	"github.com/google/go-cmp/cmp"
)

func sample() *rootkey.Bundle {
	b := &rootkey.Bundle{Threshold: 2}
	copy(b.Identity[:], bytes.Repeat([]byte{0x11}, 32))
	for i := range 3 {
		g := rootkey.Generation{Number: uint32(i + 1)}
		copy(g.Key[:], bytes.Repeat([]byte{byte(0x20 + i)}, 32))
		b.Generations = append(b.Generations, g)
	}
	b.Joiners = [][32]byte{{1}, {2}}
	b.Holders = []rootkey.Holder{{Name: "ann", Recipient: "age1aaa"}, {Name: "bob", Recipient: "age1bbb"}, {Name: "eve", Recipient: "age1ccc"}}
	return b
}

// plain strips the formatter that hides secrets from cmp too.
func plain(b *rootkey.Bundle) map[string]any {
	gens := map[uint32][32]byte{}
	for _, g := range b.Generations {
		gens[g.Number] = g.Key
	}
	return map[string]any{"identity": b.Identity, "generations": gens, "joiners": append([][32]byte{}, b.Joiners...), "holders": append([]rootkey.Holder{}, b.Holders...), "threshold": b.Threshold}
}

func TestBundleRoundTrip(t *testing.T) {
	t.Parallel()
	want := sample()
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := rootkey.DecodeBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain(want), plain(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got.Zero()
	if got.Identity != [32]byte{} || got.Generations[0].Key != [32]byte{} {
		t.Error("a zeroed bundle still holds a secret")
	}
}

func TestBundleIsStrict(t *testing.T) {
	t.Parallel()
	data, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if _, err := rootkey.DecodeBundle(data[:n]); err == nil {
			t.Fatalf("accepted after a cut at %d", n)
		}
	}
	if _, err := rootkey.DecodeBundle(append(bytes.Clone(data), 0)); err == nil {
		t.Error("accepted with a byte behind it")
	}
	for i := range data {
		for _, flip := range []byte{1, 0x80, 0xff} {
			other := bytes.Clone(data)
			other[i] ^= flip
			b, err := rootkey.DecodeBundle(other)
			if err != nil {
				continue
			}
			if again, err := b.Encode(); err != nil || !bytes.Equal(again, other) {
				t.Fatalf("byte %d flipped by %#x: accepted but encodes otherwise (%v)", i, flip, err)
			}
		}
	}
}

func TestBundleRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*rootkey.Bundle){
		"no generation":         func(b *rootkey.Bundle) { b.Generations = nil },
		"generation zero":       func(b *rootkey.Bundle) { b.Generations[0].Number = 0 },
		"generations unordered": func(b *rootkey.Bundle) { b.Generations[2].Number = 1 },
		"too many generations": func(b *rootkey.Bundle) {
			for n := range rootkey.MaxGenerations {
				b.Generations = append(b.Generations, rootkey.Generation{Number: uint32(10 + n)})
			}
		},
		"joiner twice":         func(b *rootkey.Bundle) { b.Joiners[1] = b.Joiners[0] },
		"holder twice":         func(b *rootkey.Bundle) { b.Holders[1].Name = "ann" },
		"holder without name":  func(b *rootkey.Bundle) { b.Holders[0].Name = "" },
		"name with newline":    func(b *rootkey.Bundle) { b.Holders[0].Name = "a\nb" },
		"name not UTF-8":       func(b *rootkey.Bundle) { b.Holders[0].Name = "a\xff" },
		"long name":            func(b *rootkey.Bundle) { b.Holders[2].Name = strings.Repeat("z", 65) },
		"recipient of ssh":     func(b *rootkey.Bundle) { b.Holders[0].Recipient = "ssh-ed25519" },
		"threshold of one":     func(b *rootkey.Bundle) { b.Threshold = 1 },
		"threshold over count": func(b *rootkey.Bundle) { b.Threshold = 4 },
		"threshold, no holder": func(b *rootkey.Bundle) { b.Holders = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := sample()
			change(b)
			if _, err := b.Encode(); err == nil {
				t.Error("encoded")
			}
		})
	}
}

func TestBundleIsNotPrinted(t *testing.T) {
	t.Parallel()
	b := sample()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, v := range []any{b, *b, b.Generations, b.Generations[0]} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, "17") || strings.Contains(s, "0x11") || strings.Contains(s, "1111") || strings.Contains(s, "2020") || strings.Contains(s, "32 32") {
				t.Errorf("%s of %T printed a secret: %s", verb, v, s)
			}
		}
	}
	if out, err := json.Marshal(b); err == nil {
		t.Errorf("encoded as JSON: %s", out)
	}
}

func TestExchange(t *testing.T) {
	t.Parallel()
	for _, m := range []rootkey.Message{
		{Kind: rootkey.Deliver, Bundle: sample()},
		{Kind: rootkey.Exposed, Bundle: sample(), Slots: "1 file, 2 tpm (Maker, SOFTWARE)"},
		{Kind: rootkey.Join, Pin: [32]byte{7}},
		{Kind: rootkey.Restore},
		{Kind: rootkey.Done},
	} {
		var wire bytes.Buffer
		if err := rootkey.Send(&wire, m); err != nil {
			t.Fatal(err)
		}
		got, err := rootkey.Receive(&wire)
		if err != nil {
			t.Fatal(err)
		}
		if got.Kind != m.Kind || got.Slots != m.Slots || got.Pin != m.Pin || (got.Bundle == nil) != (m.Bundle == nil) || wire.Len() != 0 {
			t.Errorf("%c became %c", m.Kind, got.Kind)
		}
		if m.Bundle != nil {
			if diff := cmp.Diff(plain(m.Bundle), plain(got.Bundle)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	}
}

func TestExchangeRefuses(t *testing.T) {
	t.Parallel()
	for name, wire := range map[string]string{
		"nothing":         "",
		"no length":       "\x00\x00",
		"empty":           "\x00\x00\x00\x00",
		"huge":            "\xff\xff\xff\xffD",
		"cut":             "\x00\x00\x00\x05E",
		"unknown kind":    "\x00\x00\x00\x01Q",
		"done with body":  "\x00\x00\x00\x02Ex",
		"short pin":       "\x00\x00\x00\x02Jx",
		"long pin":        "\x00\x00\x00\x22J" + strings.Repeat("x", 33),
		"damaged bundle":  "\x00\x00\x00\x04D\x00\x00\x01",
		"version unknown": "\x00\x00\x00\x04D\x00\x00\x09",
		"no description":  "\x00\x00\x00\x02D\x00",
		"cut description": "\x00\x00\x00\x05D\x00\x02ab"[:9],
		"control in it":   described("a\nb"),
		"huge one":        described(strings.Repeat("a", 901)),
	} {
		if _, err := rootkey.Receive(strings.NewReader(wire)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, m := range []rootkey.Message{{}, {Kind: rootkey.Deliver}, {Kind: rootkey.Join, Bundle: sample()}, {Kind: rootkey.Done, Bundle: sample()},
		{Kind: rootkey.Deliver, Bundle: sample(), Slots: "a\nb"}, {Kind: rootkey.Deliver, Bundle: sample(), Slots: strings.Repeat("a", 901)}} {
		if err := rootkey.Send(&bytes.Buffer{}, m); err == nil {
			t.Errorf("sent %c", m.Kind)
		}
	}
}

// described is a message with a good bundle and the description.
func described(text string) string {
	bundle, _ := sample().Encode()
	body := append(binary.BigEndian.AppendUint16([]byte{'D'}, uint16(len(text))), text...)
	body = append(body, bundle...)
	return string(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
}

func FuzzBundle(f *testing.F) {
	data, _ := sample().Encode()
	f.Add(data)
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := rootkey.DecodeBundle(data)
		if err != nil {
			return
		}
		again, err := b.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("accepted %x, encodes to %x (%v)", data, again, err)
		}
	})
}
