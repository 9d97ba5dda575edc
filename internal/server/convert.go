package server

import (
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/onetime"
)

// reply ends a handler: the message, or the error and no message.
func reply[M any](message *M, err error) (*connect.Response[M], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(message), nil
}

func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}

func texts[T ~string](in []T) []string { return each(in, func(t T) string { return string(t) }) }

func invalid(msg, hint string) *claviger.Error {
	return claviger.Errorf(claviger.Invalid, msg, hint)
}

func timeTo(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeFrom(t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if !t.IsValid() {
		return time.Time{}, invalid("a time is out of range", "write it as in RFC 3339, between the years 1 and 9999")
	}
	return t.AsTime(), nil
}

func durationTo(d claviger.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}

// durationFrom reads a duration that must not be negative. One of more than
// about 292 years does not fit and is refused, so that nothing is cut short.
func durationFrom(d *durationpb.Duration) (claviger.Duration, error) {
	if d == nil {
		return 0, nil
	}
	v := d.AsDuration()
	if !d.IsValid() || v < 0 || d.Seconds != int64(v/time.Second) {
		return 0, invalid("a duration is negative or out of range", "write it in seconds, such as \"3600s\"")
	}
	return claviger.Duration(v), nil
}

func useTo(c keeper.Count) *clavigerv1.UseCount {
	return &clavigerv1.UseCount{Count: c.Count, Last: timeTo(c.Last)}
}

func oneTimeTo(k onetime.Key) *clavigerv1.OneTimeKey {
	return &clavigerv1.OneTimeKey{
		Id: k.ID, Public: k.Public, Identity: k.Identity, Signature: k.Signature, Expires: timeTo(k.Expires),
		KeyId: string(k.Binding.KeyID), Version: k.Binding.Version, Algorithm: string(k.Binding.Algorithm),
	}
}
