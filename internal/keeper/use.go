package keeper

import (
	"context"
	"encoding/binary"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/policy"
	"claviger.dev/pubkey"
)

// Sign signs with the active version of a key.
func (k *Keeper) Sign(ctx context.Context, by claviger.Principal, req SignRequest) (Signed, error) {
	if err := checkItems(sizesOf(req.Inputs)); err != nil {
		return Signed{}, err
	}
	a := ask{op: claviger.Sign, key: req.Key, context: req.Context, count: len(req.Inputs), digest: digestOf(req.Inputs...)}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) (Signed, error) {
		if err := checkDigests(p.state.key.Algorithm, req.Prehashed, req.Inputs); err != nil {
			return Signed{}, err
		}
		signatures, kid, err := k.signWith(ctx, p, req.Inputs, req.Prehashed)
		if err != nil {
			return Signed{}, err
		}
		if req.Encoding == pubkey.P1363 {
			for i := range signatures {
				if signatures[i], err = pubkey.ToP1363(p.state.key.Algorithm, signatures[i]); err != nil {
					return Signed{}, err
				}
			}
		}
		return Signed{Signatures: signatures, Version: p.version().Number, KID: kid}, nil
	})
}

// SignStructured builds or checks a structure by the grant's template and
// signs it.
func (k *Keeper) SignStructured(ctx context.Context, by claviger.Principal, req StructuredRequest) (Structured, error) {
	s, body, err := req.structured()
	if err != nil {
		return Structured{}, err
	}
	a := ask{op: claviger.Sign, key: req.Key, context: req.Context, structured: s, count: 1, digest: digestOf(body)}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) (Structured, error) {
		built := p.allowed.Structure
		signatures, kid, err := k.signWith(ctx, p, [][]byte{built.ToBeSigned}, false)
		if err != nil {
			return Structured{}, err
		}
		whole, err := built.Assemble(signatures[0])
		if err != nil {
			return Structured{}, err
		}
		return Structured{Signed: whole, Version: p.version().Number, KID: kid}, nil
	})
}

// structured returns the request as policy takes it, and the bytes that the
// record's digest is over.
func (req StructuredRequest) structured() (*policy.Structured, []byte, error) {
	s := &policy.Structured{X509TBS: req.X509TBS, SSHTBS: req.SSHTBS}
	set, body := 0, []byte(nil)
	if req.JWT != nil {
		s.JWT = &policy.JWT{Claims: req.JWT.Claims, Type: req.JWT.Type}
		set, body = set+1, req.JWT.Claims
	}
	for _, tbs := range [][]byte{req.X509TBS, req.SSHTBS} {
		if tbs != nil {
			set, body = set+1, tbs
		}
	}
	if set != 1 {
		return nil, nil, claviger.Errorf(claviger.Invalid, "a structured request has exactly one structure", "send a JWT, an X.509 or an SSH certificate")
	}
	return s, body, checkItems([]int{len(body)})
}

// signWith signs with the version of a permit.
func (k *Keeper) signWith(ctx context.Context, p permit, inputs [][]byte, prehashed bool) ([][]byte, string, error) {
	v := p.version()
	_, kid, err := p.state.public(v)
	if err != nil {
		return nil, "", err
	}
	u, m, err := k.material(ctx, p, v)
	if err != nil {
		return nil, "", err
	}
	p.tally.add(v.Number, len(inputs))
	signatures, err := u.Sign(ctx, m, inputs, prehashed)
	if err != nil {
		return nil, "", err
	}
	return signatures, kid, checkAnswers(len(signatures), len(inputs))
}

// Verify checks signatures with the public halves of a key. It asks no
// custodian.
func (k *Keeper) Verify(ctx context.Context, by claviger.Principal, req VerifyRequest) ([]Verdict, error) {
	if err := checkItems(itemSizes(req.Items)); err != nil {
		return nil, err
	}
	a := ask{op: claviger.Verify, key: req.Key, context: req.Context, count: len(req.Items), digest: digestItems(req.Items)}
	return pass(ctx, k, by, a, func(_ context.Context, p permit) ([]Verdict, error) {
		if req.Prehashed && p.state.key.Algorithm.Hash() == 0 {
			return nil, checkDigests(p.state.key.Algorithm, true, nil)
		}
		verdicts := make([]Verdict, len(req.Items))
		for i, item := range req.Items {
			for _, v := range p.choose(item.Version) {
				half, _, err := p.state.public(v)
				if err != nil {
					return nil, err
				}
				check := half.Verify
				if req.Prehashed {
					check = half.VerifyDigest
				}
				if check(item.Input, item.Signature, req.Encoding) {
					verdicts[i] = Verdict{Valid: true, Version: v.Number}
					break
				}
			}
			p.note(verdicts[i])
		}
		return verdicts, nil
	})
}

// MAC computes MACs with the active version of a key.
func (k *Keeper) MAC(ctx context.Context, by claviger.Principal, req MACRequest) (MACs, error) {
	if err := checkItems(sizesOf(req.Inputs)); err != nil {
		return MACs{}, err
	}
	a := ask{op: claviger.MAC, key: req.Key, context: req.Context, count: len(req.Inputs), digest: digestOf(req.Inputs...)}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) (MACs, error) {
		u, m, err := k.material(ctx, p, p.version())
		if err != nil {
			return MACs{}, err
		}
		p.tally.add(p.version().Number, len(req.Inputs))
		macs, err := u.MAC(ctx, m, req.Inputs)
		if err != nil {
			return MACs{}, err
		}
		return MACs{MACs: macs, Version: p.version().Number}, checkAnswers(len(macs), len(req.Inputs))
	})
}

// VerifyMAC checks MACs.
func (k *Keeper) VerifyMAC(ctx context.Context, by claviger.Principal, req VerifyMACRequest) ([]Verdict, error) {
	if err := checkItems(itemSizes(req.Items)); err != nil {
		return nil, err
	}
	a := ask{op: claviger.VerifyMAC, key: req.Key, context: req.Context, count: len(req.Items), digest: digestItems(req.Items)}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) ([]Verdict, error) {
		verdicts := make([]Verdict, len(req.Items))
		for _, v := range p.allowed.Versions { // newest first, each in one batch
			var inputs, macs [][]byte
			var at []int
			for i, item := range req.Items {
				if !verdicts[i].Valid && (item.Version == 0 || item.Version == v.Number) {
					inputs, macs, at = append(inputs, item.Input), append(macs, item.Signature), append(at, i)
				}
			}
			if len(at) == 0 {
				continue
			}
			u, m, err := k.material(ctx, p, v)
			if err != nil {
				return nil, err
			}
			valid, err := u.VerifyMAC(ctx, m, inputs, macs)
			if err == nil {
				err = checkAnswers(len(valid), len(at))
			}
			if err != nil {
				return nil, err
			}
			for j, ok := range valid {
				if ok {
					verdicts[at[j]] = Verdict{Valid: true, Version: v.Number}
				}
			}
		}
		for _, v := range verdicts {
			p.note(v)
		}
		return verdicts, nil
	})
}

// sealedFormat is the first byte of a sealed item; the version follows it.
const (
	sealedFormat = 1
	sealedHeader = 1 + 4
)

// sealedOverhead is by how much a sealed item is longer than its plaintext:
// header, nonce and tag.
const sealedOverhead = sealedHeader + 12 + 16

// Seal encrypts items with the active version of a key.
func (k *Keeper) Seal(ctx context.Context, by claviger.Principal, req SealRequest) (Sealed, error) {
	sizes, parts := make([]int, len(req.Items)), make([][]byte, 0, 2*len(req.Items))
	items := make([]custody.Plain, len(req.Items))
	for i, item := range req.Items {
		sizes[i] = len(item.Plaintext) + len(item.AssociatedData)
		// The record's digest is over what is public: a digest of a plaintext
		// would confirm guesses.
		parts = append(parts, item.AssociatedData)
		items[i] = custody.Plain{Plaintext: item.Plaintext, AssociatedData: item.AssociatedData}
	}
	if err := checkItems(sizes); err != nil {
		return Sealed{}, err
	}
	a := ask{op: claviger.Seal, key: req.Key, context: req.Context, count: len(items), digest: digestOf(parts...)}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) (Sealed, error) {
		v := p.version()
		u, m, err := k.material(ctx, p, v)
		if err != nil {
			return Sealed{}, err
		}
		p.tally.add(v.Number, len(items))
		sealed, err := u.Seal(ctx, m, items)
		if err == nil {
			err = checkAnswers(len(sealed), len(items))
		}
		if err != nil {
			return Sealed{}, err
		}
		for i, s := range sealed {
			whole := make([]byte, sealedHeader, sealedHeader+len(s))
			whole[0] = sealedFormat
			binary.BigEndian.PutUint32(whole[1:], v.Number)
			sealed[i] = append(whole, s...)
		}
		return Sealed{Sealed: sealed, Version: v.Number}, nil
	})
}

// Open decrypts items.
func (k *Keeper) Open(ctx context.Context, by claviger.Principal, req OpenRequest) ([]Opened, error) {
	sizes, parts := make([]int, len(req.Items)), make([][]byte, 0, 2*len(req.Items))
	for i, item := range req.Items {
		// The limits are those of the plaintext: what could be sealed opens.
		sizes[i] = max(0, len(item.Sealed)-sealedOverhead) + len(item.AssociatedData)
		parts = append(parts, item.Sealed, item.AssociatedData)
	}
	if err := checkItems(sizes); err != nil {
		return nil, err
	}
	a := ask{op: claviger.Open, key: req.Key, context: req.Context, count: len(req.Items), digest: digestOf(parts...)}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) ([]Opened, error) {
		opened := make([]Opened, len(req.Items))
		for _, v := range p.allowed.Versions {
			var items []custody.Sealed
			var at []int
			for i, item := range req.Items {
				if sealedVersion(item.Sealed) == v.Number {
					items, at = append(items, custody.Sealed{Sealed: item.Sealed[sealedHeader:], AssociatedData: item.AssociatedData}), append(at, i)
				}
			}
			if len(at) == 0 {
				continue
			}
			u, m, err := k.material(ctx, p, v)
			if err != nil {
				return nil, err
			}
			answers, err := u.Open(ctx, m, items)
			if err == nil {
				err = checkAnswers(len(answers), len(at))
			}
			if err != nil {
				return nil, err
			}
			for j, answer := range answers {
				if answer.OK {
					opened[at[j]] = Opened{OK: true, Plaintext: answer.Plaintext, Version: v.Number}
				}
			}
		}
		for _, o := range opened {
			p.note(Verdict{Valid: o.OK, Version: o.Version})
		}
		return opened, nil
	})
}

// sealedVersion returns the version that sealed an item, 0 when it has no
// form that Seal makes.
func sealedVersion(sealed []byte) uint32 {
	if len(sealed) < sealedHeader || sealed[0] != sealedFormat {
		return 0
	}
	return binary.BigEndian.Uint32(sealed[1:])
}

// choose returns the permitted versions that an item names: all for 0.
func (p permit) choose(number uint32) []*claviger.Version {
	if number == 0 {
		return p.allowed.Versions
	}
	for i, v := range p.allowed.Versions {
		if v.Number == number {
			return p.allowed.Versions[i : i+1]
		}
	}
	return nil
}

// note counts one verdict.
func (p permit) note(v Verdict) {
	if v.Valid {
		p.tally.add(v.Version, 1)
	} else {
		p.tally.invalid++
	}
}

// checkDigests refuses digests where the algorithm takes messages, and those
// of another length than its hash's.
func checkDigests(alg claviger.Algorithm, prehashed bool, inputs [][]byte) error {
	if !prehashed {
		return nil
	}
	h := alg.Hash()
	if h == 0 {
		return claviger.Errorf(claviger.Invalid, "the algorithm signs messages, not digests", "send the message itself")
	}
	for _, in := range inputs {
		if len(in) != h.Size() {
			return claviger.Errorf(claviger.Invalid, "a digest has another length than the algorithm's hash", "hash with the key's own hash")
		}
	}
	return nil
}

// checkAnswers makes sure that a custodian answered every item.
func checkAnswers(got, want int) error {
	if got != want {
		return claviger.Errorf(claviger.Unavailable, "the custodian answered another number of items than it was asked", "try again")
	}
	return nil
}

func sizesOf(inputs [][]byte) []int {
	sizes := make([]int, len(inputs))
	for i, in := range inputs {
		sizes[i] = len(in)
	}
	return sizes
}

func itemSizes(items []Item) []int {
	sizes := make([]int, len(items))
	for i, item := range items {
		sizes[i] = len(item.Input) + len(item.Signature)
	}
	return sizes
}

func digestItems(items []Item) string {
	parts := make([][]byte, 0, 2*len(items))
	for _, item := range items {
		parts = append(parts, item.Input, item.Signature)
	}
	return digestOf(parts...)
}
