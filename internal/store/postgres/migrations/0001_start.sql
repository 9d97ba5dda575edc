CREATE TABLE change_sequence (
	id    INTEGER PRIMARY KEY CHECK (id = 1),
	value BIGINT NOT NULL
);
INSERT INTO change_sequence (id, value) VALUES (1, 0);

CREATE TABLE keys (
	id        TEXT COLLATE "C" PRIMARY KEY,
	name      TEXT COLLATE "C" NOT NULL, -- unique by the table names
	app       TEXT COLLATE "C" NOT NULL,
	purpose   TEXT COLLATE "C" NOT NULL,
	owner     TEXT COLLATE "C" NOT NULL,
	algorithm TEXT COLLATE "C" NOT NULL,
	state     TEXT COLLATE "C" NOT NULL,
	due       BIGINT NOT NULL,
	search    TEXT COLLATE "C" NOT NULL,
	revision  BIGINT NOT NULL,
	document  TEXT COLLATE "C" NOT NULL,
	checksum  BYTEA NOT NULL
);
CREATE INDEX keys_name ON keys (name);
CREATE INDEX keys_due ON keys (due) WHERE due > 0;

-- Names and aliases, in one table so that neither can be the other's.
CREATE TABLE names (
	name TEXT COLLATE "C" PRIMARY KEY,
	key  TEXT COLLATE "C" NOT NULL REFERENCES keys (id)
);
CREATE INDEX names_key ON names (key);

CREATE TABLE labels (
	label TEXT COLLATE "C" NOT NULL,
	value TEXT COLLATE "C" NOT NULL,
	name  TEXT COLLATE "C" NOT NULL,
	key   TEXT COLLATE "C" NOT NULL REFERENCES keys (id),
	PRIMARY KEY (key, label)
);
CREATE INDEX labels_value ON labels (label, value, name, key);

CREATE TABLE versions (
	key         TEXT COLLATE "C" NOT NULL REFERENCES keys (id),
	number      BIGINT NOT NULL,
	state       TEXT COLLATE "C" NOT NULL,
	fingerprint BYTEA NOT NULL,
	PRIMARY KEY (key, number)
);
CREATE UNIQUE INDEX versions_one_active ON versions (key) WHERE state = 'active';

CREATE TABLE blobs (
	key        TEXT COLLATE "C" NOT NULL REFERENCES keys (id),
	version    BIGINT NOT NULL,
	generation BIGINT NOT NULL,
	blob       BYTEA NOT NULL,
	PRIMARY KEY (key, version)
);
CREATE INDEX blobs_generation ON blobs (generation, key, version);

CREATE TABLE principals (
	id       TEXT COLLATE "C" PRIMARY KEY,
	name     TEXT COLLATE "C" NOT NULL UNIQUE,
	kind     TEXT COLLATE "C" NOT NULL,
	revoked  BIGINT NOT NULL,
	search   TEXT COLLATE "C" NOT NULL,
	revision BIGINT NOT NULL,
	document TEXT COLLATE "C" NOT NULL,
	checksum BYTEA NOT NULL
);

CREATE TABLE codes (
	hash      TEXT COLLATE "C" PRIMARY KEY,
	principal TEXT COLLATE "C" NOT NULL REFERENCES principals (id),
	expires   BIGINT NOT NULL
);

CREATE TABLE certificates (
	serial    TEXT COLLATE "C" PRIMARY KEY,
	principal TEXT COLLATE "C" NOT NULL REFERENCES principals (id),
	not_after BIGINT NOT NULL,
	document  TEXT COLLATE "C" NOT NULL,
	checksum  BYTEA NOT NULL
);
CREATE INDEX certificates_principal ON certificates (principal, not_after);
CREATE INDEX certificates_expiry ON certificates (not_after);

CREATE TABLE grants (
	id        TEXT COLLATE "C" PRIMARY KEY,
	principal TEXT COLLATE "C" NOT NULL REFERENCES principals (id),
	selector  TEXT COLLATE "C" NOT NULL,
	revoked   BIGINT NOT NULL,
	revision  BIGINT NOT NULL,
	document  TEXT COLLATE "C" NOT NULL,
	checksum  BYTEA NOT NULL
);
CREATE INDEX grants_principal ON grants (principal, revoked, id);
CREATE INDEX grants_selector ON grants (selector, id);

CREATE TABLE uses (
	subject TEXT COLLATE "C" PRIMARY KEY,
	count   BIGINT NOT NULL,
	last    BIGINT NOT NULL
);

CREATE TABLE budgets (
	subject TEXT COLLATE "C" PRIMARY KEY,
	used    BIGINT NOT NULL,
	granted BIGINT NOT NULL
);

CREATE TABLE outbox (
	seq      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	line     BYTEA NOT NULL,
	checksum BYTEA NOT NULL
);

CREATE TABLE meta (
	name     TEXT COLLATE "C" PRIMARY KEY,
	value    BYTEA NOT NULL,
	checksum BYTEA NOT NULL
);
