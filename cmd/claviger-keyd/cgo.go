//go:build cgo

package main

// withCgo: the C library starts threads with system calls that the filter
// refuses, and such a process would die at its first burst of work.
const withCgo = true
