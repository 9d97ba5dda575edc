package claviger

// Verdict says what became of an attempt to take a key.
type Verdict string

// The verdicts.
const (
	Held         Verdict = "held"          // the attempt failed, and the same on a weak key succeeded
	Leaked       Verdict = "leaked"        // the attempt gave the key, or the means to make it readable
	NotAttempted Verdict = "not attempted" // Reason says why
	Broken       Verdict = "broken"        // the attempt failed on the weak key too, so it shows nothing
)

// Attempt is one export path that was tried on one version, or on the process
// or device that holds it.
type Attempt struct {
	Probe   string  `json:"probe"`             // stable name, such as "soft.proc-mem" or "tpm.duplicate-policy"
	Tried   string  `json:"tried"`             // what was attempted
	Result  string  `json:"result,omitempty"`  // what came back; never a byte of a key
	Verdict Verdict `json:"verdict"`           //
	Control string  `json:"control,omitempty"` // what the same attempt gave on a deliberately weak key or process of its own
	Reason  string  `json:"reason,omitempty"`  // of not attempted and broken
}

// Settle sets the verdict: an attempt whose control did not leak shows nothing,
// unless it leaked all the same.
func (a *Attempt) Settle(leaked, controlLeaked bool) {
	switch {
	case leaked:
		a.Verdict = Leaked
	case controlLeaked:
		a.Verdict = Held
	default:
		a.Verdict, a.Reason = Broken, "the control did not leak"
	}
}
