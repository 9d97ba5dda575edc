package broker

import (
	"context"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// Door is what the broker asks of the keeper. Errors are as the keeper's own:
// claviger.NotFound for what is not there, claviger.Denied for what may not be.
type Door interface {
	clients
	tokens
	sessions
	onetimes
}

type clients interface {
	Client(ctx context.Context, ref string) (claviger.Client, error)
	ClientLive(ctx context.Context, ref string) (claviger.Client, error)
}

type tokens interface {
	IssueToken(ctx context.Context, by claviger.Principal, t keeper.TokenRequest) (keeper.TokenIssued, error)
	TokenKeys(ctx context.Context) ([]byte, error)
	RevokeToken(ctx context.Context, by claviger.Principal, jti string, ends time.Time) error
	TokenRevoked(ctx context.Context, jti string) (bool, error)
	TokenRefused(ctx context.Context, by claviger.Principal, client claviger.Name, rule string) error
}

type sessions interface {
	OpenSession(ctx context.Context, by claviger.Principal, n keeper.NewSession) (claviger.Session, error)
	SessionLive(ctx context.Context, id claviger.ID) (claviger.Session, error)
	EndSession(ctx context.Context, by claviger.Principal, id claviger.ID, why keeper.End) error
	EndSessions(ctx context.Context, by claviger.Principal, q keeper.SessionQuery, why keeper.End) (int, error)
	System() claviger.Principal
}

type onetimes interface {
	PutOneTime(ctx context.Context, o store.OneTime) error
	TakeOneTime(ctx context.Context, kind string, hash [32]byte) (store.OneTime, error)
	PutRefresh(ctx context.Context, r store.Refresh) error
	TakeRefresh(ctx context.Context, hash [32]byte) (claviger.Session, error)
}
