// Package tpmd answers frames for one TPM 2.0: it is all of claviger-tpmd but
// its flags.
//
// It owns the slots of one server's keys and what binds a key to its binding.
// It promises that an answer names the key that was used, that a signature was
// checked with the public half that was authorised, and that the keys it makes
// cannot leave the TPM. It must never keep what the TPM unsealed, nor use a
// key for anybody but the process at the other end of its socket.
package tpmd

import (
	"container/list"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"io"
	"log/slog"
	"os"
	"sync"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/frames/serve"
	"claviger.dev/internal/harden"
	"claviger.dev/internal/tpm"
	"claviger.dev/internal/tpm/attest"
)

// maxSlots is how many keys are remembered; each takes about 2 KiB.
const maxSlots = 1 << 14

// workers is how many requests are answered at once: one that the device works
// on, and some that wait for it, are hashed or are checked.
const workers = 16

// Process is one custodian over a TPM. Make it with New.
type Process struct {
	device   *tpm.Device
	log      *slog.Logger
	measures []frames.Measure
	epoch    uint64

	mu     sync.Mutex
	next   uint64
	table  map[uint64]*list.Element // guarded by mu
	recent list.List                // guarded by mu; of slot, most recent first
	info   *claviger.Device         // guarded by mu; once the device told
}

// slot is a key that was loaded: read, and shown to be of this TPM.
type slot struct {
	number uint64
	key    *tpm.Key
}

// New returns a process over the device, with what hardening achieved. A nil
// log discards.
func New(device *tpm.Device, measures []harden.Measure, log *slog.Logger) *Process {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var epoch [8]byte
	_, _ = rand.Read(epoch[:])
	p := &Process{device: device, log: log, epoch: binary.BigEndian.Uint64(epoch[:]), table: map[uint64]*list.Element{}}
	for _, m := range measures {
		p.measures = append(p.measures, frames.Measure{Name: m.Name, State: string(m.State), Detail: m.Detail, Gain: m.Gain})
	}
	return p
}

// Serve answers requests until the socket ends, which is no error: nobody is
// left to serve.
func (p *Process) Serve(socket io.ReadWriter) error {
	return serve.Frames(socket, serve.Config{Handle: p.handle, Slow: isSlow, Workers: workers})
}

// isSlow says that a verb may take a TPM long; they are done one at a time, so
// that the rest of the process answers meanwhile.
func isSlow(v frames.Verb) bool {
	switch v {
	case frames.VerbGenerate, frames.VerbAttest, frames.VerbEndorse, frames.VerbActivate, frames.VerbProbe, frames.VerbDevice:
		return true
	}
	return false
}

// handle does what a request asks. What the device answered to a command that
// failed is for the log alone.
func (p *Process) handle(req frames.Request) (frames.Response, error) {
	resp, err := p.answer(req)
	if err != nil && claviger.CodeOf(err) != claviger.Unsupported && err != frames.ErrNotLoaded {
		p.log.Warn("refused", "verb", req.Verb(), "err", err)
	}
	return resp, err
}

func (p *Process) answer(req frames.Request) (frames.Response, error) {
	switch r := req.(type) {
	case *frames.SignRequest:
		return answered(p.sign(r))
	case *frames.MACRequest:
		return answered(p.mac(r))
	case *frames.VerifyMACRequest:
		return answered(p.verifyMAC(r))
	case *frames.LoadRequest:
		return answered(p.load(r))
	case *frames.UnloadRequest:
		p.unload(r.Slot)
		return &frames.UnloadResponse{}, nil
	case *frames.GenerateRequest:
		return answered(p.generate(r))
	case *frames.DeviceRequest:
		info, err := p.describe()
		return answered((*frames.DeviceResponse)(&info), err)
	case *frames.AttestRequest:
		return answered(p.attest(r))
	case *frames.EndorseRequest:
		e, err := p.device.Endorse()
		return answered(&e, err)
	case *frames.ActivateRequest:
		secret, err := p.device.Activate(r.Credential, r.Encrypted)
		return answered(&frames.ActivateResponse{Challenge: secret}, err)
	case *frames.DestroyRequest:
		return &frames.DestroyResponse{}, nil // the device has nothing of it: the key was its blob
	case *frames.ProbeRequest:
		return answered(p.probe(r))
	case *frames.IdentityRequest:
		return &frames.IdentityResponse{}, nil // it lives; whether the device does is asked by its own verb
	case *frames.EvidenceRequest:
		level, err := p.level()
		if err != nil {
			level = claviger.Exposed // nothing can be said for it
		}
		return &frames.EvidenceResponse{PID: uint32(os.Getpid()), Level: level, Measures: p.measures}, nil
	}
	return nil, claviger.Errorf(claviger.Unsupported, "a TPM does not do this", "use a key of the key process for it")
}

// answered makes a response of any type a Response, keeping nil errors nil.
func answered[R frames.Response](r R, err error) (frames.Response, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Authorisation is what a key is used with. It is derived from the binding, so
// that a blob works under its own binding only.
func Authorisation(b frames.Binding) [32]byte {
	return sha256.Sum256(b.Append([]byte("claviger tpm auth 1")))
}

// describe asks the device what it is, once: it does not change while it is
// there, and is asked again after it was lost by then.
func (p *Process) describe() (claviger.Device, error) {
	p.mu.Lock()
	known := p.info
	p.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	info, err := p.device.Info()
	if err != nil {
		return info, err
	}
	p.mu.Lock()
	p.info = &info
	p.mu.Unlock()
	return info, nil
}

// level is that of the keys which are made here. A software TPM keeps keys no
// better than a process does.
func (p *Process) level() (claviger.Level, error) {
	info, err := p.describe()
	if err != nil {
		return "", err
	}
	if info.Software {
		return claviger.Isolated, nil
	}
	return claviger.Hardware, nil
}

func (p *Process) generate(req *frames.GenerateRequest) (*frames.GenerateResponse, error) {
	if err := req.Binding.Validate(); err != nil {
		return nil, err
	}
	if req.Binding.Origin != claviger.Generated {
		return nil, claviger.Errorf(claviger.Invalid, "what is generated cannot be bound as imported", "bind it as generated")
	}
	level, err := p.level()
	if err != nil {
		return nil, err
	}
	k, err := p.device.Create(req.Binding.Algorithm, Authorisation(req.Binding))
	if err != nil {
		return nil, err
	}
	return &frames.GenerateResponse{Made: frames.Made{
		Blob: k.Blob, Public: k.Public, Fingerprint: k.Fingerprint, Level: level,
		Generation: frames.DeviceGeneration, Reference: hex.EncodeToString(k.Name),
	}}, nil
}

// key reads a blob under its binding.
func key(b frames.Binding, blob []byte) (*tpm.Key, error) {
	if err := b.Validate(); err != nil {
		return nil, err
	}
	k, err := tpm.Parse(blob, Authorisation(b))
	if err != nil {
		return nil, err
	}
	if k.Algorithm != b.Algorithm {
		return nil, claviger.Errorf(claviger.Invalid, "the blob is of another algorithm than the key", "name the key that the blob was made for")
	}
	return k, nil
}

func (p *Process) load(req *frames.LoadRequest) (*frames.LoadResponse, error) {
	k, err := key(req.Binding, req.Blob)
	if err != nil {
		return nil, err
	}
	// A key that may leave was not made here: it can be attested and probed,
	// which says so, but not used.
	if err := attest.CheckKey(k.Area); err != nil {
		return nil, err
	}
	if err := p.device.Check(k); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.recent.Len() >= maxSlots {
		delete(p.table, p.recent.Remove(p.recent.Back()).(slot).number)
	}
	p.next++
	p.table[p.next] = p.recent.PushFront(slot{p.next, k})
	return &frames.LoadResponse{Slot: frames.Slot{Epoch: p.epoch, Number: p.next}, Fingerprint: k.Fingerprint}, nil
}

func (p *Process) unload(s frames.Slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.table[s.Number]; e != nil && s.Epoch == p.epoch {
		delete(p.table, s.Number)
		p.recent.Remove(e)
	}
}

// use returns the key of a slot, if it is the one that the caller means.
func (p *Process) use(u frames.Use) (*tpm.Key, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.table[u.Slot.Number]
	if e == nil || u.Slot.Epoch != p.epoch {
		return nil, frames.ErrNotLoaded
	}
	k := e.Value.(slot).key
	if k.Fingerprint != u.Fingerprint {
		return nil, claviger.Errorf(claviger.Invalid, "the slot holds other material than was authorised", "nothing was done; report this with the request id")
	}
	p.recent.MoveToFront(e)
	return k, nil
}

func (p *Process) sign(req *frames.SignRequest) (*frames.SignResponse, error) {
	k, err := p.use(req.Use)
	if err != nil {
		return nil, err
	}
	digests := req.Inputs
	if !req.Prehashed {
		digests = hashed(k.Algorithm.Hash(), req.Inputs)
	}
	signatures, err := p.device.Sign(k, digests)
	if err != nil {
		return nil, err
	}
	return &frames.SignResponse{Fingerprint: k.Fingerprint, Signatures: signatures}, nil
}

func hashed(hash crypto.Hash, inputs [][]byte) [][]byte {
	out, h := make([][]byte, len(inputs)), hash.New()
	for i, in := range inputs {
		h.Reset()
		h.Write(in)
		out[i] = h.Sum(nil)
	}
	return out
}

func (p *Process) mac(req *frames.MACRequest) (*frames.MACResponse, error) {
	k, err := p.use(req.Use)
	if err != nil {
		return nil, err
	}
	codes, err := p.device.MAC(k, req.Inputs)
	if err != nil {
		return nil, err
	}
	return &frames.MACResponse{Fingerprint: k.Fingerprint, MACs: codes}, nil
}

func (p *Process) verifyMAC(req *frames.VerifyMACRequest) (*frames.VerifyMACResponse, error) {
	k, err := p.use(req.Use)
	if err != nil {
		return nil, err
	}
	codes, err := p.device.MAC(k, req.Inputs)
	if err != nil {
		return nil, err
	}
	resp := &frames.VerifyMACResponse{Fingerprint: k.Fingerprint, Valid: make([]bool, len(codes))}
	for i := range codes {
		resp.Valid[i] = subtle.ConstantTimeCompare(codes[i], req.MACs[i]) == 1
		clear(codes[i]) // the right code of a wrong message is for nobody
	}
	return resp, nil
}

func (p *Process) attest(req *frames.AttestRequest) (*frames.AttestResponse, error) {
	k, err := key(req.Binding, req.Blob)
	if err != nil {
		return nil, err
	}
	a, err := p.device.Attest(k, req.Nonce)
	if err != nil {
		return nil, err
	}
	return &a, nil
}
