package proxy

import "claviger.dev/internal/recipe"

// SecretOf is a secret with material of a test's choosing.
func SecretOf(set recipe.Set, material []byte) *secret {
	return &secret{set: set, material: material, keys: map[recipe.Recipe][]byte{}}
}
