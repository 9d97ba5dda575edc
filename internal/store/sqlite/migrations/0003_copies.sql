-- Where material of a version was seen outside custody. gone is 0 until the
-- copy was found to be gone.
CREATE TABLE copies (
	key      TEXT NOT NULL REFERENCES keys (id),
	version  INTEGER NOT NULL,
	host     TEXT NOT NULL,
	path     TEXT NOT NULL,
	line     INTEGER NOT NULL,
	seen     INTEGER NOT NULL,
	author   TEXT NOT NULL,
	run      TEXT NOT NULL,
	gone     INTEGER NOT NULL,
	checksum BLOB NOT NULL,
	PRIMARY KEY (key, version, host, path)
) STRICT, WITHOUT ROWID;

-- One secret in two keys is refused.
CREATE INDEX versions_fingerprint ON versions (fingerprint);
