package claviger_test

import (
	"strings"
	"testing"
	"time"

	"claviger.dev"
)

func TestAudiencePatterns(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, audience string
		want              bool
	}{
		{"https://api.example", "https://api.example", true},
		{"https://api.example", "https://api.example/", false},
		{"https://api.example/*", "https://api.example/orders", true},
		{"https://api.example/*", "https://api.example", false},
		{"https://api.example/*", "https://api.example.evil/", false},
		{"*", "anything", true},
		{"*", "", false},
		{"", "", false},
	} {
		if got := claviger.MatchAudience([]string{test.pattern}, test.audience); got != test.want {
			t.Errorf("%q matches %q: %v, want %v", test.pattern, test.audience, got, test.want)
		}
	}
	if claviger.MatchAudience(nil, "x") {
		t.Error("no pattern matches something")
	}
	for pattern, ok := range map[string]bool{
		"https://api.example": true, "https://api.example/*": true, "*": true, "urn:orders": true,
		"": false, "https://api.example*": false, "https://*.example/": false, "https://*/*": false, "**": false,
		strings.Repeat("x", claviger.MaxAudienceLength+1): false,
	} {
		if err := claviger.ParseAudience(pattern); (err == nil) != ok {
			t.Errorf("%.40q: %v, want it accepted: %v", pattern, err, ok)
		}
	}
}

func TestSessionLimits(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := claviger.Session{Created: now, Ends: now.Add(2 * time.Hour), Idle: claviger.Duration(time.Hour),
		Audiences: []string{"https://api.example/*"}, Methods: []string{"GET"}}
	for _, test := range []struct {
		name       string
		used, want time.Duration
	}{{"never", 0, time.Hour}, {"once", 30 * time.Minute, 90 * time.Minute}, {"late", 90 * time.Minute, 2 * time.Hour}} {
		if s.LastUsed = now.Add(test.used); !s.IdleEnd().Equal(now.Add(test.want)) {
			t.Errorf("%s: ends at %v, want %v after its start", test.name, s.IdleEnd(), test.want)
		}
	}
	for name, test := range map[string]struct {
		audience, method string
		want             bool
	}{
		"both": {"https://api.example/a", "GET", true}, "no method": {"https://api.example/a", "", true},
		"another method": {"https://api.example/a", "POST", false}, "another audience": {"https://x.example/a", "GET", false}, "none": {"", "GET", false},
	} {
		if got := s.Permits(test.audience, test.method); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	l := claviger.ClientLimits{Access: claviger.Duration(48 * time.Hour), Session: claviger.Duration(10 * time.Minute)}.WithDefaults()
	if l.Access != claviger.Duration(claviger.MaxAccess) || l.SessionIdle != claviger.Duration(10*time.Minute) || l.SourceChanges != claviger.SourceAllowed ||
		l.Refresh != claviger.Duration(claviger.DefaultRefresh) {
		t.Errorf("limits as they hold: %+v", l)
	}
	if text := claviger.BindingText(claviger.BindingScript); !strings.Contains(text, "holds the key in clear") {
		t.Errorf("the binding of a browser's key reads %q", text)
	}
}
