-- What the role `tailwater` needs on a Postgres warehouse, and no more. Run it in the warehouse database, as a
-- superuser or as the owner of the schemas who may create roles, after the target tables exist. Plain SQL, safe to run
-- again. The table lists are the lessons model's: put yours there.
--
-- The password is set apart from this file, so that it stands in no script:  \password tailwater   (in psql)

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'tailwater') THEN
        CREATE ROLE tailwater;
    END IF;
END
$$;

-- No attribute but LOGIN. (REPLICATION is not taken away, in case a source lives on the same server.)
ALTER ROLE tailwater LOGIN NOINHERIT NOCREATEDB NOCREATEROLE CONNECTION LIMIT 24;

-- TEMPORARY: large batches pass through a temporary stage table, and REFRESH … CONCURRENTLY makes one of its own.
DO $$
BEGIN
    EXECUTE pg_catalog.format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO tailwater', pg_catalog.current_database());
END
$$;

-- The daemon's own tables: checkpoint, table_state, copy_chunk, view_state. It owns the schema and makes them itself; what
-- `tailwater setup` made under another role is handed over.
CREATE SCHEMA IF NOT EXISTS tailwater AUTHORIZATION tailwater;
ALTER SCHEMA tailwater OWNER TO tailwater;

DO $$
DECLARE
    table_name text;
BEGIN
    FOR table_name IN SELECT oid::pg_catalog.regclass FROM pg_catalog.pg_class
        WHERE relnamespace = 'tailwater'::pg_catalog.regnamespace AND relkind = 'r'
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s OWNER TO tailwater', table_name);
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA ods, dwh TO tailwater;

-- The targets: rows only. No TRUNCATE (rows of a truncated source table are deleted), no DDL. SELECT is for merging by
-- key, and for the views below, which run with the rights of their owner.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    ods.stream_module_lesson,
    dwh.d_course,
    dwh.d_stream,
    dwh.d_stream_module
TO tailwater;

-- REFRESH takes MAINTAIN on 17 and later, ownership before. Where ownership is handed over, the owner also reads what
-- the view reads, which the grants above cover.
DO $$
DECLARE
    view_name text;
BEGIN
    FOREACH view_name IN ARRAY ARRAY['dwh.f_lesson', 'dwh.lesson_stream_dm'] LOOP
        IF pg_catalog.current_setting('server_version_num')::int >= 170000 THEN
            EXECUTE pg_catalog.format('GRANT SELECT, MAINTAIN ON %s TO tailwater', view_name::pg_catalog.regclass);
        ELSE
            EXECUTE pg_catalog.format('ALTER MATERIALIZED VIEW %s OWNER TO tailwater', view_name::pg_catalog.regclass);
        END IF;
    END LOOP;
END
$$;

-- `tailwater setup --create-targets` makes target tables and needs CREATE on their schemas; run it with an owner's URL
-- in TAILWATER__SINK__WAREHOUSE__URL, then run this file.
