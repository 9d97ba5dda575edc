package proxy_test

import (
	"encoding/hex"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"claviger.dev/internal/proxy"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

func timeTo(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// escape writes a token as a browser sends it back to a framework that escapes.
func escape(s string) string {
	return strings.NewReplacer("%", "%25", ";", "%3B", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D").Replace(s)
}

func unescape(t testing.TB, s string) string {
	t.Helper()
	out, err := url.PathUnescape(s)
	check(t, err)
	return out
}

// changed returns a text with one character in its middle changed.
func changed(s string) string {
	i := len(s) / 2
	c := byte('A')
	if s[i] == c {
		c = 'B'
	}
	return s[:i] + string(c) + s[i+1:]
}

// pairOf reads "decryption validation", each in hex.
func pairOf(t *testing.T, text string) state.User {
	t.Helper()
	first, second, _ := strings.Cut(text, " ")
	decryption, err := hex.DecodeString(first)
	check(t, err)
	validation, err := hex.DecodeString(second)
	check(t, err)
	return proxy.SecretOf(recipe.ASPNET, recipe.Pair(decryption, validation))
}
