-- What each caller did with a version through each server, by format.
CREATE TABLE sightings (
	key       TEXT NOT NULL REFERENCES keys (id),
	version   INTEGER NOT NULL,
	node      TEXT NOT NULL,
	principal TEXT NOT NULL,
	host      TEXT NOT NULL,
	what      TEXT NOT NULL,
	made      INTEGER NOT NULL,
	checked   INTEGER NOT NULL,
	first     INTEGER NOT NULL,
	last      INTEGER NOT NULL,
	PRIMARY KEY (key, version, node, principal, host, what)
) STRICT, WITHOUT ROWID;
CREATE INDEX sightings_last ON sightings (last);

-- The same over time: width is 60000 for minutes and 3600000 for hours, at is
-- where one begins; both in milliseconds.
CREATE TABLE flows (
	key     TEXT NOT NULL REFERENCES keys (id),
	width   INTEGER NOT NULL,
	at      INTEGER NOT NULL,
	version INTEGER NOT NULL,
	node    TEXT NOT NULL,
	made    INTEGER NOT NULL,
	checked INTEGER NOT NULL,
	PRIMARY KEY (key, width, at, version, node)
) STRICT, WITHOUT ROWID;
CREATE INDEX flows_at ON flows (width, at);

-- Keyed digests of tokens that were made, for keys that ask for it.
CREATE TABLE issued (
	key     TEXT NOT NULL REFERENCES keys (id),
	version INTEGER NOT NULL,
	digest  BLOB NOT NULL,
	expires INTEGER NOT NULL,
	PRIMARY KEY (key, version, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX issued_expires ON issued (key, expires);
