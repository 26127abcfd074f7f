-- The sessions model, warehouse side: the projects' tables side by side, the exchange rates, and five materialized views.
-- `mappings/sessions.toml` and `mappings/exchange_rates.toml` fill the tables; the views are refreshed after them. The
-- file may be run again: it creates what is missing.
--
-- `project` is the source's name and the first column of every key: the projects number their rows independently.

CREATE SCHEMA IF NOT EXISTS sessions;

CREATE TABLE IF NOT EXISTS sessions.user_sessions (
    project          varchar(20),
    user_id          int,
    id               int,
    active           bool,
    page_name        varchar(50),
    last_activity_at timestamp,
    created_at       timestamp,
    updated_at       timestamp,
    PRIMARY KEY (project, user_id, id)
);

CREATE TABLE IF NOT EXISTS sessions.pages (
    project    varchar(20),
    id         int,
    name       varchar(50),
    created_at timestamp,
    PRIMARY KEY (project, id)
);

-- No foreign key to the pages: of the large table every row would pay for what the source has checked already.
CREATE TABLE IF NOT EXISTS sessions.events (
    project    varchar(20),
    user_id    int,
    id         int,
    event_name varchar(50),
    page_id    int,
    created_at timestamp,
    PRIMARY KEY (project, user_id, id)
);

CREATE TABLE IF NOT EXISTS sessions.transactions (
    project    varchar(20),
    id         int,
    user_id    int,
    created_at timestamp,
    amount     numeric,
    currency   varchar(10),
    success    bool,
    PRIMARY KEY (project, id, user_id)
);

CREATE TABLE IF NOT EXISTS sessions.exchange_rates (
    currency_from varchar(10),
    currency_to   varchar(10),
    exchange_rate numeric,
    currency_date date,
    PRIMARY KEY (currency_from, currency_to, currency_date)
);

-- What the views look for: a user's transactions.
CREATE INDEX IF NOT EXISTS transactions_project_user_id_idx ON sessions.transactions (project, user_id);

-- Events of each session: its user's, between its start and its last activity.
CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.session_events AS
SELECT
    s.project,
    s.user_id,
    s.id AS session_id,
    count(e.id) AS event_count
FROM sessions.user_sessions AS s
LEFT JOIN sessions.events AS e
    ON e.project = s.project
    AND e.user_id = s.user_id
    AND e.created_at BETWEEN s.created_at AND s.last_activity_at
GROUP BY s.project, s.user_id, s.id;

-- Each transaction at the rate of its day. While that is not known the amount in USD is not either.
CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.transactions_in_usd AS
SELECT
    t.project,
    t.id,
    t.user_id,
    t.created_at,
    t.success,
    t.currency,
    t.amount,
    t.amount * CASE t.currency WHEN 'USD' THEN 1 ELSE r.exchange_rate END AS amount_usd
FROM sessions.transactions AS t
LEFT JOIN sessions.exchange_rates AS r
    ON r.currency_from = t.currency
    AND r.currency_to = 'USD'
    AND r.currency_date = t.created_at::date;

-- The first successful transaction of a session, and the first of those made in USD. Sessions without one have no row.
CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.session_first_transactions AS
SELECT
    s.project,
    s.user_id,
    s.id AS session_id,
    (array_agg(t.id ORDER BY t.created_at, t.id))[1] AS first_id,
    min(t.created_at) AS first_at,
    (array_agg(t.id ORDER BY t.created_at, t.id) FILTER (WHERE t.currency = 'USD'))[1] AS first_in_usd_id,
    min(t.created_at) FILTER (WHERE t.currency = 'USD') AS first_in_usd_at
FROM sessions.user_sessions AS s
JOIN sessions.transactions AS t
    ON t.project = s.project
    AND t.user_id = s.user_id
    AND t.created_at BETWEEN s.created_at AND s.updated_at
WHERE t.success
GROUP BY s.project, s.user_id, s.id;

-- What each session's successful transactions come to.
CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.session_sums AS
SELECT
    s.project,
    s.user_id,
    s.id AS session_id,
    count(t.id) AS transaction_count,
    coalesce(sum(t.amount_usd), 0) AS sum_usd
FROM sessions.user_sessions AS s
LEFT JOIN sessions.transactions_in_usd AS t
    ON t.project = s.project
    AND t.user_id = s.user_id
    AND t.created_at BETWEEN s.created_at AND s.updated_at
    AND t.success
GROUP BY s.project, s.user_id, s.id;

CREATE MATERIALIZED VIEW IF NOT EXISTS sessions.session_analytics AS
SELECT
    s.project,
    s.user_id,
    s.session_id,
    s.transaction_count,
    s.sum_usd,
    f.first_id,
    f.first_at,
    f.first_in_usd_id,
    f.first_in_usd_at
FROM sessions.session_sums AS s
LEFT JOIN sessions.session_first_transactions AS f
    ON f.project = s.project
    AND f.user_id = s.user_id
    AND f.session_id = s.session_id;

-- REFRESH … CONCURRENTLY finds changed rows by a unique index over plain columns, without a predicate.
CREATE UNIQUE INDEX IF NOT EXISTS session_events_key ON sessions.session_events (project, user_id, session_id);
CREATE UNIQUE INDEX IF NOT EXISTS transactions_in_usd_key ON sessions.transactions_in_usd (project, id, user_id);
CREATE UNIQUE INDEX IF NOT EXISTS session_first_transactions_key
    ON sessions.session_first_transactions (project, user_id, session_id);
CREATE UNIQUE INDEX IF NOT EXISTS session_sums_key ON sessions.session_sums (project, user_id, session_id);
CREATE UNIQUE INDEX IF NOT EXISTS session_analytics_key ON sessions.session_analytics (project, user_id, session_id);
