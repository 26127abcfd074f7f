-- The sessions model, source side: one project's own database, a generator of believable data, and a live step that
-- changes it the way its users would. Every project has the same tables and numbers its rows from one.
--
--   SELECT sessions_generate(200, 1);  -- 200 users, by the project's own seed; about 1,000 sessions
--   SELECT sessions_live_step(1);      -- one change set, in the caller's transaction; call it in a loop, seed by seed
--
-- The file may be run again: it creates what is missing and replaces the functions. It holds plain SQL only, so any
-- client may send it as one batch.

-- One row a session, updated while it lives.
CREATE TABLE IF NOT EXISTS public.user_sessions (
    user_id          int,
    id               int,
    active           bool,
    page_name        varchar(50),
    last_activity_at timestamp,
    created_at       timestamp,
    updated_at       timestamp,
    PRIMARY KEY (user_id, id)
);

CREATE TABLE IF NOT EXISTS public.pages (
    id         int PRIMARY KEY,
    name       varchar(50),
    created_at timestamp
);

-- The large table.
CREATE TABLE IF NOT EXISTS public.events (
    user_id    int,
    id         int,
    event_name varchar(50),
    page_id    int REFERENCES public.pages (id),
    created_at timestamp,
    PRIMARY KEY (user_id, id)
);

CREATE TABLE IF NOT EXISTS public.transactions (
    id         int,
    user_id    int,
    created_at timestamp,
    amount     numeric,
    currency   varchar(10),
    success    bool,
    PRIMARY KEY (id, user_id)
);

CREATE INDEX IF NOT EXISTS user_sessions_updated_at_idx ON public.user_sessions (updated_at);

-- One element, chosen by random(); callers set the seed.
CREATE OR REPLACE FUNCTION public.sessions_one_of(choices anyarray)
RETURNS anyelement
LANGUAGE sql
VOLATILE
AS $$ SELECT choices[1 + floor(random() * cardinality(choices))::int] $$;

-- An amount as the currency's prices are written: whole yen, cents elsewhere.
CREATE OR REPLACE FUNCTION public.sessions_amount(currency text)
RETURNS numeric
LANGUAGE sql
VOLATILE
AS $$
    SELECT CASE currency
        WHEN 'JPY' THEN round((200 + random() * 30000)::numeric)
        ELSE round((1 + random() * 250)::numeric, 2)
    END
$$;

-- Fills the four tables, which must be empty: each user has three to seven sessions, each session four to twelve events,
-- one in two a transaction or more. Days are those of `exchange_rates_generate`. Returns the number of sessions.
CREATE OR REPLACE FUNCTION public.sessions_generate(users int, project_seed int)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    first_day CONSTANT timestamp := timestamp '2026-03-01 00:00:00';
    days CONSTANT int := 28;
    session_count bigint;
BEGIN
    PERFORM setseed((abs(project_seed) % 1009)::double precision / 1009);
    PERFORM random() FROM generate_series(1, 8);

    INSERT INTO public.pages (id, name, created_at)
    SELECT position, name, first_day - interval '60 days'
    FROM unnest(ARRAY['main', 'registration', 'catalog', 'product', 'cart', 'checkout', 'orders', 'help'])
        WITH ORDINALITY AS page (name, position);

    INSERT INTO public.user_sessions (user_id, id, active, page_name, last_activity_at, created_at, updated_at)
    SELECT
        u, s, false,
        public.sessions_one_of(ARRAY['main', 'catalog', 'product', 'cart', 'checkout', 'orders']),
        begun.at + length.of, begun.at, begun.at + length.of + interval '1 minute'
    FROM generate_series(1, users) AS u
    CROSS JOIN generate_series(1, 3 + u % 5) AS s
    CROSS JOIN LATERAL (
        SELECT first_day + (s * 4 - 4 + u % 4) % days * interval '1 day' + (random() * 1320)::int * interval '1 minute' AS at
        WHERE u > 0
    ) AS begun
    CROSS JOIN LATERAL (SELECT (3 + (random() * 90)::int) * interval '1 minute' AS of WHERE s > 0) AS length
    ORDER BY u, s;
    GET DIAGNOSTICS session_count = ROW_COUNT;

    INSERT INTO public.events (user_id, id, event_name, page_id, created_at)
    SELECT
        s.user_id, (s.id - 1) * 12 + e,
        public.sessions_one_of(ARRAY['view', 'view', 'view', 'click', 'search', 'add_to_cart']),
        1 + floor(random() * 8)::int,
        s.created_at + random() * (s.last_activity_at - s.created_at)
    FROM public.user_sessions AS s
    CROSS JOIN generate_series(1, 4 + (s.user_id + s.id) % 9) AS e
    ORDER BY s.user_id, s.id, e;

    INSERT INTO public.transactions (id, user_id, created_at, amount, currency, success)
    SELECT
        (row_number() OVER (PARTITION BY s.user_id ORDER BY s.id, t))::int, s.user_id,
        -- One in ten comes after the session's last update, and belongs to none.
        s.created_at + random() * 1.1 * (s.updated_at - s.created_at),
        public.sessions_amount(money.currency), money.currency, random() < 0.8
    FROM public.user_sessions AS s
    CROSS JOIN generate_series(1, (s.user_id + s.id) % 3) AS t
    CROSS JOIN LATERAL (
        SELECT public.sessions_one_of(ARRAY['USD', 'USD', 'USD', 'EUR', 'EUR', 'GBP', 'JPY']) AS currency WHERE s.id > 0
    ) AS money
    ORDER BY s.user_id, s.id, t;

    RETURN session_count;
END
$$;

-- One change set, in the caller's transaction. The seed and the data decide what it is. Returns what was done.
CREATE OR REPLACE FUNCTION public.sessions_live_step(seed bigint)
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    dice double precision;
    dice_user double precision;
    this_session public.user_sessions;
    new_id int;
    money text;
BEGIN
    PERFORM setseed((abs(seed % 1000003))::double precision / 1000003);
    -- Neighbouring seeds start alike; the first numbers are thrown away.
    PERFORM random() FROM generate_series(1, 8);
    dice := random();
    dice_user := random();
    money := public.sessions_one_of(ARRAY['USD', 'USD', 'EUR', 'GBP', 'JPY']);

    -- A user's last session. One that another writer holds is passed over, so that writers do not wait for each other.
    SELECT * INTO this_session
    FROM public.user_sessions
    WHERE user_id >= (SELECT (dice_user * max(user_id))::int FROM public.user_sessions)
    ORDER BY user_id, id DESC
    LIMIT 1
    FOR UPDATE SKIP LOCKED;
    IF this_session IS NULL THEN
        RETURN 'nothing to change';
    END IF;

    IF dice < 0.45 THEN
        -- The session lives on: its row and an event, in one transaction.
        SELECT coalesce(max(id), 0) + 1 INTO new_id FROM public.events WHERE user_id = this_session.user_id;
        INSERT INTO public.events (user_id, id, event_name, page_id, created_at)
        SELECT
            this_session.user_id, new_id, public.sessions_one_of(ARRAY['view', 'view', 'click', 'add_to_cart']), id,
            this_session.last_activity_at + interval '30 seconds'
        FROM public.pages
        ORDER BY random()
        LIMIT 1;
        UPDATE public.user_sessions
        SET
            active = true,
            page_name = public.sessions_one_of(ARRAY['main', 'catalog', 'product', 'cart', 'checkout']),
            last_activity_at = last_activity_at + interval '1 minute',
            updated_at = last_activity_at + interval '2 minutes'
        WHERE user_id = this_session.user_id AND id = this_session.id;
        RETURN 'session goes on';

    ELSIF dice < 0.70 THEN
        SELECT coalesce(max(id), 0) + 1 INTO new_id FROM public.transactions WHERE user_id = this_session.user_id;
        INSERT INTO public.transactions (id, user_id, created_at, amount, currency, success)
        VALUES (
            new_id, this_session.user_id,
            -- Somewhere in the session: often earlier than those that are there already.
            this_session.created_at + random() * (this_session.updated_at - this_session.created_at),
            public.sessions_amount(money), money, random() < 0.8
        );
        RETURN 'late transaction';

    ELSIF dice < 0.80 THEN
        UPDATE public.transactions
        SET success = NOT success
        WHERE user_id = this_session.user_id
            AND id = (SELECT max(id) FROM public.transactions WHERE user_id = this_session.user_id);
        RETURN 'transaction settled or refused';

    ELSIF dice < 0.90 THEN
        INSERT INTO public.user_sessions (user_id, id, active, page_name, last_activity_at, created_at, updated_at)
        VALUES (
            this_session.user_id, this_session.id + 1, true, 'main', this_session.updated_at + interval '2 hours',
            this_session.updated_at + interval '2 hours', this_session.updated_at + interval '2 hours'
        );
        RETURN 'session begins';

    ELSIF dice < 0.95 THEN
        UPDATE public.user_sessions
        SET active = false, updated_at = last_activity_at
        WHERE user_id = this_session.user_id AND id = this_session.id;
        RETURN 'session ends';

    ELSIF dice < 0.98 THEN
        UPDATE public.pages
        SET name = format('%s v%s', split_part(name, ' v', 1), 2 + floor(random() * 8)::int)
        WHERE id = 1 + floor(dice_user * 8)::int;
        RETURN 'page renamed';

    ELSE
        -- The user asks to be forgotten.
        DELETE FROM public.events WHERE user_id = this_session.user_id;
        DELETE FROM public.transactions WHERE user_id = this_session.user_id;
        DELETE FROM public.user_sessions WHERE user_id = this_session.user_id;
        RETURN 'user forgotten';
    END IF;
END
$$;
