package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
)

// A server that was taken over gives a holder a genuine one-time key for an
// import in place of a challenge.
func TestShareIsSealedToAChallengeAlone(t *testing.T) {
	t.Parallel()
	identity := ed25519.NewKeyFromSeed(make([]byte, 32))
	for purpose, wanted := range map[string]bool{onetime.Share: true, onetime.Import: false} {
		key := onetime.Key{ID: "id", Purpose: purpose, Expires: time.Now().Add(time.Minute).Truncate(time.Second), Identity: identity.Public().(ed25519.PublicKey)}
		if purpose == onetime.Import {
			key.Binding = frames.Binding{KeyID: claviger.NewID(time.Now()), Version: 1, Algorithm: claviger.HMACSHA256, Recipe: claviger.PlainRecipe, Origin: claviger.Imported}
		}
		key.Signature = ed25519.Sign(identity, key.Statement())
		text, err := json.Marshal(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readChallenge(text, sha256.Sum256(key.Identity)); (err == nil) != wanted {
			t.Errorf("%s: %v", purpose, err)
		}
		if _, err := readChallenge(text, [32]byte{1}); err == nil {
			t.Errorf("%s: another pin was accepted", purpose)
		}
	}
}
