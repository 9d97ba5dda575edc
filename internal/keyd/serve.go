package keyd

import (
	"errors"
	"io"
	"os"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/frames/serve"
	"claviger.dev/internal/hazmat"
)

// Serve answers requests until the socket ends, which is no error: nobody is
// left to serve.
func (p *Process) Serve(socket io.ReadWriter) error {
	return serve.Frames(socket, serve.Config{Handle: p.answerRequest, Slow: isSlow, Guard: p.guard})
}

// answerRequest answers one request.
func (p *Process) answerRequest(req frames.Request) (frames.Response, error) {
	resp, err := p.handle(req)
	if errors.Is(err, hazmat.ErrGone) { // given up between the look-up and the use
		err = frames.ErrNotLoaded
	}
	return resp, err
}

// isSlow says that a verb may take long. Such requests are done one at a time
// beside the others, so that no use waits for the making of a key.
func isSlow(v frames.Verb) bool {
	switch v {
	case frames.VerbGenerate, frames.VerbAdopt, frames.VerbShares, frames.VerbVerifyShares,
		frames.VerbRestore, frames.VerbJoin, frames.VerbJoinKey, frames.VerbAdmit, frames.VerbOneTimeKey, frames.VerbSearch:
		return true
	}
	return false
}

// handle does what a request asks.
func (p *Process) handle(req frames.Request) (frames.Response, error) {
	switch r := req.(type) {
	case *frames.SignRequest:
		return answer(p.sign(r))
	case *frames.MACRequest:
		return answer(p.computeMAC(r))
	case *frames.VerifyMACRequest:
		return answer(p.verifyMAC(r))
	case *frames.SealRequest:
		return answer(p.seal(r))
	case *frames.OpenRequest:
		return answer(p.open(r))
	case *frames.LoadRequest:
		return answer(p.load(r))
	case *frames.UnloadRequest:
		p.slots.drop(r.Slot)
		return &frames.UnloadResponse{}, nil
	case *frames.RewrapRequest:
		return answer(p.rewrap(r))
	case *frames.FindRequest:
		return answer(p.find(r))
	case *frames.SearchRequest:
		return answer(p.search(r))
	case *frames.GenerateRequest:
		return answer(p.generate(r))
	case *frames.OneTimeKeyRequest:
		return answer(p.oneTimeKey(r))
	case *frames.AdoptRequest:
		return answer(p.adopt(r))
	case *frames.SharesRequest:
		return answer(p.shares())
	case *frames.VerifySharesRequest:
		return answer(p.verifyShares(r))
	case *frames.RestoreRequest:
		return answer(p.restore(r))
	case *frames.JoinKeyRequest:
		return answer(p.newJoinKey())
	case *frames.JoinRequest:
		return answer(p.join(r))
	case *frames.AdmitRequest:
		return answer(p.admit(r))
	case *frames.RecipeRequest:
		return answer(p.recipe(r))
	case *frames.IdentityRequest:
		return p.identity(), nil
	case *frames.DeviceRequest:
		return &frames.DeviceResponse{Kind: claviger.Soft, Manufacturer: "Claviger", Model: "key process", Software: true, Algorithms: claviger.Algorithms()}, nil
	case *frames.EvidenceRequest:
		return &frames.EvidenceResponse{PID: uint32(os.Getpid()), Level: p.level, Measures: p.measures}, nil
	}
	return nil, claviger.Errorf(claviger.Unsupported, "the key process does not do this", "use a server and a key process of one release")
}

// answer makes a response of any type a Response, keeping nil errors nil.
func answer[R frames.Response](r R, err error) (frames.Response, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (p *Process) identity() *frames.IdentityResponse {
	resp := &frames.IdentityResponse{Joining: true}
	if r := p.root.Load(); r != nil {
		resp.Public = r.public
		if n := len(r.generations); n > 0 {
			resp.Generation, resp.Joining = r.generations[n-1].number, false
		}
	}
	return resp
}
