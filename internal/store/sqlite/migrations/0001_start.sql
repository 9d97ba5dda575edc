CREATE TABLE change_sequence (
	id    INTEGER PRIMARY KEY CHECK (id = 1),
	value INTEGER NOT NULL
) STRICT;
INSERT INTO change_sequence (id, value) VALUES (1, 0);

CREATE TABLE keys (
	id        TEXT PRIMARY KEY,
	name      TEXT NOT NULL, -- unique by the table names
	app       TEXT NOT NULL,
	purpose   TEXT NOT NULL,
	owner     TEXT NOT NULL,
	algorithm TEXT NOT NULL,
	state     TEXT NOT NULL,
	due       INTEGER NOT NULL,
	search    TEXT NOT NULL,
	revision  INTEGER NOT NULL,
	document  TEXT NOT NULL,
	checksum  BLOB NOT NULL
) STRICT;
CREATE INDEX keys_due ON keys (due) WHERE due > 0;
-- Holds all that keys are chosen by, so that a search reads nothing else.
CREATE INDEX keys_search ON keys (name, search, app, purpose, owner, state);

-- Names and aliases, in one table so that neither can be the other's.
CREATE TABLE names (
	name TEXT PRIMARY KEY,
	key  TEXT NOT NULL REFERENCES keys (id)
) STRICT, WITHOUT ROWID;
CREATE INDEX names_key ON names (key);

CREATE TABLE labels (
	label TEXT NOT NULL,
	value TEXT NOT NULL,
	name  TEXT NOT NULL,
	key   TEXT NOT NULL REFERENCES keys (id),
	PRIMARY KEY (key, label)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_value ON labels (label, value, name, key);

CREATE TABLE versions (
	key         TEXT NOT NULL REFERENCES keys (id),
	number      INTEGER NOT NULL,
	state       TEXT NOT NULL,
	fingerprint BLOB NOT NULL,
	PRIMARY KEY (key, number)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX versions_one_active ON versions (key) WHERE state = 'active';

CREATE TABLE blobs (
	key        TEXT NOT NULL REFERENCES keys (id),
	version    INTEGER NOT NULL,
	generation INTEGER NOT NULL,
	blob       BLOB NOT NULL,
	PRIMARY KEY (key, version)
) STRICT;
CREATE INDEX blobs_generation ON blobs (generation, key, version);

CREATE TABLE principals (
	id       TEXT PRIMARY KEY,
	name     TEXT NOT NULL UNIQUE,
	kind     TEXT NOT NULL,
	revoked  INTEGER NOT NULL,
	search   TEXT NOT NULL,
	revision INTEGER NOT NULL,
	document TEXT NOT NULL,
	checksum BLOB NOT NULL
) STRICT;

CREATE TABLE codes (
	hash      TEXT PRIMARY KEY,
	principal TEXT NOT NULL REFERENCES principals (id),
	expires   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
	serial    TEXT PRIMARY KEY,
	principal TEXT NOT NULL REFERENCES principals (id),
	not_after INTEGER NOT NULL,
	document  TEXT NOT NULL,
	checksum  BLOB NOT NULL
) STRICT;
CREATE INDEX certificates_principal ON certificates (principal, not_after);
CREATE INDEX certificates_expiry ON certificates (not_after);

CREATE TABLE grants (
	id        TEXT PRIMARY KEY,
	principal TEXT NOT NULL REFERENCES principals (id),
	selector  TEXT NOT NULL,
	revoked   INTEGER NOT NULL,
	revision  INTEGER NOT NULL,
	document  TEXT NOT NULL,
	checksum  BLOB NOT NULL
) STRICT;
CREATE INDEX grants_principal ON grants (principal, revoked, id);
CREATE INDEX grants_selector ON grants (selector, id);

CREATE TABLE uses (
	subject TEXT PRIMARY KEY,
	count   INTEGER NOT NULL,
	last    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE budgets (
	subject TEXT PRIMARY KEY,
	used    INTEGER NOT NULL,
	granted INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
	seq      INTEGER PRIMARY KEY AUTOINCREMENT,
	line     BLOB NOT NULL,
	checksum BLOB NOT NULL
) STRICT;

CREATE TABLE meta (
	name     TEXT PRIMARY KEY,
	value    BLOB NOT NULL,
	checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;
