CREATE TABLE IF NOT EXISTS audit_schema (
    version integer PRIMARY KEY,
    hash    text NOT NULL
);
CREATE TABLE IF NOT EXISTS audit_writer (
    writer text PRIMARY KEY,
    epoch  bigint NOT NULL,
    seq    bigint NOT NULL,
    hash   bytea NOT NULL
);
-- The primary key of a partitioned table holds its partition column, so that
-- (writer, seq) alone is kept unique by the compare-and-swap of audit_writer.
CREATE TABLE IF NOT EXISTS audit_record (
    day       date NOT NULL,
    writer    text NOT NULL,
    seq       bigint NOT NULL,
    time      timestamptz NOT NULL,
    action    text NOT NULL,
    outcome   text NOT NULL,
    key       text NOT NULL,
    key_id    text NOT NULL,
    principal text NOT NULL,
    line      bytea NOT NULL,
    PRIMARY KEY (writer, seq, day)
) PARTITION BY RANGE (day);
CREATE INDEX IF NOT EXISTS audit_record_time ON audit_record (time);
CREATE INDEX IF NOT EXISTS audit_record_key ON audit_record (key, time);
CREATE INDEX IF NOT EXISTS audit_record_key_id ON audit_record (key_id, time);
CREATE INDEX IF NOT EXISTS audit_record_principal ON audit_record (principal, time);
