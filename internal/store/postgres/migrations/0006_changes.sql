-- Which history the change sequence counts: one random name of the database,
-- and one of the last number, so that another copy that took the same number
-- for another change is told from this one.
ALTER TABLE change_sequence ADD COLUMN database UUID NOT NULL DEFAULT gen_random_uuid();
ALTER TABLE change_sequence ADD COLUMN tag UUID NOT NULL DEFAULT gen_random_uuid();
ALTER TABLE change_sequence ADD COLUMN touched TEXT COLLATE "C";

-- What each number touched: ids with spaces between them, or NULL for anything.
CREATE TABLE changes (
	number  BIGINT PRIMARY KEY,
	tag     UUID NOT NULL,
	at      TIMESTAMPTZ NOT NULL,
	touched TEXT COLLATE "C"
);
CREATE INDEX changes_at ON changes (at);
INSERT INTO changes (number, tag, at) SELECT value, tag, now() FROM change_sequence;

-- A trigger, so that a server of the version before, which knows nothing of
-- this table, does the same while both run.
CREATE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	NEW.tag := gen_random_uuid(); INSERT INTO changes (number, tag, at, touched) VALUES (NEW.value, NEW.tag, now(), NEW.touched); NEW.touched := NULL; PERFORM pg_notify('claviger_changes', ''); RETURN NEW; END $$;
CREATE TRIGGER record_change BEFORE UPDATE ON change_sequence FOR EACH ROW EXECUTE FUNCTION record_change();

-- The servers that follow, and how far each one has come. beat counts its polls.
CREATE TABLE replicas (
	node   TEXT COLLATE "C" PRIMARY KEY,
	number BIGINT NOT NULL,
	tag    UUID NOT NULL,
	beat   BIGINT NOT NULL
);
