package dpop

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// Nonces makes and checks nonces (RFC 9449, 8) without keeping any: a nonce is
// a MAC of the epoch and of the span of time that it was made in. Servers with
// one MAC and one epoch share their nonces, and need no store for it. It is the
// same for every client, and asked for once a span, so that its key may well be
// in custody.
//
// A nonce is good in the span that it was made in and in the next; one of the
// span to come is good too, because another server's clock may be ahead.
type Nonces struct {
	MAC   func(ctx context.Context, message []byte) ([]byte, error) // at least 16 bytes that nobody else can compute
	Epoch uint64                                                    // raised to end every nonce that is out
	Span  time.Duration                                             // 0: one minute

	mu   sync.Mutex
	made map[int64]string // by span; the three that are good, and no more
}

// NonceKey is a MAC for Nonces by a key of at least 32 bytes in this process.
func NonceKey(key []byte) func(context.Context, []byte) ([]byte, error) {
	return func(_ context.Context, message []byte) ([]byte, error) {
		mac := hmac.New(sha256.New, key)
		mac.Write(message)
		return mac.Sum(nil), nil
	}
}

func (n *Nonces) span() time.Duration {
	if n.Span == 0 {
		return time.Minute
	}
	return n.Span
}

func (n *Nonces) number(at time.Time) int64 { return at.UnixNano() / int64(n.span()) }

// Current returns the nonce of now, for the DPoP-Nonce field of a response.
func (n *Nonces) Current(ctx context.Context, now time.Time) (string, error) {
	return n.of(ctx, n.number(now), n.number(now))
}

// of returns the nonce of a span; current is the one that it is now.
func (n *Nonces) of(ctx context.Context, span, current int64) (string, error) {
	n.mu.Lock()
	nonce, ok := n.made[span]
	n.mu.Unlock()
	if ok {
		return nonce, nil
	}
	message := append([]byte("claviger dpop nonce\x00"), make([]byte, 16)...)
	binary.BigEndian.PutUint64(message[len(message)-16:], n.Epoch)
	binary.BigEndian.PutUint64(message[len(message)-8:], uint64(span))
	sum, err := n.MAC(ctx, message)
	if err != nil || len(sum) < 16 {
		return "", &Error{Code: Unavailable, Msg: "no nonce can be made now: try again", Err: err}
	}
	nonce = encode(sum[:16])
	n.mu.Lock()
	defer n.mu.Unlock()
	for old := range n.made {
		if old < current-1 || old > current+1 {
			delete(n.made, old)
		}
	}
	if n.made == nil {
		n.made = map[int64]string{}
	}
	n.made[span] = nonce
	return nonce, nil
}

// check returns until when a nonce is good. Whatever is wrong with one, the
// answer is that the newest is to be used.
func (n *Nonces) check(ctx context.Context, nonce string, now time.Time) (time.Time, error) {
	current := n.number(now)
	for _, span := range []int64{current, current - 1, current + 1} {
		want, err := n.of(ctx, span, current)
		if err != nil {
			return time.Time{}, err
		}
		if nonce != "" && equal(nonce, want) {
			return time.Unix(0, (span+2)*int64(n.span())), nil
		}
	}
	return time.Time{}, &Error{Code: UseNonce, Msg: "the proof needs the nonce that the DPoP-Nonce field of this response has"}
}
