package evidence

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"claviger.dev"
)

// Encode writes a run as JSON. A run that ParseRun would refuse is an error.
func (r *Run) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(r)
	if err == nil && len(text) > MaxRun {
		err = claviger.Errorf(claviger.TooLarge, fmt.Sprintf("the run has %d bytes, more than %d", len(text), MaxRun), "choose fewer keys with --selector and make several runs")
	}
	return text, err
}

// ParseRun reads a run that came from outside. It is strict: members that are
// unknown, repeated, out of order or written in another way than Encode does
// are claviger.Invalid, and so are lists and texts over the limits.
func ParseRun(text []byte) (*Run, error) {
	r := new(Run)
	if err := strictly(text, MaxRun, r); err != nil {
		return nil, err
	}
	return r, r.check()
}

// strictly decodes JSON that must be exactly what encoding the value again
// gives: so no member is unknown, repeated or malformed.
func strictly(text []byte, most int, into any) error {
	if len(text) > most {
		return claviger.Errorf(claviger.TooLarge, fmt.Sprintf("more than %d bytes", most), "")
	}
	if err := json.Unmarshal(text, into); err != nil {
		return invalid("it is not the JSON of one: %v", err)
	}
	again, err := json.Marshal(into)
	if err != nil {
		return invalid("it cannot be written again: %v", err)
	}
	if !bytes.Equal(text, again) {
		return invalid("it is not written as Claviger writes it: members are unknown, repeated or out of order")
	}
	return nil
}

func invalid(format string, args ...any) *claviger.Error {
	return claviger.Errorf(claviger.Invalid, plain("evidence: "+fmt.Sprintf(format, args...)), "get the file again from where it was made")
}

// check holds the limits of a run and the form of what is in it.
func (r *Run) check() error {
	if _, err := claviger.ParseID(string(r.ID)); err != nil {
		return err
	}
	switch {
	case len(r.Nonce) != NonceSize:
		return invalid("the nonce has %d bytes, not %d", len(r.Nonce), NonceSize)
	case r.Started.IsZero() || r.Finished.Before(r.Started):
		return invalid("it ended before it started")
	case len(r.Results) == 0 || len(r.Results) > MaxSubjects:
		return invalid("%d results, of 1 to %d", len(r.Results), MaxSubjects)
	case len(r.Groups) > MaxGroups:
		return invalid("%d groups, more than %d", len(r.Groups), MaxGroups)
	case len(r.Reports) > 3 || len(r.Scope) > 1000:
		return invalid("%d reports and %d lines of scope", len(r.Reports), len(r.Scope))
	}
	if err := texts(append([]string{r.Host.Name, r.Host.Kernel, r.Host.Arch, r.By}, r.Scope...)...); err != nil {
		return err
	}
	for i, g := range r.Groups {
		if err := g.check(); err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
	}
	seen := map[claviger.Custodian]bool{}
	for _, rep := range r.Reports {
		if seen[rep.Device.Kind] {
			return invalid("two reports of %s", rep.Device.Kind)
		}
		seen[rep.Device.Kind] = true
		if err := rep.check(); err != nil {
			return err
		}
	}
	for i, res := range r.Results {
		if err := res.check(len(r.Groups)); err != nil {
			return fmt.Errorf("result %d: %w", i, err)
		}
		if i > 0 && r.Results[i-1].compare(res) >= 0 {
			return invalid("%s is repeated or out of order", res)
		}
	}
	return nil
}

func (r Result) compare(o Result) int {
	if c := strings.Compare(string(r.Name), string(o.Name)); c != 0 {
		return c
	}
	return int(int64(r.Version) - int64(o.Version))
}

func (g Group) check() error {
	if len(g.Attempts) == 0 || len(g.Attempts) > MaxAttempts {
		return invalid("%d attempts, of 1 to %d", len(g.Attempts), MaxAttempts)
	}
	for _, a := range g.Attempts {
		if err := texts(g.About, a.Probe, a.Tried, a.Result, a.Control, a.Reason); err != nil {
			return err
		}
		if !slices.Contains([]claviger.Verdict{claviger.Held, claviger.Leaked, claviger.NotAttempted, claviger.Broken}, a.Verdict) {
			return invalid("the verdict %q is not known", a.Verdict)
		}
		if a.Probe == "" {
			return invalid("an attempt has no name")
		}
	}
	return nil
}

func (rep Report) check() error {
	d := rep.Device
	if !slices.Contains([]claviger.Custodian{claviger.Soft, claviger.TPM, claviger.P11}, d.Kind) {
		return invalid("the custodian %q is not known", d.Kind)
	}
	if len(rep.AKPublic) > 2048 || len(rep.EKPublic) > 2048 || len(rep.EKCertificates) > 16 || len(d.Algorithms) > 64 {
		return invalid("the report of %s is too large", d.Kind)
	}
	for _, c := range rep.EKCertificates {
		if len(c) > 8192 {
			return invalid("an endorsement certificate has %d bytes", len(c))
		}
	}
	return texts(d.Manufacturer, d.Model, d.Serial, d.Firmware, string(rep.Level))
}

func (r Result) check(groups int) error {
	if _, err := claviger.ParseName(string(r.Name)); err != nil {
		return err
	}
	if _, err := claviger.ParseID(string(r.KeyID)); err != nil {
		return err
	}
	if b, err := hex.DecodeString(r.Fingerprint); err != nil || len(b) != 32 || r.Fingerprint != strings.ToLower(r.Fingerprint) {
		return invalid("the fingerprint of %s is not 64 lower-case hex digits", r)
	}
	for i, g := range r.Groups {
		if g < 0 || g >= groups || i > 0 && r.Groups[i-1] >= g {
			return invalid("%s refers to groups that are not there, or twice", r)
		}
	}
	if a := r.Attestation; a != nil && (len(a.KeyPublic) > 2048 || len(a.Attest) > 2048 || len(a.Signature) > 2048) {
		return invalid("the attestation of %s is too large", r)
	}
	return texts(string(r.Algorithm), string(r.Custodian), string(r.Origin), r.Reference, string(r.Reported), string(r.Level), r.Finding)
}

// texts holds the limit of texts, and that they are UTF-8 of characters that
// print: they are shown on terminals.
func texts(list ...string) error {
	for _, s := range list {
		if len(s) > MaxText || !utf8.ValidString(s) || strings.ContainsFunc(s, unprintable) {
			return invalid("a text of %d bytes is too long, or has a character that does not print", len(s))
		}
	}
	return nil
}

// unprintable says of a character that it does not print. Controls of C1 and
// those that turn the direction of writing are among them.
func unprintable(c rune) bool { return !unicode.IsPrint(c) }

// maxWait is how long a run may wait until it is submitted.
const maxWait = time.Hour

// Timely refuses a run that ended in the future or long ago. Who verifies its
// statement tells by that time whether it is fresh, and what was valid then, so
// whoever signs one has to look at the clock.
func (r *Run) Timely(now time.Time) error {
	if age := now.Sub(r.Finished); age < -clockSkew || age > maxWait {
		return claviger.Errorf(claviger.Invalid, fmt.Sprintf("the run ended at %s, more than %v ago or in the future", r.Finished.UTC().Format(time.RFC3339), maxWait),
			"check the clock of this host, and submit a run when it ends")
	}
	return nil
}

// Report returns what the custodian says of itself, or nil.
func (r *Run) Report(kind claviger.Custodian) *Report {
	if i := slices.IndexFunc(r.Reports, func(rep Report) bool { return rep.Device.Kind == kind }); i >= 0 {
		return &r.Reports[i]
	}
	return nil
}

// Judge sets the level and the finding of every result from the run's own
// inputs. prove checks the attestation of a result; it is asked only for those
// that have one.
func (r *Run) Judge(prove func(*Result, *Report) Proof) {
	for i := range r.Results {
		res := &r.Results[i]
		res.Level, res.Finding = r.judge(res, prove)
	}
}

func (r *Run) judge(res *Result, prove func(*Result, *Report) Proof) (claviger.Level, string) {
	c := Case{Subject: res.Subject, Reported: res.Reported}
	if report := r.Report(res.Custodian); report != nil {
		c.Device = report.Device
		if res.Attestation != nil {
			c.Proof = prove(res, report)
		}
	} else if c.Reported != claviger.Exposed {
		c.Reported = claviger.Lapsed // it was away, which shows nothing, good or bad
	}
	for _, g := range res.Groups {
		c.Attempts = append(c.Attempts, r.Groups[g].Attempts)
	}
	return Judge(c)
}
