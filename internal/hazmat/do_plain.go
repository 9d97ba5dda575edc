//go:build !goexperiment.runtimesecret

package hazmat

// SecretErasure says whether Do erases what it left behind: false in a build
// without GOEXPERIMENT=runtimesecret.
const SecretErasure = false

// Do calls f and erases nothing: this build has no runtime/secret, and copies
// that the standard library makes of a key may stay on the heap.
func Do(f func()) { f() }
