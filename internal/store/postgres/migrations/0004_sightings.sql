-- What each caller did with a version through each server, by format.
CREATE TABLE sightings (
	key       TEXT COLLATE "C" NOT NULL REFERENCES keys (id),
	version   BIGINT NOT NULL,
	node      TEXT COLLATE "C" NOT NULL,
	principal TEXT COLLATE "C" NOT NULL,
	host      TEXT COLLATE "C" NOT NULL,
	what      TEXT COLLATE "C" NOT NULL,
	made      BIGINT NOT NULL,
	checked   BIGINT NOT NULL,
	first     BIGINT NOT NULL,
	last      BIGINT NOT NULL,
	PRIMARY KEY (key, version, node, principal, host, what)
);
CREATE INDEX sightings_last ON sightings (last);

-- The same over time: width is 60000 for minutes and 3600000 for hours, at is
-- where one begins; both in milliseconds.
CREATE TABLE flows (
	key     TEXT COLLATE "C" NOT NULL REFERENCES keys (id),
	width   BIGINT NOT NULL,
	at      BIGINT NOT NULL,
	version BIGINT NOT NULL,
	node    TEXT COLLATE "C" NOT NULL,
	made    BIGINT NOT NULL,
	checked BIGINT NOT NULL,
	PRIMARY KEY (key, width, at, version, node)
);
CREATE INDEX flows_at ON flows (width, at);

-- Keyed digests of tokens that were made, for keys that ask for it.
CREATE TABLE issued (
	key     TEXT COLLATE "C" NOT NULL REFERENCES keys (id),
	version BIGINT NOT NULL,
	digest  BYTEA NOT NULL,
	expires BIGINT NOT NULL,
	PRIMARY KEY (key, version, digest)
);
CREATE INDEX issued_expires ON issued (key, expires);
