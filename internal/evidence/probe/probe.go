// Package probe attempts to take keys out of the soft custodian, from a process
// of its own, and searches whatever the server wrote for copies of them.
//
// It owns the attempts on the key process and on the server from outside, the
// twin of the key process on which the attempts from within are made, and the
// weak process of its own on which every attempt must succeed. It promises that
// an attempt whose control did not leak is called broken, that the production
// processes are neither stopped nor written to, and that what it reports has
// no byte of a key. It must never attempt as root without being asked to, and
// never what changes another process.
package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/evidence/probe/within"
	"claviger.dev/internal/harden"
	"claviger.dev/internal/hunt"
)

// Config says what is probed and how.
type Config struct {
	KeydPID   int // the key process
	ServerPID int // the server; 0: it is not probed
	// AsRoot adds what only root can try, passively: reads and dumps of memory.
	// Without it nothing is tried with privileges.
	AsRoot bool
	// Keys are hunted for in the server's memory where its own user can read that,
	// and AsRoot in the readable memory of both processes.
	Keys []hunt.Key
	// Symmetric is that of a SearchConfig. It is asked about the memory of the
	// server alone: the server is not to be given what the key process has.
	Symmetric func(ctx context.Context, haystack []byte) ([]Hit, error)
	// Child is the command that calls Child: this program and its arguments. It
	// is started as the attacker and as the weak process.
	Child []string
	// Keyd is the program of the key process, which is started as its twin.
	// Where it is "" the attempts that need one are not attempted.
	Keyd string
}

// Soft makes the attempts on the key process and on the server, as the user of
// each: as its caller where that is the same user, through a child with that
// uid where the caller is root. It fails only where nothing can be attempted at
// all: claviger.NotFound when there is no such process.
func Soft(ctx context.Context, c Config) ([]claviger.Attempt, error) {
	if len(c.Child) == 0 {
		return nil, claviger.Errorf(claviger.Invalid, "the attempts need a program to be made by", "name the command that calls probe.Child")
	}
	subjects := []subject{{prefix: "soft.", name: "the key process"}, {prefix: "soft.server-", name: "the server"}}
	pids := []int{c.KeydPID, c.ServerPID}
	if c.ServerPID == 0 {
		pids = pids[:1]
	}
	p := &prober{Config: c, ctx: ctx}
	for i, pid := range pids {
		s := subjects[i]
		var err error
		if s.status, err = readStatus(pid); err != nil {
			return nil, claviger.Errorf(claviger.NotFound, fmt.Sprintf("%s is not there (pid %d)", s.name, pid),
				"run the attempts on the host of the server, where /proc shows all processes").Wrap(err)
		}
		if err := p.probe(s, i == 0); err != nil {
			return nil, err
		}
	}
	p.add(residual()...)
	p.add(host()...)
	return p.attempts, ctx.Err()
}

// subject is a process that is probed.
type subject struct {
	prefix, name string
	status
}

// prober makes the attempts of one run.
type prober struct {
	Config
	ctx      context.Context
	attempts []claviger.Attempt
}

func (p *prober) add(all ...claviger.Attempt) { p.attempts = append(p.attempts, all...) }

// try adds an attempt and its control.
func (p *prober) try(name, tried, result string, leaked bool, control string, controlLeaked bool) {
	a := claviger.Attempt{Probe: name, Tried: tried, Result: result, Control: control}
	a.Settle(leaked, controlLeaked)
	p.add(a)
}

// leave adds what was not attempted.
func (p *prober) leave(name, tried, reason string) {
	p.add(claviger.Attempt{Probe: name, Tried: tried, Verdict: claviger.NotAttempted, Reason: reason})
}

// probe makes the attempts on one process.
func (p *prober) probe(s subject, holdsKeys bool) error {
	if uid := os.Geteuid(); uid != 0 && uid != s.uid {
		p.leave(s.prefix+"same-user", "every attempt as the user of "+s.name, fmt.Sprintf("it is uid %d and this is uid %d: run it as that user, or as root, which gives itself that uid", s.uid, uid))
		return nil
	}
	stage, err := newStage(p.ctx, s.uid, s.gid)
	if err != nil {
		return claviger.Errorf(claviger.Unavailable, "the attempts cannot be made", "they need a directory for temporary files").Wrap(err)
	}
	defer func() { _ = stage.close() }()
	weak, err := stage.weak(p.Child)
	if err != nil {
		return unstaged(err)
	}
	defer weak.end()
	answers, err := stage.attack(p.Child, []target{{PID: s.pid}, {PID: weak.PID, Address: weak.Address, Digest: weak.Digest}})
	if err != nil {
		return unstaged(err)
	}
	plain, err := readStatus(weak.PID)
	if err != nil {
		return unstaged(err)
	}
	readable := p.outside(s, answers[0], answers[1])
	p.facts(s, plain)
	p.coreSettings(s, plain, readable)
	p.asRoot(s, weak, holdsKeys)
	if !holdsKeys {
		p.serverMemory(s, weak, readable)
	} else {
		p.onTwin(s, stage, weak)
	}
	return nil
}

func unstaged(err error) error {
	return claviger.Errorf(claviger.Unavailable, "the attempts cannot be made", "they start processes of their own: check that this program can be executed by the user of the process").Wrap(err)
}

// outside adds what a process of the same user met, and reports whether it can
// read the memory.
func (p *prober) outside(s subject, got, control []outcome) (readable bool) {
	yama := yamaScope()
	for i, o := range got {
		c := control[i]
		readable = readable || o.Probe == "proc-mem" && o.Leaked
		name, tried := s.prefix+o.Probe, fmt.Sprintf("%s of %s as uid %d", o.Tried, s.name, s.uid)
		switch {
		case o.Leaked || c.Leaked:
		case o.Probe == "proc-stack":
			p.leave(name, tried, "the kernel shows it to root alone, of every process")
			continue
		case yama != "" && yama >= "2":
			p.leave(name, tried, "Yama (ptrace_scope "+yama+") denies it to every process without CAP_SYS_PTRACE")
			continue
		}
		p.try(name, tried, o.Result, o.Leaked, "the weak process: "+c.Result, c.Leaked)
	}
	return readable
}

// facts adds what /proc/PID/status says of a process. The weak process has none
// of it; that a capability would be seen is shown by any process that has one.
func (p *prober) facts(s subject, plain status) {
	for _, f := range []struct{ name, field, want, tried string }{
		{"seccomp", "Seccomp", "2", "see whether system calls are filtered"},
		{"no-new-privileges", "NoNewPrivs", "1", "see whether a set-user-ID program would give it privileges"},
	} {
		if f.field == "Seccomp" && s.prefix != "soft." {
			continue // the server's calls are not filtered
		}
		got, weak := s.fields[f.field], plain.fields[f.field]
		p.try(s.prefix+f.name, f.tried+" ("+s.name+")", f.field+": "+got, got != f.want, "the weak process: "+f.field+": "+weak, weak != f.want)
	}
	if s.prefix != "soft." {
		return
	}
	got, control := s.fields["CapEff"], status{fields: map[string]string{"CapEff": "unknown"}}
	for _, pid := range []int{os.Getpid(), 1} {
		if c, err := readStatus(pid); err == nil && capable(c.fields["CapEff"]) {
			control = c
		}
	}
	p.try(s.prefix+"capabilities", "see whether it has powers of root ("+s.name+")", "CapEff: "+got, capable(got),
		fmt.Sprintf("process %d: CapEff: %s", control.pid, control.fields["CapEff"]), capable(control.fields["CapEff"]))
}

func capable(mask string) bool { return strings.Trim(mask, "0") != "" }

// coreSettings adds what would become of the memory of the process in a crash,
// which is not provoked: the kernel dumps what is dumpable, to a file within the
// limit, to a handler without regard to it.
func (p *prober) coreSettings(s subject, plain status, readable bool) {
	pattern := corePattern()
	dumps := func(st status, dumpable bool) bool {
		return dumpable && (strings.HasPrefix(pattern, "|") || st.core != "0")
	}
	words := func(st status, dumpable bool) string {
		return fmt.Sprintf("core_pattern %q, core limit %s, dumpable %v", pattern, st.core, dumpable)
	}
	p.try(s.prefix+"core-settings", "see whether a crash of "+s.name+" would write its memory out", words(s.status, readable), dumps(s.status, readable),
		"the weak process: "+words(plain, true), dumps(plain, true))
}

// onTwin adds the attempts that the production process is spared: those from
// within, and a crash.
func (p *prober) onTwin(s subject, stage *stage, weak *standing) {
	const all = "the attempts from within the key process, fork and a crash"
	if p.Keyd == "" {
		p.leave("soft.twin", all, "the program of the key process was not named, so it has no twin here")
		return
	}
	twin, err := stage.twin(p.Keyd, s.arguments)
	if err == nil {
		defer twin.end()
		if twin.Err != "" {
			err = errors.New(twin.Err)
		}
	}
	if err != nil {
		p.add(claviger.Attempt{Probe: "soft.twin", Tried: all, Verdict: claviger.Broken, Reason: "the twin does not start: " + err.Error()})
		return
	}
	for _, name := range within.Names() {
		got, control := twin.Calls[name], weak.Calls[name]
		tried := "call " + name + " from within a twin of the key process"
		if got != within.Allowed && control != within.Allowed {
			p.leave("soft.within-"+name, tried, "this host refuses it to every process of the user ("+control+")")
			continue
		}
		p.try("soft.within-"+name, tried, got, got == within.Allowed, "the weak process: "+control, control == within.Allowed)
	}
	p.try("soft.fork", "read the key in a child of the twin made by fork alone", twin.Forked, twin.Forked == within.Leaked, "the weak process: "+weak.Forked, weak.Forked == within.Leaked)
	p.try("soft.descriptors", "list what the twin left open", list(twin.Descriptors), len(twin.Descriptors) > 0, "the weak process: "+list(weak.Descriptors), len(weak.Descriptors) > 0)
	p.measure(twin, "landlock", "soft.landlock", "open a file from within the twin before calls were filtered", "the weak process: "+weak.Calls["open"], weak.Calls["open"] == within.Allowed)
	p.measure(twin, "secret pages", "soft.secret-pages", "have the kernel read the pages of the twin's key", "the weak process: "+weak.Forked, weak.Forked == within.Leaked)
	p.crash(twin, weak)
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// measure adds what the hardening attempted by itself.
func (p *prober) measure(twin *standing, measure, name, tried, control string, controlLeaked bool) {
	i := slices.IndexFunc(twin.Measures, func(m harden.Measure) bool { return m.Name == measure })
	if i < 0 {
		p.add(claviger.Attempt{Probe: name, Tried: tried, Verdict: claviger.Broken, Reason: "the twin does not report it"})
		return
	}
	m := twin.Measures[i]
	if m.State == harden.Unavailable {
		p.leave(name, tried, m.Detail)
		return
	}
	p.try(name, tried, m.Detail, m.State != harden.On, control, controlLeaked)
}

// crash has the twin and the weak process end by SIGABRT, and adds whether the
// kernel dumped them.
func (p *prober) crash(twin, weak *standing) {
	pattern := corePattern()
	name, other := "soft.core-file", "soft.core-pipe"
	if strings.HasPrefix(pattern, "|") {
		name, other = other, name
	}
	const tried = "have a twin of the key process crash, with core_pattern "
	p.leave(other, tried+"of the other kind", fmt.Sprintf("it is a setting of the host, now %q; a process that is not dumpable is dumped neither way (prctl(2))", pattern))
	if os.Geteuid() == 0 {
		unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		_ = unix.Prlimit(weak.PID, unix.RLIMIT_CORE, &unlimited, nil) // where it fails the control shows it
	}
	words := map[bool]string{true: "dumped", false: "not dumped"}
	got, err1 := twin.abort()
	control, err2 := weak.abort()
	if err := errors.Join(err1, err2); err != nil {
		p.add(claviger.Attempt{Probe: name, Tried: tried + pattern, Verdict: claviger.Broken, Reason: err.Error()})
		return
	}
	p.try(name, tried+pattern, words[got], got, "the weak process: "+words[control], control)
}
