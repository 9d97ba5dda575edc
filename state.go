package claviger

import "time"

// State is where a version stands in its life (SP 800-57 part 1, section 7).
type State string

// The states.
const (
	PreActivation State = "pre-activation" // made, not yet used
	Active        State = "active"         // protects and processes
	Suspended     State = "suspended"      // processes only where the key's policy says so
	Deactivated   State = "deactivated"    // processes only
	Compromised   State = "compromised"    // processes only where the key's policy says so
	Destroyed     State = "destroyed"      // gone; a tombstone remains
)

// Transition is one change of state that happened.
type Transition struct {
	From   State     `json:"from,omitempty"` // empty at creation
	To     State     `json:"to"`
	At     time.Time `json:"at"`
	By     ID        `json:"by,omitempty"` // principal
	Reason string    `json:"reason,omitempty"`
}

// transitions maps each permitted change to its number in SP 800-57 part 1,
// section 7.
var transitions = map[[2]State]int{
	{"", PreActivation}:          1,
	{PreActivation, Destroyed}:   2,
	{PreActivation, Compromised}: 3,
	{PreActivation, Active}:      4,
	{Active, Destroyed}:          5,
	{Active, Compromised}:        6,
	{Active, Suspended}:          7,
	{Active, Deactivated}:        8,
	{Suspended, Destroyed}:       9,
	{Suspended, Active}:          10,
	{Suspended, Compromised}:     11,
	{Suspended, Deactivated}:     12,
	{Deactivated, Destroyed}:     13,
	{Deactivated, Compromised}:   14,
	{Compromised, Destroyed}:     15,
}

// TransitionNumber returns the number that SP 800-57 part 1 gives the change,
// or 0 when it is not permitted.
func TransitionNumber(from, to State) int { return transitions[[2]State{from, to}] }

// States lists all states in the order of a life.
func States() []State {
	return []State{PreActivation, Active, Suspended, Deactivated, Compromised, Destroyed}
}
