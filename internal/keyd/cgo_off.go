//go:build !cgo

package keyd

// builtWithC reports whether the C runtime may be linked. It starts threads by
// system calls that the filter refuses, so such a build would die in the
// middle of its work.
const builtWithC = false
