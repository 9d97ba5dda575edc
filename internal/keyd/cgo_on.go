//go:build cgo

package keyd

const builtWithC = true
