package keeper

import (
	"context"
	"crypto"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/store"
)

// Query passes matching records to fn, oldest first; with q.Follow it goes on
// with every later one until ctx ends.
func (k *Keeper) Query(ctx context.Context, by claviger.Principal, q AuditQuery, fn func(audit.Line) error) error {
	if err := k.mayAudit(ctx, &by, "audit.query"); err != nil {
		return err
	}
	query := q.Query
	if q.KeyRef != "" {
		var err error
		if query.KeyID, err = k.keyID(ctx, q.KeyRef); err != nil {
			return err
		}
	}
	if q.PrincipalRef != "" {
		p, err := k.principal(ctx, q.PrincipalRef)
		if err != nil {
			return err
		}
		query.Principal = p.ID
	}
	if q.Follow {
		return outward(audit.Follow(ctx, k.cfg.Audit, query, fn))
	}
	return outward(k.cfg.Audit.Iterate(ctx, query, fn))
}

// keyID resolves a name, a former name or an id.
func (k *Keeper) keyID(ctx context.Context, ref string) (id claviger.ID, err error) {
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		key, err := tx.Key(ref)
		id = key.ID
		return err
	})
	return id, outward(err)
}

// mayAudit lets a caller at the audit log. What is gathered is written first,
// so that a reader sees everything that was answered.
func (k *Keeper) mayAudit(ctx context.Context, by *claviger.Principal, action string) error {
	if err := k.read(ctx, by, change{op: claviger.ReadAudit, action: action}); err != nil {
		return err
	}
	return k.verified.flush(ctx)
}

// VerifyAudit checks the chain and every checkpoint, and against one that was
// kept elsewhere unless it is empty.
func (k *Keeper) VerifyAudit(ctx context.Context, by claviger.Principal, checkpoint []byte) (audit.Report, error) {
	if err := k.mayAudit(ctx, &by, "audit.verify"); err != nil {
		return audit.Report{}, err
	}
	opts := audit.VerifyOptions{CheckSignature: k.checkCheckpoint}
	if len(checkpoint) > 0 {
		kept, err := audit.ParseCheckpoint(checkpoint)
		if err != nil {
			return audit.Report{}, err
		}
		opts.Checkpoints = append(opts.Checkpoints, kept)
	}
	report, err := audit.Verify(ctx, k.cfg.Audit, opts)
	return report, outward(err)
}

// checkCheckpoint checks that a checkpoint is signed by our key.
func (k *Keeper) checkCheckpoint(c audit.Checkpoint) error {
	if c.Key != checkpointKey || !k.system.checkpoint.verify(c.Statement(), c.Signature) {
		return claviger.Errorf(claviger.Invalid, "the checkpoint is not signed by this server's key", "check which server it came from")
	}
	return nil
}

// Checkpoint signs the present head of this server's chain: one line of JSON,
// to keep elsewhere. It is recorded in the log too.
func (k *Keeper) Checkpoint(ctx context.Context, by claviger.Principal) ([]byte, error) {
	if err := k.mayAudit(ctx, &by, "audit.checkpoint"); err != nil {
		return nil, err
	}
	list, err := k.checkpoints(ctx, by)
	if err != nil {
		return nil, err
	}
	c, err := newest(list)
	if err != nil {
		return nil, err
	}
	return c.JSON(), nil
}

// checkpoints signs the head of every chain that has a record, and records it.
func (k *Keeper) checkpoints(ctx context.Context, by claviger.Principal) ([]audit.Checkpoint, error) {
	heads, err := k.cfg.Audit.Head(ctx)
	if err != nil {
		return nil, outward(err)
	}
	_, version, _ := k.system.checkpoint.current()
	var list []audit.Checkpoint
	for _, head := range heads {
		if head.Seq == 0 {
			continue
		}
		c, err := audit.MakeCheckpoint(head, k.cfg.Now(), checkpointKey, version.Fingerprint, func(statement []byte) ([]byte, error) {
			return k.system.checkpoint.Sign(nil, statement, crypto.Hash(0))
		})
		if err != nil {
			return nil, outward(err)
		}
		r := c.Record()
		r.Principal, r.PrincipalName, r.PrincipalKind, r.RequestID = by.ID, by.Name, string(by.Kind), by.Facts.RequestID
		failpoint.Hit(failpoint.AuditCheckpoint)
		if err := k.append(ctx, r); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}
