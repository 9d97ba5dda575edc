package tpmd

import (
	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

// probe attacks a key and says what came of it: the level that the key keeps,
// and the worst finding.
func (p *Process) probe(req *frames.ProbeRequest) (*frames.ProbeResponse, error) {
	k, err := key(req.Binding, req.Blob)
	if err != nil {
		return nil, err
	}
	resp := &frames.ProbeResponse{}
	if resp.Level, err = p.level(); err != nil {
		return nil, err
	}
	if resp.Attempts, err = p.device.Probe(k, req.Loud); err != nil {
		return nil, err
	}
	for _, a := range resp.Attempts {
		if a.Verdict == claviger.Leaked {
			resp.Level = claviger.Exposed
			if resp.Finding == "" {
				resp.Finding = a.Probe + ": " + a.Result
			}
		}
	}
	return resp, nil
}
