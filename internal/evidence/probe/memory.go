package probe

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"fmt"

	"claviger.dev"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// serverMemory hunts for keys in what a process of the server's user reads of
// the server's memory. Where that is nothing, the control shows that it would
// have been searched: the weak process's key is found in its memory.
func (p *prober) serverMemory(s subject, weak *standing, readable bool) {
	const name = "soft.server-memory"
	tried := fmt.Sprintf("hunt for the keys in the memory of the server as uid %d", s.uid)
	if readable {
		p.memory(name, tried, s.pid, p.Symmetric)
		return
	}
	found, err := p.inWeak(weak)
	if yama := yamaScope(); !found && yama >= "2" {
		p.leave(name, tried, "Yama (ptrace_scope "+yama+") denies it to every process without CAP_SYS_PTRACE")
		return
	}
	control := "the weak process: its key was found in its memory"
	if err != nil || !found {
		control = "the weak process: its key was not found in its memory"
	}
	p.try(name, tried, "its memory cannot be read: see soft.server-proc-mem", false, control, found)
}

// inWeak reports whether the hunter finds the key of the weak process in its
// memory, knowing the public half alone.
func (p *prober) inWeak(weak *standing) (bool, error) {
	point, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), weak.Public)
	if err != nil {
		return false, err
	}
	public, err := pubkey.FromStd(claviger.ECDSAP256, point)
	if err != nil {
		return false, err
	}
	r, err := hunt.Run(p.ctx, hunt.Config{Keys: []hunt.Key{{Name: "the weak process's", Public: public}}}, []hunt.Target{{PID: weak.PID, At: int64(weak.Address)}})
	return err == nil && r.Verdict == hunt.Found, err
}

// memory hunts for all keys in what can be read of a process.
func (p *prober) memory(name, tried string, pid int, symmetric func(context.Context, []byte) ([]Hit, error)) {
	if len(p.Keys) == 0 && symmetric == nil {
		p.leave(name, tried, "there is no asymmetric key to hunt for; symmetric ones are looked for in the server's memory alone")
		return
	}
	r, err := hunt.Run(p.ctx, hunt.Config{Keys: p.Keys, Symmetric: symmetric}, []hunt.Target{{PID: pid}})
	if err != nil {
		p.add(claviger.Attempt{Probe: name, Tried: tried, Verdict: claviger.Broken, Reason: err.Error()})
		return
	}
	planted, found := 0, 0
	for _, c := range r.Controls {
		planted, found = planted+c.Planted, found+c.Found
	}
	also := ""
	if symmetric != nil {
		also = " and the symmetric ones"
	}
	result := fmt.Sprintf("%d keys%s hunted for in %d mappings, %d bytes: %d copies", len(p.Keys), also, r.Searched.Mappings, r.Searched.Bytes, len(r.Findings)+r.More)
	if r.Verdict == hunt.NotSearched {
		p.leave(name, tried, "no memory could be read")
		return
	}
	p.try(name, tried, result, r.Verdict == hunt.Found, fmt.Sprintf("%d of %d copies that were planted were found", found, planted), r.Verdict != hunt.Broken)
}
