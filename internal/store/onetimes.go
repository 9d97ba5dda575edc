package store

import (
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"claviger.dev"
)

// OneTime is something that may be presented once, such as an authorization
// code, of which only the hash is known here.
type OneTime struct {
	Kind     string
	Hash     [32]byte  // SHA-256
	Ends     time.Time // to the millisecond
	Document []byte    // at most 1 MiB; what it stands for
}

func (o OneTime) name() string { return o.Kind + " " + hex.EncodeToString(o.Hash[:]) }

// PutOneTime stores something that may be presented once. It answers
// claviger.Conflict when it is there already and has not ended at now.
func (t *Tx) PutOneTime(o OneTime, now time.Time) error {
	if len(o.Document) > maxDocument {
		return claviger.Errorf(claviger.TooLarge, "the document is larger than 1 MiB", "send less")
	}
	if o.Document == nil {
		o.Document = []byte{}
	}
	n, err := t.exec("insert one-time", `INSERT INTO one_times (kind, hash, ends, document, checksum) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (kind, hash) DO UPDATE SET ends = excluded.ends, document = excluded.document, checksum = excluded.checksum
		WHERE one_times.ends <= $6`, o.Kind, hex.EncodeToString(o.Hash[:]), millis(o.Ends), o.Document, checksum("one-time", o.name(), o.Document), millis(now))
	if err == nil && n == 0 {
		return claviger.Errorf(claviger.Conflict, "it was presented already", "make a new one")
	}
	return err
}

// OneTime returns what TakeOneTime would, and leaves it where it is.
func (t *Tx) OneTime(kind string, hash [32]byte, now time.Time) (OneTime, error) {
	return t.oneTime(`SELECT ends, document, checksum FROM one_times WHERE kind = $1 AND hash = $2`, kind, hash, now)
}

// TakeOneTime removes it and returns it. It answers claviger.NotFound for one
// that is unknown, was taken or has ended.
func (t *Tx) TakeOneTime(kind string, hash [32]byte, now time.Time) (OneTime, error) {
	if !t.writes {
		return OneTime{}, errors.New("take one-time: write in a view")
	}
	return t.oneTime(`DELETE FROM one_times WHERE kind = $1 AND hash = $2 RETURNING ends, document, checksum`, kind, hash, now)
}

func (t *Tx) oneTime(query, kind string, hash [32]byte, now time.Time) (OneTime, error) {
	missing := claviger.Errorf(claviger.NotFound, "it is not known, was presented already or has expired", "begin again")
	o := OneTime{Kind: kind, Hash: hash}
	var ends int64
	var sum []byte
	if err := t.one("read one-time", missing, query, []any{kind, hex.EncodeToString(hash[:])}, &ends, &o.Document, &sum); err != nil {
		return OneTime{}, err
	}
	if !slices.Equal(sum, checksum("one-time", o.name(), o.Document)) {
		return OneTime{}, damaged("one-time", o.name(), errors.New("the checksum does not hold"))
	}
	if o.Ends = fromMillis(ends); !now.Before(o.Ends) {
		return OneTime{}, missing
	}
	return o, nil
}

// RevokeToken records that an access token is revoked, until it ends by itself.
func (t *Tx) RevokeToken(jti string, ends time.Time) error {
	if id, err := claviger.ParseID(jti); err == nil {
		t.touch(id)
	} else {
		t.touch()
	}
	_, err := t.exec("revoke token", `INSERT INTO revoked_tokens (jti, ends) VALUES ($1, $2)
		ON CONFLICT (jti) DO UPDATE SET ends = CASE WHEN revoked_tokens.ends < excluded.ends THEN excluded.ends ELSE revoked_tokens.ends END`,
		jti, millis(ends))
	return err
}

// TokenRevoked reports whether an access token was revoked.
func (t *Tx) TokenRevoked(jti string) (bool, error) {
	if err := checkArgs([]any{jti}); err != nil {
		return false, err
	}
	var n int
	if err := t.row(`SELECT count(*) FROM revoked_tokens WHERE jti = $1`, jti).Scan(&n); err != nil {
		return false, t.db.fault(t.ctx, "read revoked token", err)
	}
	return n > 0, nil
}

// TrimOneTimes forgets what had ended by a time: one-time things, refresh
// tokens and revoked tokens.
func (t *Tx) TrimOneTimes(now time.Time) error {
	for _, table := range []string{"one_times", "refresh_tokens", "revoked_tokens"} {
		if _, err := t.exec("trim "+table, `DELETE FROM `+table+` WHERE ends <= $1`, millis(now)); err != nil {
			return err
		}
	}
	return nil
}
