// Package p11 is what other programs need to speak of PKCS#11 tokens and to
// claviger-p11d: RFC 7512 URIs, the talk about a root slot's secret, and the
// lines of a probe.
//
// It owns these forms and parses them strictly. It promises to load no module
// and to open no file; that is the work of package p11d, the only one with C
// in it.
package p11

import (
	claviger "claviger.dev"
)

// Target is one line to `claviger-p11d -probe`: a version whose key is
// attacked. KeyID to Origin are its binding.
type Target struct {
	Key         string             `json:"key"` // as reports name it
	KeyID       claviger.ID        `json:"key_id"`
	Version     uint32             `json:"version"`
	Algorithm   claviger.Algorithm `json:"algorithm"`
	Recipe      string             `json:"recipe"`
	Origin      claviger.Origin    `json:"origin"`
	Reference   string             `json:"reference"`        // claviger.Version's: an RFC 7512 URI
	Public      []byte             `json:"public,omitempty"` // raw public key; empty for a symmetric key
	Fingerprint string             `json:"fingerprint"`      // 64 hex digits
}

// Result is one line from `claviger-p11d -probe`: what became of a target.
type Result struct {
	Key      string             `json:"key"`
	Version  uint32             `json:"version"`
	Device   claviger.Device    `json:"device"`
	Level    claviger.Level     `json:"level,omitempty"`
	Finding  string             `json:"finding,omitempty"` // the worst; "" when there is none
	Attempts []claviger.Attempt `json:"attempts,omitempty"`
	Error    string             `json:"error,omitempty"` // the key could not be attacked at all
}

// MaxTargets is how many lines one probe takes.
const MaxTargets = 100_000
