package keeper

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/store"
)

// The states of a measure.
const (
	on          = "on"
	off         = "off"
	unavailable = "unavailable"
)

// Doctor reports every protective measure: those that the key process observes
// of itself, and those of this server.
func (k *Keeper) Doctor(ctx context.Context, by claviger.Principal) (Report, error) {
	if err := k.read(ctx, &by, change{op: claviger.ManageServer, action: "server.doctor"}); err != nil {
		return Report{}, err
	}
	var report Report
	report.Measures = append(report.Measures, k.examineKeyd(ctx)...)
	report.Measures = append(report.Measures, k.examineDevices(ctx)...)
	report.Measures = append(report.Measures, k.examineEvidence(ctx)...)
	report.Measures = append(report.Measures, k.examineRoot(ctx)...)
	report.Measures = append(report.Measures, k.examineStore(ctx)...)
	report.Measures = append(report.Measures, k.examineFollowing()...)
	report.Measures = append(report.Measures, k.examineAudit(ctx, by)...)
	report.Measures = append(report.Measures, k.examineHost(ctx)...)
	if k.cfg.Examine != nil {
		report.Measures = append(report.Measures, k.cfg.Examine()...)
	}
	report.Healthy = true
	for _, m := range report.Measures {
		report.Healthy = report.Healthy && m.State != off
	}
	return report, nil
}

// measure is on or off; gain and hint are said only where it is off.
func measure(part, name string, ok bool, detail, gain, hint string) Measure {
	if ok {
		return Measure{Part: part, Name: name, State: on, Detail: detail}
	}
	return Measure{Part: part, Name: name, State: off, Detail: detail, Gain: gain, Hint: hint}
}

func (k *Keeper) examineKeyd(ctx context.Context) []Measure {
	evidence, err := k.cfg.Custodian.Evidence(ctx)
	if err != nil {
		return []Measure{measure("keyd", "answers", false, safeText(err), "nothing; but no key can be used", "look at the supervisor's log for why the key process does not start")}
	}
	list := []Measure{
		measure("keyd", "answers", true, "process "+strconv.Itoa(evidence.PID), "", ""),
		measure("keyd", "custody level", evidence.Level.AtLeast(claviger.Isolated), "new versions are "+string(evidence.Level),
			"what the measures below say", "start as root, or with the systemd units, so that every measure can be on"),
	}
	for _, m := range evidence.Measures {
		list = append(list, keydMeasure(m))
	}
	return list
}

func keydMeasure(m custody.Measure) Measure {
	state := m.State
	if state != on && state != off {
		state = unavailable
	}
	out := Measure{Part: "keyd", Name: m.Name, State: state, Detail: m.Detail, Gain: m.Gain}
	if state != on {
		out.Hint = keydHint(m.Name)
	}
	return out
}

// keydHint says what turns a measure of the key process on.
func keydHint(name string) string {
	switch name {
	case "own uid":
		return "start 'claviger up' as root, with an account for each process: [users]"
	case "root key slots":
		return "add a slot of another kind with 'claviger root add', then remove the file's with 'claviger root remove'"
	}
	return "see docs/hardening.md for what this measure needs"
}

// examineDevices lists every device beside the key process.
func (k *Keeper) examineDevices(ctx context.Context) []Measure {
	var list []Measure
	for _, r := range k.custodians(ctx)[1:] {
		detail := r.Trouble
		if detail == "" {
			detail = strings.Join(strings.Fields(r.Manufacturer+" "+r.Model), " ")
			if r.Firmware != "" {
				detail += ", firmware " + r.Firmware
			}
			if r.Software {
				detail += ", software: no hardware is behind it"
			}
		}
		list = append(list, measure(string(r.Kind), "device answers", r.Trouble == "", detail,
			"nothing; but the device's keys cannot be used", "look at the device and at the supervisor's log"))
	}
	return list
}

// examineEvidence says what evidence shows that should not be.
func (k *Keeper) examineEvidence(ctx context.Context) []Measure {
	var worst []store.Finding
	var open, stale int
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		if worst, open, err = tx.Findings(1); err != nil {
			return err
		}
		stale, err = tx.CountShownBefore(k.cfg.Now().Add(-k.cfg.MaxAge))
		return err
	})
	if err != nil {
		return nil // the store is examined by itself
	}
	detail := "none"
	if open > 0 {
		detail = fmt.Sprintf("%d open; the worst: %s#%d is %s: %s", open, worst[0].Name, worst[0].Version, worst[0].Level, worst[0].Finding)
	}
	return []Measure{
		measure("evidence", "no finding is open", open == 0, detail, "what the findings say: see 'claviger key list'",
			"replace what was exposed with 'claviger key rotate', and destroy the old version"),
		measure("evidence", "levels are fresh", stale == 0, fmt.Sprintf("%d lapsed", stale), "nothing; but a level that lapsed shows nothing",
			"look at the server's log for why the custodians could not be asked"),
	}
}

func (k *Keeper) examineRoot(ctx context.Context) []Measure {
	identity, err := k.cfg.Custodian.Identity(ctx)
	if err != nil {
		return nil // the key process does not answer; that is said above
	}
	list := []Measure{measure("root", "root key", !identity.Joining, "generation "+strconv.FormatUint(uint64(identity.Generation), 10),
		"nothing; but no key can be used", "let another server admit this one: 'claviger root admit'")}
	var old []store.BlobRef
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		old, err = tx.BlobsBelow(identity.Generation, store.BlobRef{}, 1)
		return err
	})
	if err == nil {
		list = append(list, measure("root", "newest root key everywhere", len(old) == 0, "", "who has an older root key opens what is still wrapped under it", "run 'claviger server rewrap'"))
	}
	return list
}

func (k *Keeper) examineStore(ctx context.Context) []Measure {
	var waiting []store.Outgoing
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		waiting, err = tx.Outbox(store.MaxLimit)
		return err
	})
	if err != nil {
		return []Measure{measure("store", "answers", false, safeText(err), "nothing; but nothing can be used", "look at the store's disk or connection")}
	}
	// A write that changes nothing shows a full disk or a read-only one.
	err = k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		return tx.PutMeta("doctor", []byte(k.cfg.Now().UTC().Format(time.RFC3339)))
	})
	detail := k.cfg.StoreName
	if err != nil {
		detail = safeText(err)
	}
	late := 0
	for _, row := range waiting {
		if record, err := outgoingRecord(row); err != nil || k.cfg.Now().Sub(record.Time).Abs() > drainAge {
			late++
		}
	}
	return []Measure{
		measure("store", "answers", true, "", "", ""),
		measure("store", "can be written", err == nil, detail, "nothing; but no change can be made", "free disk space, or make it writable"),
		measure("store", "every change is recorded", late == 0, fmt.Sprintf("%d waiting", late), "a change that the audit log does not show yet", "look at why the audit log cannot be written"),
	}
}

func (k *Keeper) examineAudit(ctx context.Context, by claviger.Principal) []Measure {
	err := k.append(ctx, k.newRecord(by, "server.doctor"))
	detail := ""
	if err != nil {
		detail = "the record of this examination could not be written"
	}
	list := []Measure{measure("audit", "can be written", err == nil, detail, "nothing; everything is refused meanwhile", "free disk space, or make it writable")}
	var last time.Time
	if err := k.cfg.Audit.Iterate(ctx, audit.Query{Action: audit.ActionCheckpoint, Last: 1}, func(l audit.Line) error {
		last = l.Record.Time
		return nil
	}); err != nil {
		return append(list, measure("audit", "can be read", false, safeText(err), "a record may have been altered", "run 'claviger audit verify'"))
	}
	age := k.cfg.Now().Sub(last)
	detail = "none yet"
	if !last.IsZero() {
		detail = "last at " + last.UTC().Format(time.RFC3339)
	}
	list = append(list, k.exports.measure())
	return append(list, measure("audit", "checkpoints", age < 3*k.cfg.Checkpoints || k.cfg.Now().Sub(k.started) < 2*k.cfg.Checkpoints, detail,
		"a cut tail of the log is not noticed", "look at the server's log for why no checkpoint was signed"))
}

// clockSlack is how far the clock may be corrected without being reported.
const clockSlack = time.Minute

func (k *Keeper) examineHost(ctx context.Context) []Measure {
	now := k.cfg.Now()
	moved := clockMoved(k.started, now)
	list := []Measure{measure("host", "clock was not set", moved.Abs() < clockSlack, fmt.Sprintf("moved by %v since the start", moved.Round(time.Second)),
		"expired grants and certificates that are valid again, or the other way round", "check the clock; scheduled changes wait ten minutes after it was set")}
	var future time.Time
	_ = k.cfg.Audit.Iterate(ctx, audit.Query{From: now.Add(clockSlack), Last: 1}, func(l audit.Line) error {
		future = l.Record.Time
		return nil
	}) // a log that cannot be read is said above
	list = append(list, measure("host", "clock is not behind the record", future.IsZero(), "", "expired grants and certificates are valid again", "the audit log has records of later times: set the clock"))
	leaf, err := k.ServerCertificate(nil)
	list = append(list, measure("server", "own certificate", err == nil && now.After(leaf.Leaf.NotBefore) && now.Before(leaf.Leaf.NotAfter), "",
		"nothing; but callers over TLS refuse this server", "look at the server's log for why it was not renewed"))
	return append(list, measure("server", "production settings", !k.cfg.Dev, "", "one uid runs everything: code that runs in the server can start a key process of its own", "use 'claviger up' or the systemd units"))
}

// clockMoved returns by how much the wall clock was set between two readings,
// which have a monotonic part where they come from time.Now.
func clockMoved(from, to time.Time) time.Duration {
	return to.Round(0).Sub(from.Round(0)) - to.Sub(from)
}
