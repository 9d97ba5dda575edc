package frames

// Verb implements Request.
func (*IdentityRequest) Verb() Verb { return VerbIdentity }

// Verb implements Request.
func (*GenerateRequest) Verb() Verb { return VerbGenerate }

// Verb implements Request.
func (*OneTimeKeyRequest) Verb() Verb { return VerbOneTimeKey }

// Verb implements Request.
func (*AdoptRequest) Verb() Verb { return VerbAdopt }

// Verb implements Request.
func (*LoadRequest) Verb() Verb { return VerbLoad }

// Verb implements Request.
func (*UnloadRequest) Verb() Verb { return VerbUnload }

// Verb implements Request.
func (*SignRequest) Verb() Verb { return VerbSign }

// Verb implements Request.
func (*MACRequest) Verb() Verb { return VerbMAC }

// Verb implements Request.
func (*VerifyMACRequest) Verb() Verb { return VerbVerifyMAC }

// Verb implements Request.
func (*SealRequest) Verb() Verb { return VerbSeal }

// Verb implements Request.
func (*OpenRequest) Verb() Verb { return VerbOpen }

// Verb implements Request.
func (*RewrapRequest) Verb() Verb { return VerbRewrap }

// Verb implements Request.
func (*SharesRequest) Verb() Verb { return VerbShares }

// Verb implements Request.
func (*VerifySharesRequest) Verb() Verb { return VerbVerifyShares }

// Verb implements Request.
func (*RestoreRequest) Verb() Verb { return VerbRestore }

// Verb implements Request.
func (*JoinKeyRequest) Verb() Verb { return VerbJoinKey }

// Verb implements Request.
func (*JoinRequest) Verb() Verb { return VerbJoin }

// Verb implements Request.
func (*AdmitRequest) Verb() Verb { return VerbAdmit }

// Verb implements Request.
func (*FindRequest) Verb() Verb { return VerbFind }

// Verb implements Request.
func (*EvidenceRequest) Verb() Verb { return VerbEvidence }

// Verb implements Request.
func (*RecipeRequest) Verb() Verb { return VerbRecipe }

// Verb implements Request.
func (*DeviceRequest) Verb() Verb { return VerbDevice }

// Verb implements Request.
func (*BindRequest) Verb() Verb { return VerbBind }

// Verb implements Request.
func (*AttestRequest) Verb() Verb { return VerbAttest }

// Verb implements Request.
func (*EndorseRequest) Verb() Verb { return VerbEndorse }

// Verb implements Request.
func (*ActivateRequest) Verb() Verb { return VerbActivate }

// Verb implements Request.
func (*ProbeRequest) Verb() Verb { return VerbProbe }

// Verb implements Request.
func (*DestroyRequest) Verb() Verb { return VerbDestroy }

// Verb implements Request.
func (*SearchRequest) Verb() Verb { return VerbSearch }

// Verb implements Response.
func (*IdentityResponse) Verb() Verb { return VerbIdentity }

// Verb implements Response.
func (*GenerateResponse) Verb() Verb { return VerbGenerate }

// Verb implements Response.
func (*OneTimeKeyResponse) Verb() Verb { return VerbOneTimeKey }

// Verb implements Response.
func (*AdoptResponse) Verb() Verb { return VerbAdopt }

// Verb implements Response.
func (*LoadResponse) Verb() Verb { return VerbLoad }

// Verb implements Response.
func (*UnloadResponse) Verb() Verb { return VerbUnload }

// Verb implements Response.
func (*SignResponse) Verb() Verb { return VerbSign }

// Verb implements Response.
func (*MACResponse) Verb() Verb { return VerbMAC }

// Verb implements Response.
func (*VerifyMACResponse) Verb() Verb { return VerbVerifyMAC }

// Verb implements Response.
func (*SealResponse) Verb() Verb { return VerbSeal }

// Verb implements Response.
func (*OpenResponse) Verb() Verb { return VerbOpen }

// Verb implements Response.
func (*RewrapResponse) Verb() Verb { return VerbRewrap }

// Verb implements Response.
func (*SharesResponse) Verb() Verb { return VerbShares }

// Verb implements Response.
func (*VerifySharesResponse) Verb() Verb { return VerbVerifyShares }

// Verb implements Response.
func (*RestoreResponse) Verb() Verb { return VerbRestore }

// Verb implements Response.
func (*JoinKeyResponse) Verb() Verb { return VerbJoinKey }

// Verb implements Response.
func (*JoinResponse) Verb() Verb { return VerbJoin }

// Verb implements Response.
func (*AdmitResponse) Verb() Verb { return VerbAdmit }

// Verb implements Response.
func (*FindResponse) Verb() Verb { return VerbFind }

// Verb implements Response.
func (*EvidenceResponse) Verb() Verb { return VerbEvidence }

// Verb implements Response.
func (*RecipeResponse) Verb() Verb { return VerbRecipe }

// Verb implements Response.
func (*DeviceResponse) Verb() Verb { return VerbDevice }

// Verb implements Response.
func (*BindResponse) Verb() Verb { return VerbBind }

// Verb implements Response.
func (*AttestResponse) Verb() Verb { return VerbAttest }

// Verb implements Response.
func (*EndorseResponse) Verb() Verb { return VerbEndorse }

// Verb implements Response.
func (*ActivateResponse) Verb() Verb { return VerbActivate }

// Verb implements Response.
func (*ProbeResponse) Verb() Verb { return VerbProbe }

// Verb implements Response.
func (*DestroyResponse) Verb() Verb { return VerbDestroy }

// Verb implements Response.
func (*SearchResponse) Verb() Verb { return VerbSearch }

func newRequest(v Verb) Request {
	switch v {
	case VerbIdentity:
		return new(IdentityRequest)
	case VerbGenerate:
		return new(GenerateRequest)
	case VerbOneTimeKey:
		return new(OneTimeKeyRequest)
	case VerbAdopt:
		return new(AdoptRequest)
	case VerbLoad:
		return new(LoadRequest)
	case VerbUnload:
		return new(UnloadRequest)
	case VerbSign:
		return new(SignRequest)
	case VerbMAC:
		return new(MACRequest)
	case VerbVerifyMAC:
		return new(VerifyMACRequest)
	case VerbSeal:
		return new(SealRequest)
	case VerbOpen:
		return new(OpenRequest)
	case VerbRewrap:
		return new(RewrapRequest)
	case VerbShares:
		return new(SharesRequest)
	case VerbVerifyShares:
		return new(VerifySharesRequest)
	case VerbRestore:
		return new(RestoreRequest)
	case VerbJoinKey:
		return new(JoinKeyRequest)
	case VerbJoin:
		return new(JoinRequest)
	case VerbAdmit:
		return new(AdmitRequest)
	case VerbFind:
		return new(FindRequest)
	case VerbEvidence:
		return new(EvidenceRequest)
	case VerbRecipe:
		return new(RecipeRequest)
	case VerbDevice:
		return new(DeviceRequest)
	case VerbBind:
		return new(BindRequest)
	case VerbAttest:
		return new(AttestRequest)
	case VerbEndorse:
		return new(EndorseRequest)
	case VerbActivate:
		return new(ActivateRequest)
	case VerbProbe:
		return new(ProbeRequest)
	case VerbSearch:
		return new(SearchRequest)
	case VerbDestroy:
		return new(DestroyRequest)
	}
	return nil
}

func newResponse(v Verb) Response {
	switch v {
	case VerbIdentity:
		return new(IdentityResponse)
	case VerbGenerate:
		return new(GenerateResponse)
	case VerbOneTimeKey:
		return new(OneTimeKeyResponse)
	case VerbAdopt:
		return new(AdoptResponse)
	case VerbLoad:
		return new(LoadResponse)
	case VerbUnload:
		return new(UnloadResponse)
	case VerbSign:
		return new(SignResponse)
	case VerbMAC:
		return new(MACResponse)
	case VerbVerifyMAC:
		return new(VerifyMACResponse)
	case VerbSeal:
		return new(SealResponse)
	case VerbOpen:
		return new(OpenResponse)
	case VerbRewrap:
		return new(RewrapResponse)
	case VerbShares:
		return new(SharesResponse)
	case VerbVerifyShares:
		return new(VerifySharesResponse)
	case VerbRestore:
		return new(RestoreResponse)
	case VerbJoinKey:
		return new(JoinKeyResponse)
	case VerbJoin:
		return new(JoinResponse)
	case VerbAdmit:
		return new(AdmitResponse)
	case VerbFind:
		return new(FindResponse)
	case VerbEvidence:
		return new(EvidenceResponse)
	case VerbRecipe:
		return new(RecipeResponse)
	case VerbDevice:
		return new(DeviceResponse)
	case VerbBind:
		return new(BindResponse)
	case VerbAttest:
		return new(AttestResponse)
	case VerbEndorse:
		return new(EndorseResponse)
	case VerbActivate:
		return new(ActivateResponse)
	case VerbProbe:
		return new(ProbeResponse)
	case VerbSearch:
		return new(SearchResponse)
	case VerbDestroy:
		return new(DestroyResponse)
	}
	return nil
}
