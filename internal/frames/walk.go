package frames

import (
	claviger "claviger.dev"
	"claviger.dev/internal/recipe"
)

// Wire order of every message. Sizes that are not MaxInput are the largest
// that a key process makes, with room.

const (
	maxBlob   = 8 << 10
	maxPublic = 4 << 10
	maxBundle = 128 << 10 // the root bundle, encrypted
	maxText   = 1 << 10
	maxSealed = MaxInput + 64 // nonce and tag over the largest plaintext
)

func (s *Slot) fields(c *codec) { c.u64(&s.Epoch); c.u64(&s.Number) }

func (u *Use) fields(c *codec) { u.Slot.fields(c); c.array(u.Fingerprint[:]) }

func (f *Fault) walk(c *codec) { c.text(&f.Message, maxText); c.text(&f.Hint, maxText) }

func (*IdentityRequest) walk(*codec)     {}
func (r *GenerateRequest) walk(c *codec) { r.Binding.fields(c) }
func (r *OneTimeKeyRequest) walk(c *codec) {
	c.text(&r.Purpose, 16)
	r.Binding.fields(c)
}
func (r *AdoptRequest) walk(c *codec) {
	r.Binding.fields(c)
	c.text(&r.OneTime, 64)
	c.bytes(&r.Sealed, maxBlob)
}
func (r *LoadRequest) walk(c *codec)   { r.Binding.fields(c); c.bytes(&r.Blob, maxBlob) }
func (r *UnloadRequest) walk(c *codec) { r.Slot.fields(c) }
func (r *SignRequest) walk(c *codec) {
	r.Use.fields(c)
	c.bool(&r.Prehashed)
	c.batch(&r.Inputs)
}
func (r *MACRequest) walk(c *codec) { r.Use.fields(c); c.batch(&r.Inputs) }
func (r *VerifyMACRequest) walk(c *codec) {
	r.Use.fields(c)
	c.batch(&r.Inputs)
	c.batch(&r.MACs)
	if c.err == nil && len(r.Inputs) != len(r.MACs) {
		c.fail("%d inputs with %d codes", len(r.Inputs), len(r.MACs))
	}
}
func (r *SealRequest) walk(c *codec) {
	r.Use.fields(c)
	list(c, &r.Items, 1, 8, func(p *Plain) {
		c.bytes(&p.Plaintext, MaxInput)
		c.bytes(&p.AssociatedData, MaxInput)
	})
}
func (r *OpenRequest) walk(c *codec) {
	r.Use.fields(c)
	list(c, &r.Items, 1, 8, func(s *Sealed) {
		c.bytes(&s.Sealed, maxSealed)
		c.bytes(&s.AssociatedData, MaxInput)
	})
}
func (r *RewrapRequest) walk(c *codec)       { r.Binding.fields(c); c.bytes(&r.Blob, maxBlob) }
func (*SharesRequest) walk(*codec)           {}
func (r *VerifySharesRequest) walk(c *codec) { c.text(&r.OneTime, 64); c.batch(&r.Sealed) }
func (r *RestoreRequest) walk(c *codec)      { c.text(&r.OneTime, 64); c.batch(&r.Sealed) }
func (*JoinKeyRequest) walk(*codec)          {}
func (r *JoinRequest) walk(c *codec) {
	c.bytes(&r.Wrapped, maxBundle)
	c.bytes(&r.Identity, 32)
}
func (r *AdmitRequest) walk(c *codec) { c.bytes(&r.JoinKey, maxPublic) }
func (r *FindRequest) walk(c *codec)  { r.Use.fields(c); c.bytes(&r.Haystack, MaxInput) }
func (*EvidenceRequest) walk(*codec)  {}
func (*UnloadResponse) walk(*codec)   {}
func (*RestoreResponse) walk(*codec)  {}
func (*JoinResponse) walk(*codec)     {}
func (r *IdentityResponse) walk(c *codec) {
	c.array(r.Public[:])
	c.u32(&r.Generation)
	c.bool(&r.Joining)
}
func (r *GenerateResponse) walk(c *codec) { r.Made.fields(c) }
func (r *AdoptResponse) walk(c *codec)    { r.Made.fields(c) }
func (r *Made) fields(c *codec) {
	c.bytes(&r.Blob, maxBlob)
	c.bytes(&r.Public, maxPublic)
	c.array(r.Fingerprint[:])
	c.text((*string)(&r.Level), 16)
	c.u32(&r.Generation)
	c.text(&r.Reference, maxText)
}
func (r *OneTimeKeyResponse) walk(c *codec) {
	c.text(&r.ID, 64)
	c.bytes(&r.Public, maxPublic)
	c.u64(&r.Expires)
	c.array(r.Identity[:])
	c.array(r.Signature[:])
}
func (r *LoadResponse) walk(c *codec) { r.Slot.fields(c); c.array(r.Fingerprint[:]) }
func (r *SignResponse) walk(c *codec) { c.array(r.Fingerprint[:]); c.batch(&r.Signatures) }
func (r *MACResponse) walk(c *codec)  { c.array(r.Fingerprint[:]); c.batch(&r.MACs) }
func (r *VerifyMACResponse) walk(c *codec) {
	c.array(r.Fingerprint[:])
	list(c, &r.Valid, 1, 1, c.bool)
}
func (r *SealResponse) walk(c *codec) {
	c.array(r.Fingerprint[:])
	list(c, &r.Sealed, 1, 4, func(b *[]byte) { c.bytes(b, maxSealed) })
}
func (r *OpenResponse) walk(c *codec) {
	c.array(r.Fingerprint[:])
	list(c, &r.Opened, 1, 5, func(o *Opened) {
		c.bool(&o.OK)
		c.bytes(&o.Plaintext, MaxInput)
		if !o.OK && len(o.Plaintext) > 0 {
			c.fail("plaintext of an item that did not open")
		}
	})
}
func (r *RewrapResponse) walk(c *codec) { c.bytes(&r.Blob, maxBlob); c.u32(&r.Generation) }
func (r *SharesResponse) walk(c *codec) {
	c.u32(&r.Threshold)
	list(c, &r.Shares, 1, 8, func(s *Share) {
		c.text(&s.Holder, maxText)
		c.bytes(&s.Encrypted, maxBundle)
	})
}
func (r *VerifySharesResponse) walk(c *codec) {
	c.bool(&r.Restores)
	c.u32(&r.Count)
	c.u32(&r.Threshold)
}
func (r *JoinKeyResponse) walk(c *codec) { c.bytes(&r.Public, maxPublic) }
func (r *AdmitResponse) walk(c *codec)   { c.bytes(&r.Wrapped, maxBundle) }
func (r *FindResponse) walk(c *codec)    { c.array(r.Fingerprint[:]); c.bool(&r.Found) }
func (r *EvidenceResponse) walk(c *codec) {
	c.u32(&r.PID)
	c.text((*string)(&r.Level), 16)
	list(c, &r.Measures, 0, 16, func(m *Measure) {
		c.text(&m.Name, maxText)
		c.text(&m.State, maxText)
		c.text(&m.Detail, maxText)
		c.text(&m.Gain, maxText)
	})
}

func (r *RecipeRequest) walk(c *codec) {
	r.Use.fields(c)
	c.text((*string)(&r.Recipe.Scheme), 32)
	c.text((*string)(&r.Recipe.Derivation), 32)
	c.text((*string)(&r.Recipe.Hash), 32)
	c.text((*string)(&r.Recipe.MAC), 32)
	c.text(&r.Recipe.Salt, recipe.MaxSalt)
	c.text(&r.Recipe.Salt2, recipe.MaxSalt)
	c.text(&r.Recipe.Purposes, recipe.MaxPurposes)
	c.u32(&r.Recipe.Iterations)
	c.u32(&r.Recipe.Size)
	c.bool(&r.Make)
	list(c, &r.Items, 1, 8, func(i *recipe.Item) {
		c.bytes(&i.Data, MaxInput+recipe.Overhead)
		c.bytes(&i.Aside, recipe.MaxAside)
	})
}
func (r *RecipeResponse) walk(c *codec) {
	c.array(r.Fingerprint[:])
	list(c, &r.Results, 1, 5, func(o *recipe.Result) {
		c.bool(&o.OK)
		c.bytes(&o.Output, MaxInput+recipe.Overhead)
		if !o.OK && len(o.Output) > 0 {
			c.fail("output of an item that is not OK")
		}
	})
}

func (*DeviceRequest) walk(*codec)   {}
func (r *BindRequest) walk(c *codec) { r.Binding.fields(c); c.text(&r.Reference, maxText) }
func (r *AttestRequest) walk(c *codec) {
	r.Binding.fields(c)
	c.bytes(&r.Blob, maxBlob)
	c.bytes(&r.Nonce, 64)
}
func (*EndorseRequest) walk(*codec) {}
func (r *ActivateRequest) walk(c *codec) {
	c.bytes(&r.Credential, maxPublic)
	c.bytes(&r.Encrypted, maxPublic)
}
func (r *DestroyRequest) walk(c *codec)  { r.Binding.fields(c); c.bytes(&r.Blob, maxBlob) }
func (r *DestroyResponse) walk(c *codec) { c.bool(&r.Kept) }
func (r *ProbeRequest) walk(c *codec) {
	r.Binding.fields(c)
	c.bytes(&r.Blob, maxBlob)
	c.bool(&r.Loud)
}
func (r *SearchRequest) walk(c *codec) {
	list(c, &r.Items, 1, 32, func(s *Stored) {
		s.Binding.fields(c)
		c.bytes(&s.Blob, maxBlob)
		c.array(s.Fingerprint[:])
	})
	c.bytes(&r.Haystack, MaxInput)
}
func (r *DeviceResponse) walk(c *codec) {
	c.text((*string)(&r.Kind), 16)
	c.text(&r.Manufacturer, maxText)
	c.text(&r.Model, maxText)
	c.text(&r.Serial, maxText)
	c.text(&r.Firmware, maxText)
	c.bool(&r.Software)
	list(c, &r.Algorithms, 0, 4, func(a *claviger.Algorithm) { c.text((*string)(a), 64) })
}
func (r *BindResponse) walk(c *codec) { r.Made.fields(c) }
func (r *AttestResponse) walk(c *codec) {
	c.bytes(&r.KeyPublic, maxPublic)
	c.bytes(&r.Attest, maxPublic)
	c.bytes(&r.Signature, maxPublic)
	c.bytes(&r.AKPublic, maxPublic)
	c.bytes(&r.EKPublic, maxPublic)
	list(c, &r.EKCertificates, 0, 4, func(b *[]byte) { c.bytes(b, maxBlob) })
}
func (r *EndorseResponse) walk(c *codec) {
	c.bytes(&r.AKPublic, maxPublic)
	c.bytes(&r.EKPublic, maxPublic)
	list(c, &r.EKCertificates, 0, 4, func(b *[]byte) { c.bytes(b, maxBlob) })
}
func (r *ActivateResponse) walk(c *codec) { c.bytes(&r.Challenge, 32) }
func (r *ProbeResponse) walk(c *codec) {
	c.text((*string)(&r.Level), 16)
	c.text(&r.Finding, maxText)
	list(c, &r.Attempts, 0, 24, func(a *claviger.Attempt) {
		c.text(&a.Probe, maxText)
		c.text(&a.Tried, maxText)
		c.text(&a.Result, maxText)
		c.text((*string)(&a.Verdict), 16)
		c.text(&a.Control, maxText)
		c.text(&a.Reason, maxText)
	})
}
func (r *SearchResponse) walk(c *codec) {
	list(c, &r.Found, 0, 12, func(h *Hit) { c.u32(&h.Item); c.u32(&h.Offset); c.text(&h.Encoding, 32) })
}
