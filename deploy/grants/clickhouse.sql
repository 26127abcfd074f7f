-- What the user `tailwater` needs on a ClickHouse warehouse, and no more. Run it as a user who may grant (`WITH GRANT OPTION`),
-- after the databases exist; it may run again. Database `dwh` stands for those that hold your target tables and views. On a
-- cluster, put `ON CLUSTER name` behind each `GRANT` and `CREATE USER`.
--
-- The password is set apart from this file, so that it stands in no script:
--     ALTER USER tailwater IDENTIFIED WITH sha256_hash BY '…'

CREATE USER IF NOT EXISTS tailwater;

-- The daemon's own tables: checkpoint, table_state, view_state, source_layout. Rows are added and read, never changed.
GRANT SELECT, INSERT ON tailwater.* TO tailwater;

-- The targets. SELECT: rows of which the source left large values unsent are completed from the target, a TRUNCATE is written
-- as a tombstone for each live key, and views are looked at. TRUNCATE and ALTER DELETE: what a copy that was cut short left
-- behind is removed before it begins anew.
GRANT SELECT, INSERT, TRUNCATE, ALTER DELETE ON dwh.* TO tailwater;

-- The temporary tables in which such rows wait and are made whole, two a session.
GRANT CREATE TEMPORARY TABLE ON *.* TO tailwater;
GRANT TABLE ENGINE ON Memory TO tailwater;

-- Rows arrive through the table function `input()`, which counts as a file. Older servers have it as `GRANT FILE ON *.*`.
GRANT READ ON FILE TO tailwater;

-- `[view]`: refreshable materialized views are refreshed by event, and their end is awaited.
GRANT SYSTEM VIEWS ON dwh.* TO tailwater;
GRANT SELECT ON system.view_refreshes TO tailwater;

-- Only if columns that are added at the source are to be added here too (`columns = "*"`); else such a table is quarantined, and
-- the reason has the statement to run.
-- GRANT ALTER ADD COLUMN, CREATE VIEW, DROP VIEW ON dwh.* TO tailwater;

-- Only if `tailwater setup` runs under this user too; else run it once as a user who has these rights.
-- GRANT CREATE DATABASE, CREATE TABLE ON tailwater.* TO tailwater;
-- GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP VIEW ON dwh.* TO tailwater;
-- GRANT TABLE ENGINE ON ReplacingMergeTree TO tailwater;
