// Package failpoint names the places where tests kill the process, to show
// that what was acknowledged survives. It owns their names and promises that a
// normal build holds none of it: Hit is an empty function there. With the
// build tag "failpoints" the variable CLAVIGER_FAILPOINT arms one point. It
// must never be compiled into what is shipped.
package failpoint

// Name names one point.
type Name string

// The points, by what is being done when they are reached.
const (
	CreateMade       Name = "create.made"        // the custodian made the material, nothing is stored
	CreateInsert     Name = "create.insert"      // inside the transaction, before the key's row
	CreateBlob       Name = "create.blob"        // inside the transaction, after the blob
	RotateMade       Name = "rotate.made"        // the custodian made the material, nothing is stored
	RotateUpdate     Name = "rotate.update"      // inside the transaction, before the key's row
	RotateBlob       Name = "rotate.blob"        // inside the transaction, after the blob
	StateUpdate      Name = "state.update"       // inside the transaction that changes a state
	StateErase       Name = "state.erase"        // inside the transaction that destroys, after the blob was erased
	RevokeGrant      Name = "revoke.grant"       // inside the transaction that revokes a grant
	RevokePrincipal  Name = "revoke.principal"   // inside the transaction that revokes a principal
	RevokeCert       Name = "revoke.certificate" // inside the transaction that revokes a certificate
	SessionErase     Name = "session.erase"      // inside the transaction that ends a session, after the blob was erased
	SessionOutbox    Name = "session.outbox"     // inside that transaction, after the outbox rows
	SessionCommitted Name = "session.committed"  // committed, before the record is appended
	ImportAdopted    Name = "import.adopted"     // the custodian adopted the material, nothing is stored
	ImportUpdate     Name = "import.update"      // inside the transaction, before the key's row
	ImportBlob       Name = "import.blob"        // inside the transaction, after the blob
	EnrolTaken       Name = "enrol.taken"        // inside the transaction, after the code was taken
	EnrolCert        Name = "enrol.certificate"  // inside the transaction, after the certificate's row
	RewrapBlob       Name = "rewrap.blob"        // between two blobs of a rewrap
	ChangeBegin      Name = "change.begin"       // authorised, before the transaction
	ChangeOutbox     Name = "change.outbox"      // inside the transaction, after the outbox row
	ChangeCommitted  Name = "change.committed"   // committed, before the record is appended
	ChangeRecorded   Name = "change.recorded"    // recorded, before the outbox row is dropped
	ChangeDropped    Name = "change.dropped"     // outbox row dropped, before the answer
	OutboxReplay     Name = "outbox.replay"      // at start, before a leftover row is appended
	OutboxReplayed   Name = "outbox.replayed"    // at start, appended, before the row is dropped
	UsePermitted     Name = "use.permitted"      // decided, before the custodian is asked
	UseDone          Name = "use.done"           // the custodian did it, before the record
	UseRecorded      Name = "use.recorded"       // recorded, before the release
	BudgetTaken      Name = "budget.taken"       // a block was taken from the store
	CountsFlush      Name = "counts.flush"       // before counts are written
	VerifyFlush      Name = "verify.flush"       // before aggregated records are appended
	AuditWrite       Name = "audit.write"        // before a batch is written
	AuditWritten     Name = "audit.written"      // written, before the sync
	AuditSynced      Name = "audit.synced"       // synced, before the callers are told
	AuditSeal        Name = "audit.seal"         // a segment is full, before it is sealed
	AuditSealed      Name = "audit.sealed"       // sealed, before the next is opened
	AuditOpen        Name = "audit.open"         // at start, before the tail is checked
	AuditCheckpoint  Name = "audit.checkpoint"   // a checkpoint is signed, before it is appended
	MigrateBegin     Name = "migrate.begin"      // inside a migration's transaction, before its first statement
	MigrateStatement Name = "migrate.statement"  // between two statements of a migration
	MigrateRecord    Name = "migrate.record"     // before the migration's own row
	MigrateCommitted Name = "migrate.committed"  // committed, before the next migration
)

// Names lists every point.
func Names() []Name {
	return []Name{
		CreateMade, CreateInsert, CreateBlob, RotateMade, RotateUpdate, RotateBlob,
		StateUpdate, StateErase, RevokeGrant, RevokePrincipal, RevokeCert, SessionErase, SessionOutbox, SessionCommitted,
		ImportAdopted, ImportUpdate, ImportBlob, EnrolTaken, EnrolCert, RewrapBlob,
		ChangeBegin, ChangeOutbox, ChangeCommitted, ChangeRecorded, ChangeDropped,
		OutboxReplay, OutboxReplayed, UsePermitted, UseDone, UseRecorded,
		BudgetTaken, CountsFlush, VerifyFlush,
		AuditWrite, AuditWritten, AuditSynced, AuditSeal, AuditSealed, AuditOpen, AuditCheckpoint,
		MigrateBegin, MigrateStatement, MigrateRecord, MigrateCommitted,
	}
}
