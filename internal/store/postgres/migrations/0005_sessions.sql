-- Applications that are registered to get tokens.
CREATE TABLE clients (
	id        TEXT COLLATE "C" PRIMARY KEY,
	name      TEXT COLLATE "C" NOT NULL UNIQUE,
	principal TEXT COLLATE "C" NOT NULL REFERENCES principals (id),
	disabled  BIGINT NOT NULL,
	revision  BIGINT NOT NULL,
	document  TEXT COLLATE "C" NOT NULL,
	checksum  BYTEA NOT NULL
);
CREATE INDEX clients_principal ON clients (principal, id);

-- last, uses and expires, which is when the session ends unless it is used,
-- move with every use and so stand beside the document.
CREATE TABLE sessions (
	id              TEXT COLLATE "C" PRIMARY KEY,
	client          TEXT COLLATE "C" NOT NULL REFERENCES clients (id),
	principal       TEXT COLLATE "C" NOT NULL,
	issuer          TEXT COLLATE "C" NOT NULL,
	subject         TEXT COLLATE "C" NOT NULL,
	jkt             TEXT COLLATE "C" NOT NULL,
	state           TEXT COLLATE "C" NOT NULL,
	ends            BIGINT NOT NULL,
	idle            BIGINT NOT NULL,
	last            BIGINT NOT NULL,
	uses            BIGINT NOT NULL,
	expires         BIGINT NOT NULL,
	ended           BIGINT NOT NULL,
	upstream_issuer TEXT COLLATE "C" NOT NULL,
	upstream_sid    TEXT COLLATE "C" NOT NULL,
	revision        BIGINT NOT NULL,
	document        TEXT COLLATE "C" NOT NULL,
	checksum        BYTEA NOT NULL
);
CREATE INDEX sessions_client ON sessions (client, id) WHERE state <> 'ended';
CREATE INDEX sessions_principal ON sessions (principal, id) WHERE state <> 'ended';
CREATE INDEX sessions_subject ON sessions (subject, issuer, id) WHERE state <> 'ended';
CREATE INDEX sessions_expires ON sessions (expires) WHERE state <> 'ended';
CREATE INDEX sessions_upstream ON sessions (upstream_sid, upstream_issuer, id) WHERE state <> 'ended' AND upstream_issuer <> '';
CREATE INDEX sessions_ended ON sessions (ended) WHERE state = 'ended';

-- Wrapped keys of sessions, gone with the session.
CREATE TABLE session_blobs (
	session    TEXT COLLATE "C" PRIMARY KEY REFERENCES sessions (id),
	generation BIGINT NOT NULL,
	blob       BYTEA NOT NULL
);
CREATE INDEX session_blobs_generation ON session_blobs (generation, session);

-- Refresh tokens by their SHA-256. A used one stays until it ends, so that its
-- second use is seen.
CREATE TABLE refresh_tokens (
	hash    TEXT COLLATE "C" PRIMARY KEY,
	session TEXT COLLATE "C" NOT NULL REFERENCES sessions (id),
	ends    BIGINT NOT NULL,
	used    BIGINT NOT NULL
);
CREATE INDEX refresh_tokens_session ON refresh_tokens (session);
CREATE INDEX refresh_tokens_ends ON refresh_tokens (ends);

CREATE TABLE revoked_tokens (
	jti  TEXT COLLATE "C" PRIMARY KEY,
	ends BIGINT NOT NULL
);
CREATE INDEX revoked_tokens_ends ON revoked_tokens (ends);

-- What may be presented once: codes, pushed requests, logins, ids of
-- assertions.
CREATE TABLE one_times (
	kind     TEXT COLLATE "C" NOT NULL,
	hash     TEXT COLLATE "C" NOT NULL,
	ends     BIGINT NOT NULL,
	document BYTEA NOT NULL,
	checksum BYTEA NOT NULL,
	PRIMARY KEY (kind, hash)
);
CREATE INDEX one_times_ends ON one_times (ends);

-- Who is told when sessions end.
CREATE TABLE receivers (
	id       TEXT COLLATE "C" PRIMARY KEY,
	name     TEXT COLLATE "C" NOT NULL UNIQUE,
	client   TEXT COLLATE "C" NOT NULL,
	revision BIGINT NOT NULL,
	document TEXT COLLATE "C" NOT NULL,
	checksum BYTEA NOT NULL
);

-- What they are still to be told, or could not be told.
CREATE TABLE deliveries (
	id       TEXT COLLATE "C" PRIMARY KEY,
	receiver TEXT COLLATE "C" NOT NULL REFERENCES receivers (id),
	session  TEXT COLLATE "C" NOT NULL,
	state    TEXT COLLATE "C" NOT NULL,
	attempts BIGINT NOT NULL,
	since    BIGINT NOT NULL,
	next     BIGINT NOT NULL,
	document BYTEA NOT NULL,
	checksum BYTEA NOT NULL
);
CREATE INDEX deliveries_due ON deliveries (receiver, state, next);
CREATE INDEX deliveries_receiver ON deliveries (receiver, id);
