-- The sessions model in ClickHouse: the five views of schemas/postgres/sessions.sql. The tables under them and their
-- helper views `…_current` (one row a key, as the sources have it) are made by `tailwater setup --create-targets` from
-- mappings/sessions_clickhouse.toml and mappings/exchange_rates.toml; run this file after it. It may be run again.
--
-- A refreshable materialized view is computed as a whole and swapped in. The daemon asks for that after the tables have
-- changed; REFRESH needs a schedule too, and one that never comes in practice is given. EMPTY: the first refresh is the
-- daemon's as well.

CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.session_events
REFRESH EVERY 1 YEAR
ENGINE = MergeTree
ORDER BY (project, user_id, session_id)
EMPTY
AS
SELECT
    s.project AS project,
    s.user_id AS user_id,
    s.id AS session_id,
    count(e.id) AS event_count
FROM sessions.user_sessions_current AS s
LEFT JOIN sessions.events_current AS e
    ON e.project = s.project
    AND e.user_id = s.user_id
    AND e.created_at >= s.created_at
    AND e.created_at <= s.last_activity_at
GROUP BY project, user_id, session_id
-- Without it a session without events would count one of id 0.
SETTINGS join_use_nulls = 1;

-- 76 digits hold every product; ClickHouse raises an error where even they do not.
CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.transactions_in_usd
REFRESH EVERY 1 YEAR
ENGINE = MergeTree
ORDER BY (project, id, user_id)
EMPTY
AS
SELECT
    t.project AS project,
    t.id AS id,
    t.user_id AS user_id,
    t.created_at AS created_at,
    t.success AS success,
    t.currency AS currency,
    t.amount AS amount,
    CAST(t.amount AS Nullable(Decimal(76, 10)))
        * if(t.currency = 'USD', CAST(1 AS Nullable(Decimal(38, 18))), r.exchange_rate) AS amount_usd
FROM sessions.transactions_current AS t
LEFT JOIN sessions.exchange_rates_current AS r
    ON r.currency_from = t.currency
    AND r.currency_to = 'USD'
    AND r.currency_date = t.day
SETTINGS join_use_nulls = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.session_first_transactions
REFRESH EVERY 1 YEAR
ENGINE = MergeTree
ORDER BY (project, user_id, session_id)
EMPTY
AS
SELECT
    s.project AS project,
    s.user_id AS user_id,
    s.id AS session_id,
    argMin(t.id, (t.created_at, t.id)) AS first_id,
    min(t.created_at) AS first_at,
    argMinOrNullIf(t.id, (t.created_at, t.id), t.currency = 'USD') AS first_in_usd_id,
    minOrNullIf(t.created_at, t.currency = 'USD') AS first_in_usd_at
FROM sessions.user_sessions_current AS s
INNER JOIN sessions.transactions_current AS t
    ON t.project = s.project
    AND t.user_id = s.user_id
    AND t.created_at >= s.created_at
    AND t.created_at <= s.updated_at
WHERE t.success
GROUP BY project, user_id, session_id;

CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.session_sums
REFRESH EVERY 1 YEAR
ENGINE = MergeTree
ORDER BY (project, user_id, session_id)
EMPTY
AS
SELECT
    s.project AS project,
    s.user_id AS user_id,
    s.id AS session_id,
    count(t.id) AS transaction_count,
    coalesce(sum(t.amount_usd), 0) AS sum_usd
FROM sessions.user_sessions_current AS s
LEFT JOIN (
    SELECT project, user_id, id, created_at, amount_usd
    FROM sessions.transactions_in_usd
    WHERE success
) AS t
    ON t.project = s.project
    AND t.user_id = s.user_id
    AND t.created_at >= s.created_at
    AND t.created_at <= s.updated_at
GROUP BY project, user_id, session_id
SETTINGS join_use_nulls = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.session_analytics
REFRESH EVERY 1 YEAR
ENGINE = MergeTree
ORDER BY (project, user_id, session_id)
EMPTY
AS
SELECT
    s.project AS project,
    s.user_id AS user_id,
    s.session_id AS session_id,
    s.transaction_count AS transaction_count,
    s.sum_usd AS sum_usd,
    f.first_id AS first_id,
    f.first_at AS first_at,
    f.first_in_usd_id AS first_in_usd_id,
    f.first_in_usd_at AS first_in_usd_at
FROM sessions.session_sums AS s
LEFT JOIN sessions.session_first_transactions AS f
    ON f.project = s.project
    AND f.user_id = s.user_id
    AND f.session_id = s.session_id
SETTINGS join_use_nulls = 1;
