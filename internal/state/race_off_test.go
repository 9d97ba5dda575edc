//go:build !race

package state_test

const slowed = false
