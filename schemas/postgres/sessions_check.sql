-- Returns no rows when the five views equal their queries over the mirrored tables, each view computed here from the
-- tables alone and not from another view. A view that is waiting for its refresh shows up here: ask when
-- `tailwater.view_state` has reached the checkpoint. One statement.
WITH in_usd AS (
    SELECT
        t.project, t.id, t.user_id, t.created_at, t.success, t.currency, t.amount,
        CASE
            WHEN t.currency = 'USD' THEN t.amount
            ELSE t.amount * (
                SELECT r.exchange_rate
                FROM sessions.exchange_rates AS r
                WHERE r.currency_from = t.currency AND r.currency_to = 'USD' AND r.currency_date = t.created_at::date
            )
        END AS amount_usd
    FROM sessions.transactions AS t
),

analytics AS (
    SELECT
        s.project, s.user_id, s.id AS session_id, paid.transaction_count, paid.sum_usd,
        first.id AS first_id, first.created_at AS first_at, in_usd.id AS first_in_usd_id, in_usd.created_at AS first_in_usd_at
    FROM sessions.user_sessions AS s
    CROSS JOIN LATERAL (
        SELECT count(*) AS transaction_count, coalesce(sum(t.amount_usd), 0) AS sum_usd
        FROM in_usd AS t
        WHERE t.project = s.project AND t.user_id = s.user_id AND t.success
            AND t.created_at BETWEEN s.created_at AND s.updated_at
    ) AS paid
    LEFT JOIN LATERAL (
        SELECT t.id, t.created_at
        FROM sessions.transactions AS t
        WHERE t.project = s.project AND t.user_id = s.user_id AND t.success
            AND t.created_at BETWEEN s.created_at AND s.updated_at
        ORDER BY t.created_at, t.id
        LIMIT 1
    ) AS first ON true
    LEFT JOIN LATERAL (
        SELECT t.id, t.created_at
        FROM sessions.transactions AS t
        WHERE t.project = s.project AND t.user_id = s.user_id AND t.success AND t.currency = 'USD'
            AND t.created_at BETWEEN s.created_at AND s.updated_at
        ORDER BY t.created_at, t.id
        LIMIT 1
    ) AS in_usd ON true
),

-- Each row as text, in one form: what a view shows, and what it should.
shown AS (
    SELECT 'session_events' AS view, row(project, user_id, session_id, event_count)::text AS content
    FROM sessions.session_events
    UNION ALL
    SELECT 'transactions_in_usd',
        row(project, id, user_id, created_at, success, currency, amount, trim_scale(amount_usd))::text
    FROM sessions.transactions_in_usd
    UNION ALL
    SELECT 'session_first_transactions',
        row(project, user_id, session_id, first_id, first_at, first_in_usd_id, first_in_usd_at)::text
    FROM sessions.session_first_transactions
    UNION ALL
    SELECT 'session_sums', row(project, user_id, session_id, transaction_count, trim_scale(sum_usd))::text
    FROM sessions.session_sums
    UNION ALL
    SELECT 'session_analytics', row(
        project, user_id, session_id, transaction_count, trim_scale(sum_usd), first_id, first_at, first_in_usd_id,
        first_in_usd_at
    )::text
    FROM sessions.session_analytics
),

right_rows AS (
    SELECT 'session_events' AS view, row(s.project, s.user_id, s.id, (
        SELECT count(*)
        FROM sessions.events AS e
        WHERE e.project = s.project AND e.user_id = s.user_id
            AND e.created_at BETWEEN s.created_at AND s.last_activity_at
    ))::text AS content
    FROM sessions.user_sessions AS s
    UNION ALL
    SELECT 'transactions_in_usd',
        row(project, id, user_id, created_at, success, currency, amount, trim_scale(amount_usd))::text
    FROM in_usd
    UNION ALL
    SELECT 'session_first_transactions',
        row(project, user_id, session_id, first_id, first_at, first_in_usd_id, first_in_usd_at)::text
    FROM analytics
    WHERE first_id IS NOT NULL
    UNION ALL
    SELECT 'session_sums', row(project, user_id, session_id, transaction_count, trim_scale(sum_usd))::text
    FROM analytics
    UNION ALL
    SELECT 'session_analytics', row(
        project, user_id, session_id, transaction_count, trim_scale(sum_usd), first_id, first_at, first_in_usd_id,
        first_in_usd_at
    )::text
    FROM analytics
)

SELECT view, 'missing or different' AS problem, content
FROM (TABLE right_rows EXCEPT ALL TABLE shown) AS diff
UNION ALL
SELECT view, 'too many or different', content
FROM (TABLE shown EXCEPT ALL TABLE right_rows) AS diff
ORDER BY view, problem, content
