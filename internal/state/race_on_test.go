//go:build race

package state_test

// slowed says that the race detector is at work: fewer shapes are tried.
const slowed = true
