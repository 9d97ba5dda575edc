-- What evidence shows of a version. It stands over the level in the key's own
-- document, which is the one of when the version was made.
CREATE TABLE evidence (
	key      TEXT NOT NULL REFERENCES keys (id),
	version  INTEGER NOT NULL,
	level    TEXT NOT NULL,
	shown    INTEGER NOT NULL,
	finding  TEXT NOT NULL,
	run      TEXT NOT NULL,
	checksum BLOB NOT NULL,
	PRIMARY KEY (key, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX evidence_findings ON evidence (key, version) WHERE finding <> '';

CREATE TABLE runs (
	id        TEXT PRIMARY KEY,
	at        INTEGER NOT NULL,
	statement BLOB NOT NULL,
	checksum  BLOB NOT NULL
) STRICT;
CREATE INDEX runs_at ON runs (at, id);
