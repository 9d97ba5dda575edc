//go:build goexperiment.runtimesecret

package hazmat

import "runtime/secret"

// SecretErasure says whether Do erases what it left behind: true in a build
// with GOEXPERIMENT=runtimesecret.
const SecretErasure = true

// Do calls f, then erases the registers and stack that f used; heap memory
// that f allocated is erased when the garbage collector finds it unreachable,
// which Collect hastens. What f hands out through variables of the caller
// lives on: results may, copies of secrets must not. Goroutines started in f
// are not covered. A panic in f passes through.
func Do(f func()) { secret.Do(f) }
