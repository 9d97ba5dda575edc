// Package keeper is the door: the one place through which every key is used
// and every key, grant and principal is changed.
//
// It owns the order of things. A use is authorised, done by the custodian,
// recorded durably, checked for freshness and only then released; door.go
// shows that in one page. A change of state commits together with its record.
//
// It promises: whatever is released was allowed by a grant that still stood
// when it was checked for the last time and is in the audit log already; a
// refusal leaves exactly one record and nothing else; counts are exact; a key
// never has two active versions and a destroyed one never returns.
//
// It must never see private material, know HTTP, take identity from a context,
// or release anything that it could not record.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/follow"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/store"
)

// Custodian is what the door asks of the key process. Its methods answer
// claviger.Unavailable when the custodian cannot be reached in time, and never
// return private material.
type Custodian interface {
	Holder
	Maker
	RootHolder
	Searcher
	Runner
}

// Device is what the door asks of a TPM or a PKCS#11 token, under the same
// terms.
type Device interface {
	Holder
	Prover
	// Destroy deletes a key from the device; kept tells that it stays, because
	// others made it there. A key that is not there is no error.
	Destroy(ctx context.Context, m custody.Material) (kept bool, err error)
}

// Holder is what every custodian does.
type Holder interface {
	User
	Generator
}

// User does operations with material that is in custody. Every method fails
// when the custodian used material with another fingerprint than the one given.
type User interface {
	Sign(ctx context.Context, m custody.Material, inputs [][]byte, prehashed bool) ([][]byte, error)
	MAC(ctx context.Context, m custody.Material, inputs [][]byte) ([][]byte, error)
	VerifyMAC(ctx context.Context, m custody.Material, inputs, macs [][]byte) ([]bool, error)
	Seal(ctx context.Context, m custody.Material, items []custody.Plain) ([][]byte, error)
	Open(ctx context.Context, m custody.Material, items []custody.Sealed) ([]custody.Opened, error)
	Unload(ctx context.Context, m custody.Material) error // forgets material that was destroyed
}

// Runner runs recipes with machine keys.
type Runner interface {
	Recipe(ctx context.Context, m custody.Material, r recipe.Recipe, make bool, items []recipe.Item) ([]recipe.Result, error)
}

// Generator makes material, and says what it stands on.
type Generator interface {
	Generate(ctx context.Context, b frames.Binding) (custody.Made, error)
	Device(ctx context.Context) (claviger.Device, error)
}

// Maker brings material from outside into the key process, and under its
// newest root.
type Maker interface {
	OneTimeKey(ctx context.Context, purpose string, b frames.Binding) (onetime.Key, error)
	Adopt(ctx context.Context, b frames.Binding, oneTimeID string, sealed []byte) (custody.Made, error)
	Rewrap(ctx context.Context, b frames.Binding, blob []byte) (wrapped []byte, generation uint32, err error)
}

// RootHolder answers for the root key and for the key process's own protection.
type RootHolder interface {
	Identity(ctx context.Context) (custody.Identity, error)
	Evidence(ctx context.Context) (custody.Evidence, error)
	Admit(ctx context.Context, joinKey []byte) (wrapped []byte, err error)
	Shares(ctx context.Context) (custody.Shares, error)
	VerifyShares(ctx context.Context, oneTimeID string, sealed [][]byte) (restores bool, count, threshold int, err error)
}

// Searcher looks for the key process's own material.
type Searcher interface {
	Search(ctx context.Context, materials []custody.Material, haystack []byte) ([]custody.Hit, error)
}

// Prover takes keys of a device into custody and shows what custody is worth.
type Prover interface {
	Bind(ctx context.Context, b frames.Binding, reference string) (custody.Made, error)
	Attest(ctx context.Context, m custody.Material, nonce []byte) (custody.Attestation, error)
	Probe(ctx context.Context, m custody.Material, loud bool) (custody.Probed, error)
	Endorse(ctx context.Context) (custody.Endorsement, error)
	Activate(ctx context.Context, credential, encrypted []byte) ([]byte, error)
}

// Config is what a Keeper stands on. Store, Audit and Custodian are required.
type Config struct {
	Store     *store.DB
	Audit     audit.Log
	Custodian Custodian

	// Devices are the other custodians, TPM and P11. One that is not there
	// affects its own keys alone.
	Devices map[claviger.Custodian]Device
	// Judge makes a level of what a custodian says, with what proves it. Nil:
	// a device's own word, which is at most claviger.Hardware, and at most
	// claviger.Isolated where no hardware is behind it.
	Judge func(Observed) (Judged, error)
	// Notify tells owners that versions of theirs were exposed. What fails is
	// logged, recorded and tried again a few times. Nil: log and record alone.
	Notify func(ctx context.Context, n Notice) error

	// Backup writes an archive that is encrypted to age recipients, and writes
	// nothing when one of them is malformed. Nil: there are no backups.
	Backup func(ctx context.Context, recipients []string, w io.Writer) error

	// Export keeps one periodic checkpoint, a line of JSON without a newline,
	// where this host cannot change it. What fails is logged, shown by Doctor
	// and tried again. Nil: they stay in the record alone.
	Export func(ctx context.Context, line []byte) error
	// Examine adds measures of this host to Doctor's. Nil: none.
	Examine func() []Measure

	// SessionGuard judges a use of a session that is allowed, before it is done.
	// It must not block. Nil: there are no rules against abuse but the limits.
	SessionGuard func(claviger.Session, SessionUse) UseVerdict

	// TPMRoots vouch for the endorsement keys of TPMs. Empty: no key that a
	// principal is bound to is attested.
	TPMRoots []TPMRoot

	Now         func() time.Time     // wall clock; time.Now when nil
	BootTime    func() time.Duration // clock of the lease on a shared store, which counts suspend; CLOCK_BOOTTIME when nil
	Log         *slog.Logger         // discarded when nil
	Operators   []int                // uids that are operators on the local socket
	TrustDomain string               // of SPIFFE ids; "claviger.internal" when empty
	Names       []string             // DNS names and IP addresses of the server's certificate; "localhost" and the loopback addresses when empty
	Node        string               // names this server among those of one store, for the sightings; "server" when empty
	Version     string               // of the program, for Info
	Mark        string               // file that remembers the newest change seen here, of a shared store; memory alone when empty
	StoreName   string               // such as "sqlite", for Info
	Dev         bool                 // development settings, for Info and Doctor
	Leaf        time.Duration        // lifetime of issued certificates; 24 h when zero
	Checkpoints time.Duration        // between signed checkpoints of the audit log; 1 h when zero
	MaxAge      time.Duration        // of evidence: a level that was shown longer ago has lapsed; 7 days when zero
	Refresh     time.Duration        // between two looks at what the custodians report of every key; 24 h when zero
}

// Keeper is the door. Make it with Open; its methods may be called at once
// from any number of goroutines.
type Keeper struct {
	cfg     Config
	started time.Time
	policy  *policy.Engine

	changing  turn // held while a change is in its transaction
	cache     *cache
	follow    *follow.Follower // nil where the store is not shared
	budgets   *budgets
	counts    *counts
	verified  *aggregate // verifications
	issued    *issued
	writes    *group // of sessions, refresh tokens and one-time values
	events    eventCounts
	tokens    tokens
	unrevoked unrevoked
	handled   *aggregate // uses of system keys
	outbox    *outbox
	system    *system
	exports   *exports
	notices   *notices
	judging   turn // held from an attestation until it is judged
	sought    sought
	guard     *codeGuard
	bindings  *challenges

	submitted submissions // of evidence
	ready     readiness
}

// Open makes a Keeper: it brings leftover records to the audit log, makes the
// system keys at first start and takes the CA's certificate from the store.
// The custodian must answer.
func Open(ctx context.Context, cfg Config) (*Keeper, error) {
	cfg = cfg.withDefaults()
	k := &Keeper{
		cfg: cfg, started: cfg.Now(), policy: new(policy.Engine),
		changing: newTurn(),
		cache:    newCache(),
		budgets:  newBudgets(cfg.Store),
		counts:   newCounts(cfg.Store, cfg.Node),
		ready:    readiness{finding: newTurn()},
		outbox:   new(outbox),
		judging:  newTurn(),
		notices:  newNotices(cfg.Notify),
		exports:  &exports{to: cfg.Export, next: make(chan []audit.Checkpoint, 1)},
		guard:    &codeGuard{now: cfg.Now},
		bindings: newChallenges(cfg.Now),
	}
	k.writes = &group{store: cfg.Store, turn: newTurn()}
	k.issued = &issued{k: k, turn: newTurn()}
	k.verified = &aggregate{append: k.append, now: cfg.Now, strict: true, flushing: newTurn()}
	k.handled = &aggregate{append: k.append, now: cfg.Now, flushing: newTurn()}
	age := time.Duration(0)
	if cfg.Store.Shared() {
		age = drainAge
		var err error
		if k.follow, err = follow.New(ctx, k.following()); err != nil {
			return nil, outward(fmt.Errorf("follow the store: %w", err))
		}
	}
	err := k.drain(ctx, age)
	if err != nil {
		err = fmt.Errorf("drain outbox: %w", err)
	} else if err = k.openSystem(ctx); err != nil {
		err = fmt.Errorf("open system keys: %w", err)
	}
	if err != nil {
		return nil, outward(errors.Join(err, k.unfollow(ctx)))
	}
	return k, nil
}

func (cfg Config) withDefaults() Config {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Node == "" {
		cfg.Node = "server"
	}
	if cfg.TrustDomain == "" {
		cfg.TrustDomain = "claviger.internal"
	}
	if len(cfg.Names) == 0 {
		cfg.Names = []string{"localhost", "127.0.0.1", "::1"}
	}
	if cfg.Leaf == 0 {
		cfg.Leaf = 24 * time.Hour
	}
	if cfg.Checkpoints == 0 {
		cfg.Checkpoints = time.Hour
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 7 * 24 * time.Hour
	}
	if cfg.Refresh == 0 {
		cfg.Refresh = 24 * time.Hour
	}
	return cfg
}

// Close writes what is gathered in memory and gives back what budgets have
// left. After it counts are exact. Nothing may use the Keeper any more.
func (k *Keeper) Close(ctx context.Context) error {
	return outward(errors.Join(k.Flush(ctx), k.budgets.giveBackAll(ctx), k.unfollow(ctx)))
}
