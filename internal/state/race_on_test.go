//go:build race

package state_test

// slowed says that the race detector is at work, under which times mean nothing.
const slowed = true
