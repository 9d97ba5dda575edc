-- Where material of a version was seen outside custody. gone is 0 until the
-- copy was found to be gone.
CREATE TABLE copies (
	key      TEXT COLLATE "C" NOT NULL REFERENCES keys (id),
	version  BIGINT NOT NULL,
	host     TEXT COLLATE "C" NOT NULL,
	path     TEXT COLLATE "C" NOT NULL,
	line     BIGINT NOT NULL,
	seen     BIGINT NOT NULL,
	author   TEXT COLLATE "C" NOT NULL,
	run      TEXT COLLATE "C" NOT NULL,
	gone     BIGINT NOT NULL,
	checksum BYTEA NOT NULL,
	PRIMARY KEY (key, version, host, path)
);

-- One secret in two keys is refused.
CREATE INDEX versions_fingerprint ON versions (fingerprint);
