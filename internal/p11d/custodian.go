//go:build cgo

package p11d

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"sync"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/harden"
)

// maxKeys is how many keys are loaded at once. A loaded key takes some hundred
// bytes here and nothing in the token.
const maxKeys = 1 << 16

// custodian answers frames with one device.
type custodian struct {
	*device
	measures []frames.Measure
	epoch    uint64

	mu     sync.Mutex // beside device.mu, which is never taken under it
	next   uint64
	loaded map[uint64]*key

	probing probing
}

func newCustodian(d *device, measures []harden.Measure) *custodian {
	var epoch [8]byte
	_, _ = rand.Read(epoch[:]) // crypto/rand.Read never fails
	c := &custodian{device: d, epoch: binary.BigEndian.Uint64(epoch[:]), loaded: map[uint64]*key{}}
	for _, m := range measures {
		c.measures = append(c.measures, frames.Measure{Name: m.Name, State: string(m.State), Detail: m.Detail, Gain: m.Gain})
	}
	return c
}

// isSlow says that a verb may take long.
func isSlow(v frames.Verb) bool {
	return v == frames.VerbGenerate || v == frames.VerbBind || v == frames.VerbProbe
}

func (c *custodian) handle(req frames.Request) (frames.Response, error) {
	resp, err := c.do(req)
	return resp, tell(err)
}

func (c *custodian) do(req frames.Request) (frames.Response, error) {
	switch r := req.(type) {
	case *frames.SignRequest:
		return answer(c.sign(r))
	case *frames.MACRequest:
		return answer(c.computeMAC(r))
	case *frames.VerifyMACRequest:
		return answer(c.verifyMAC(r))
	case *frames.SealRequest:
		return answer(c.seal(r))
	case *frames.OpenRequest:
		return answer(c.open(r))
	case *frames.LoadRequest:
		return answer(c.load(r))
	case *frames.UnloadRequest:
		c.drop(r.Slot)
		return &frames.UnloadResponse{}, nil
	case *frames.GenerateRequest:
		made, err := c.generate(r.Binding)
		return answer(&frames.GenerateResponse{Made: made}, err)
	case *frames.BindRequest:
		made, err := c.bind(r.Binding, r.Reference)
		return answer(&frames.BindResponse{Made: made}, err)
	case *frames.IdentityRequest:
		return &frames.IdentityResponse{}, nil
	case *frames.DeviceRequest:
		l, err := c.reach()
		if err != nil {
			return nil, err
		}
		resp := frames.DeviceResponse(l.about)
		return &resp, nil
	case *frames.EvidenceRequest:
		l, err := c.reach()
		if err != nil {
			return nil, err
		}
		return &frames.EvidenceResponse{PID: uint32(os.Getpid()), Level: l.levelOf(nil), Measures: c.measures}, nil
	case *frames.DestroyRequest:
		kept, err := c.forget(r.Binding, r.Blob)
		return answer(&frames.DestroyResponse{Kept: kept}, err)
	case *frames.ProbeRequest:
		return answer(c.probe(r))
	}
	return nil, errDevice
}

// answer makes a response of any type a Response, keeping nil errors nil.
func answer[R frames.Response](r R, err error) (frames.Response, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

// look finds the key of a blob in the token and proves that it is the one.
func (c *custodian) look(l *link, s session, b frames.Binding, blob []byte) (*key, error) {
	if err := b.Validate(); err != nil {
		return nil, err
	}
	r, u, err := unseal(b, blob)
	if err != nil {
		return nil, err
	}
	sch, err := l.offered(b.Algorithm)
	if err != nil {
		return nil, err
	}
	k := &key{scheme: sch, binding: b, link: l.number}
	if k.public, err = sch.recorded(r.public); err != nil {
		return nil, errBlob.Wrap(err)
	}
	if k.object, err = c.only(l, s, sch.class, u); err != nil {
		return nil, err
	}
	if r.bound {
		if err := c.others(s, k.object); err != nil {
			return nil, err
		}
	}
	if k.fingerprint, err = c.prove(s, k); err != nil {
		return nil, err
	}
	return k, nil
}

func (c *custodian) load(req *frames.LoadRequest) (*frames.LoadResponse, error) {
	var k *key
	err := c.with(func(l *link, s session) (err error) {
		k, err = c.look(l, s, req.Binding, req.Blob)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for number := range c.loaded { // any: the map's order is as good as random
		if len(c.loaded) < maxKeys {
			break
		}
		delete(c.loaded, number)
	}
	c.next++
	c.loaded[c.next] = k
	return &frames.LoadResponse{Slot: frames.Slot{Epoch: c.epoch, Number: c.next}, Fingerprint: k.fingerprint}, nil
}

func (c *custodian) drop(slot frames.Slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slot.Epoch == c.epoch {
		delete(c.loaded, slot.Number)
	}
}

// use runs f on a loaded key. A key whose handle the token no longer knows, or
// that another key took, is unloaded, so that the next use proves it anew.
func (c *custodian) use(u frames.Use, op claviger.Operation, f func(session, *key) error) error {
	c.mu.Lock()
	k := c.loaded[u.Slot.Number]
	c.mu.Unlock()
	if k == nil || u.Slot.Epoch != c.epoch {
		return frames.ErrNotLoaded
	}
	if k.fingerprint != u.Fingerprint {
		return claviger.Errorf(claviger.Invalid, "the slot holds other material than was authorised", "nothing was done; report this with the request id")
	}
	if k.scheme.algorithm.Protects() != op {
		return errOperation
	}
	err := c.with(func(l *link, s session) error {
		if l.number != k.link {
			return frames.ErrNotLoaded // handles are another's now
		}
		return f(s, k)
	})
	if isGone(err) || isLost(err) || errors.Is(err, errOther) {
		c.drop(u.Slot)
	}
	if isGone(err) || isLost(err) {
		return frames.ErrNotLoaded
	}
	return err
}
