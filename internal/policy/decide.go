package policy

import (
	"time"

	"claviger.dev"
)

// Decide returns the decision on one request.
func (e *Engine) Decide(in Input) Decision {
	return Decision{Code: claviger.Unavailable, Reason: ReasonNoGrant}
}

// PermitState returns why the state, age or custody level of a version does not
// permit an operation, as one of the Reason constants, or "" when it does.
func PermitState(key *claviger.Key, v *claviger.Version, op claviger.Operation, now time.Time) string {
	return ReasonState
}
