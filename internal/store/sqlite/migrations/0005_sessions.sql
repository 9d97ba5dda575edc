-- Applications that are registered to get tokens.
CREATE TABLE clients (
	id        TEXT PRIMARY KEY,
	name      TEXT NOT NULL UNIQUE,
	principal TEXT NOT NULL REFERENCES principals (id),
	disabled  INTEGER NOT NULL,
	revision  INTEGER NOT NULL,
	document  TEXT NOT NULL,
	checksum  BLOB NOT NULL
) STRICT;
CREATE INDEX clients_principal ON clients (principal, id);

-- last, uses and expires, which is when the session ends unless it is used,
-- move with every use and so stand beside the document.
CREATE TABLE sessions (
	id              TEXT PRIMARY KEY,
	client          TEXT NOT NULL REFERENCES clients (id),
	principal       TEXT NOT NULL,
	issuer          TEXT NOT NULL,
	subject         TEXT NOT NULL,
	jkt             TEXT NOT NULL,
	state           TEXT NOT NULL,
	ends            INTEGER NOT NULL,
	idle            INTEGER NOT NULL,
	last            INTEGER NOT NULL,
	uses            INTEGER NOT NULL,
	expires         INTEGER NOT NULL,
	ended           INTEGER NOT NULL,
	upstream_issuer TEXT NOT NULL,
	upstream_sid    TEXT NOT NULL,
	revision        INTEGER NOT NULL,
	document        TEXT NOT NULL,
	checksum        BLOB NOT NULL
) STRICT;
CREATE INDEX sessions_client ON sessions (client, id) WHERE state <> 'ended';
CREATE INDEX sessions_principal ON sessions (principal, id) WHERE state <> 'ended';
CREATE INDEX sessions_subject ON sessions (subject, issuer, id) WHERE state <> 'ended';
CREATE INDEX sessions_expires ON sessions (expires) WHERE state <> 'ended';
CREATE INDEX sessions_upstream ON sessions (upstream_sid, upstream_issuer, id) WHERE state <> 'ended' AND upstream_issuer <> '';
CREATE INDEX sessions_ended ON sessions (ended) WHERE state = 'ended';

-- Wrapped keys of sessions, gone with the session.
CREATE TABLE session_blobs (
	session    TEXT PRIMARY KEY REFERENCES sessions (id),
	generation INTEGER NOT NULL,
	blob       BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX session_blobs_generation ON session_blobs (generation, session);

-- Refresh tokens by their SHA-256. A used one stays until it ends, so that its
-- second use is seen.
CREATE TABLE refresh_tokens (
	hash    TEXT PRIMARY KEY,
	session TEXT NOT NULL REFERENCES sessions (id),
	ends    INTEGER NOT NULL,
	used    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX refresh_tokens_session ON refresh_tokens (session);
CREATE INDEX refresh_tokens_ends ON refresh_tokens (ends);

CREATE TABLE revoked_tokens (
	jti  TEXT PRIMARY KEY,
	ends INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX revoked_tokens_ends ON revoked_tokens (ends);

-- What may be presented once: codes, pushed requests, logins, ids of
-- assertions.
CREATE TABLE one_times (
	kind     TEXT NOT NULL,
	hash     TEXT NOT NULL,
	ends     INTEGER NOT NULL,
	document BLOB NOT NULL,
	checksum BLOB NOT NULL,
	PRIMARY KEY (kind, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX one_times_ends ON one_times (ends);

-- Who is told when sessions end.
CREATE TABLE receivers (
	id       TEXT PRIMARY KEY,
	name     TEXT NOT NULL UNIQUE,
	client   TEXT NOT NULL,
	revision INTEGER NOT NULL,
	document TEXT NOT NULL,
	checksum BLOB NOT NULL
) STRICT;

-- What they are still to be told, or could not be told.
CREATE TABLE deliveries (
	id       TEXT PRIMARY KEY,
	receiver TEXT NOT NULL REFERENCES receivers (id),
	session  TEXT NOT NULL,
	state    TEXT NOT NULL,
	attempts INTEGER NOT NULL,
	since    INTEGER NOT NULL,
	next     INTEGER NOT NULL,
	document BLOB NOT NULL,
	checksum BLOB NOT NULL
) STRICT;
CREATE INDEX deliveries_due ON deliveries (receiver, state, next);
CREATE INDEX deliveries_receiver ON deliveries (receiver, id);
