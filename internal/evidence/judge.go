package evidence

import (
	"fmt"
	"slices"
	"strings"

	"claviger.dev"
)

// Proof is what the check of an attestation gave. Its zero value means that
// there was none.
type Proof struct {
	Certified bool   // by a restricted key of the TPM itself: the version lives there and cannot be duplicated
	Bound     bool   // that key was shown to live beside the endorsement key
	Root      string // the configured root to which the endorsement certificate chains; "" for none
	Test      bool   // that root is for tests and vouches for no hardware
	Software  bool   // the endorsement certificate is of a software TPM, whatever the device says of itself
	Exposes   bool   // what the check found means that a copy is, or can be made: a duplicable key, a TPM state that went back
	Finding   string // why it is not certified, or what else was seen; "" when nothing
}

// Case is everything that is known of one version.
type Case struct {
	Subject  Subject
	Device   claviger.Device // that holds it
	Reported claviger.Level  // what the custodian says of the version now
	Proof    Proof
	Attempts [][]claviger.Attempt
}

// The weights of findings, the worst first. Leaked and above mean exposed.
const (
	clean = iota
	software
	test
	broken
	uncertified
	unhardened
	leaked
)

// Judge returns the custody level that a case shows, and its worst finding, ""
// when there is none.
//
// Imported material, and material that leaked anywhere, is exposed. The word of
// the custodian is the most that any version reaches, but for a TPM that
// proves more: soft keys are isolated at best, p11 keys hardware, tpm keys
// hardware when they are certified and attested when, besides, the attestation
// key is bound to an endorsement key with a certificate of a configured root.
// A device that is software is isolated at best, unless a test root vouches for
// it. An attempt that is broken shows nothing, so what needs every attempt to
// hold (p11, tpm) is then no better than isolated.
func Judge(c Case) (claviger.Level, string) {
	worst, finding := clean, ""
	note := func(weight int, text string) {
		if weight > worst {
			worst, finding = weight, text
		}
	}
	if c.Subject.Origin != claviger.Generated {
		note(leaked, "imported: the material has been outside")
	}
	for _, list := range c.Attempts {
		for _, a := range list {
			switch {
			case a.Verdict == claviger.Leaked:
				note(leaked, a.Probe+" leaked: "+a.Result)
			case a.Verdict == claviger.NotAttempted, a.Verdict == claviger.Held && a.Control != "":
			case a.Verdict == claviger.Held:
				note(broken, a.Probe+" is broken: it held without a control")
			default:
				note(broken, a.Probe+" is broken: "+a.Reason)
			}
		}
	}
	best := claviger.Isolated
	switch c.Subject.Custodian {
	case claviger.Soft:
	case claviger.P11:
		best = claviger.Hardware
	case claviger.TPM:
		best = c.proven(note)
	default:
		note(leaked, fmt.Sprintf("custodian %q is not known", c.Subject.Custodian))
	}
	if (c.Device.Software || c.Proof.Software) && c.Subject.Custodian != claviger.Soft {
		note(software, "the device is software: "+c.Device.Manufacturer+" "+c.Device.Model)
		if !c.Proof.Test {
			best = lower(best, claviger.Isolated)
		}
	}
	if worst >= broken {
		best = lower(best, claviger.Isolated)
	}
	if best != claviger.Attested { // a proof needs nobody's word
		if best = lower(best, c.Reported); best == claviger.Exposed || best == claviger.Lapsed {
			note(unhardened, "the custodian reports "+string(best))
		}
	}
	if worst >= leaked {
		best = claviger.Exposed
	}
	return best, plain(finding)
}

// proven returns the level that the attestation of a TPM allows.
func (c Case) proven(note func(int, string)) claviger.Level {
	p := c.Proof
	switch {
	case p.Exposes:
		note(leaked, p.Finding)
	case !p.Certified && p.Finding != "":
		note(uncertified, "the attestation is refused: "+p.Finding)
	case !p.Certified:
		note(uncertified, "there is no attestation")
	case p.Root == "" || !p.Bound:
		return claviger.Hardware
	case p.Test:
		note(test, "attested by a test root, which vouches for no hardware: "+p.Root)
		return claviger.Attested
	default:
		return claviger.Attested
	}
	return claviger.Isolated
}

// lower returns the worse of two levels. One that is not known is exposed.
func lower(a, b claviger.Level) claviger.Level {
	order := []claviger.Level{claviger.Lapsed, claviger.Exposed, claviger.Isolated, claviger.Hardware, claviger.Attested}
	rank := func(l claviger.Level) int {
		if i := slices.Index(order, l); i >= 0 {
			return i
		}
		return 1
	}
	return order[min(rank(a), rank(b))]
}

// clip bounds a text from outside.
func clip(s string) string {
	if len(s) > MaxText/2 {
		return strings.ToValidUTF8(s[:MaxText/2], "") + "..."
	}
	return s
}
