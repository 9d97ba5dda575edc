package store

import (
	"claviger.dev"
)

// MaxBlob bounds a wrapped blob, in bytes.
const MaxBlob = 64 << 10

var errNoBlob = claviger.Errorf(claviger.NotFound, "there is no material of this version", "it was destroyed, or not imported yet")

// BlobRef names a wrapped blob.
type BlobRef struct {
	Key        claviger.ID
	Version    uint32
	Generation uint32 // of the root key under which it is wrapped
}

// Blob returns the wrapped material of a version and the generation of the
// root key under which it is wrapped.
func (t *Tx) Blob(key claviger.ID, version uint32) (blob []byte, generation uint32, err error) {
	err = t.one("read blob", errNoBlob, `SELECT blob, generation FROM blobs WHERE key = $1 AND version = $2`,
		[]any{string(key), version}, &blob, &generation)
	return blob, generation, err
}

// PutBlob stores the wrapped material of a version, in place of what was there.
func (t *Tx) PutBlob(key claviger.ID, version, generation uint32, blob []byte) error {
	if len(blob) == 0 || len(blob) > MaxBlob {
		return claviger.Errorf(claviger.TooLarge, "a wrapped blob is 1 to 65536 bytes", "import smaller material")
	}
	if err := t.EraseBlob(key, version); err != nil && claviger.CodeOf(err) != claviger.NotFound {
		return err
	}
	_, err := t.exec("write blob", `INSERT INTO blobs (key, version, generation, blob) VALUES ($1, $2, $3, $4)`,
		string(key), version, generation, blob)
	return err
}

// EraseBlob overwrites the wrapped material of a version with zeros and deletes
// it. After the commit an embedded store also empties its write-ahead log.
// Copies that a file system, a replica or a backup keeps are out of its reach:
// they become worthless when the root key has been rotated and retired.
func (t *Tx) EraseBlob(key claviger.ID, version uint32) error {
	old, _, err := t.Blob(key, version)
	if err != nil {
		return err
	}
	t.erased = true
	if _, err := t.exec("overwrite blob", `UPDATE blobs SET blob = $3 WHERE key = $1 AND version = $2`,
		string(key), version, make([]byte, len(old))); err != nil {
		return err
	}
	_, err = t.exec("delete blob", `DELETE FROM blobs WHERE key = $1 AND version = $2`, string(key), version)
	return err
}

// BlobsBelow returns blobs that are wrapped under a generation of the root key
// older than the given one, oldest first, from the one that follows after.
func (t *Tx) BlobsBelow(generation uint32, after BlobRef, limit int) ([]BlobRef, error) {
	var refs []BlobRef
	err := t.all("list blobs", `SELECT key, version, generation FROM blobs
		WHERE generation < $1 AND (generation, key, version) > ($2, $3, $4) ORDER BY generation, key, version LIMIT $5`,
		[]any{generation, after.Generation, string(after.Key), after.Version, pageLimit(limit)}, func(scan func(...any) error) error {
			var r BlobRef
			err := scan(&r.Key, &r.Version, &r.Generation)
			refs = append(refs, r)
			return err
		})
	return refs, err
}

// CountBlobs returns how many wrapped blobs there are of a generation or an
// older one, those of sessions among them.
func (t *Tx) CountBlobs(generation uint32) (uint64, error) {
	var n uint64
	if err := t.row(`SELECT (SELECT count(*) FROM blobs WHERE generation <= $1) +
		(SELECT count(*) FROM session_blobs WHERE generation <= $1)`, generation).Scan(&n); err != nil {
		return 0, t.db.fault(t.ctx, "count blobs", err)
	}
	return n, nil
}
