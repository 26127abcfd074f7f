-- What the role `tailwater` needs on a source, and no more. Run it in the source database, as a superuser or as an
-- owner of the mapped tables who may create roles (the REPLICATION attribute itself takes a superuser, or on 16+ a role
-- that has REPLICATION and CREATEROLE). Plain SQL, safe to run again. The table list is the lessons model's: put yours
-- there.
--
-- The password is set apart from this file, so that it stands in no script:  \password tailwater   (in psql)
--
-- REPLICATION is read-everything. A role that has it can stream any published table, read any table through a slot of
-- its own and take a base backup of the whole cluster, whatever SELECT says. Keep the credential as you keep a
-- superuser's, use it for nothing else, and pin it in pg_hba.conf to the daemon's address and database:
--
--   hostssl  lms  tailwater  10.0.0.5/32  scram-sha-256
--   host     all  tailwater  all          reject

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'tailwater') THEN
        CREATE ROLE tailwater;
    END IF;
END
$$;

ALTER ROLE tailwater LOGIN REPLICATION NOINHERIT NOCREATEDB NOCREATEROLE CONNECTION LIMIT 24;

-- The stream and the transaction that holds a snapshot are long by nature.
ALTER ROLE tailwater SET statement_timeout = 0;
ALTER ROLE tailwater SET idle_in_transaction_session_timeout = 0;

DO $$
BEGIN
    EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %I TO tailwater', pg_catalog.current_database());
END
$$;

GRANT USAGE ON SCHEMA public TO tailwater;

-- SELECT is for the first copy of a table and for `tailwater check`. Where the mapping leaves columns out, grant the
-- mapped columns only: GRANT SELECT (id, title) ON public.course TO tailwater. A table with row security needs
-- ALTER ROLE tailwater BYPASSRLS, for a copy under a policy would miss rows without a word.
GRANT SELECT ON
    public.course,
    public.stream,
    public.stream_module,
    public.stream_module_lesson
TO tailwater;

-- The publication. CREATE PUBLICATION … FOR TABLE takes ownership of every table in it and CREATE on the database,
-- which the daemon's role has no other use for. So let an owner make it, once and after each change of the mapped
-- tables: either with the statements that `tailwater setup --print` shows, or by running `tailwater setup` with the
-- owner's address in TAILWATER__SOURCE__LMS__URL. `tailwater run` never changes a publication. The publication comes
-- before the slot: a slot made first would fail, or skip, the changes written in between.
--
-- Nothing is granted for heartbeats (pg_logical_emit_message may be called by everyone), for slots (REPLICATION covers
-- them) or for the slot's state (pg_replication_slots may be read by everyone).
