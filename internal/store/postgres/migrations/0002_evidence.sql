-- What evidence shows of a version. It stands over the level in the key's own
-- document, which is the one of when the version was made.
CREATE TABLE evidence (
	key      TEXT COLLATE "C" NOT NULL REFERENCES keys (id),
	version  BIGINT NOT NULL,
	level    TEXT COLLATE "C" NOT NULL,
	shown    BIGINT NOT NULL,
	finding  TEXT COLLATE "C" NOT NULL,
	run      TEXT COLLATE "C" NOT NULL,
	checksum BYTEA NOT NULL,
	PRIMARY KEY (key, version)
);
CREATE INDEX evidence_findings ON evidence (key, version) WHERE finding <> '';

CREATE TABLE runs (
	id        TEXT COLLATE "C" PRIMARY KEY,
	at        BIGINT NOT NULL,
	statement BYTEA NOT NULL,
	checksum  BYTEA NOT NULL
);
CREATE INDEX runs_at ON runs (at, id);
