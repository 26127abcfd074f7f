-- The sessions model, source side: exchange rates. They are kept in one place for all projects, so they are a source of
-- their own.
--
--   SELECT exchange_rates_generate(60);      -- 60 days from 2026-03-01, six pairs a day
--   SELECT exchange_rates_live_step(1);      -- one corrected or late rate
--
-- The file may be run again. It holds plain SQL only, so any client may send it as one batch.

CREATE TABLE IF NOT EXISTS public.exchange_rates (
    currency_from varchar(10),
    currency_to   varchar(10),
    exchange_rate numeric,
    currency_date date,
    PRIMARY KEY (currency_from, currency_to, currency_date)
);

-- Fills the table, which must be empty. Returns the number of rates.
CREATE OR REPLACE FUNCTION public.exchange_rates_generate(days int)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    rate_count bigint;
BEGIN
    PERFORM setseed(0.17);
    INSERT INTO public.exchange_rates (currency_from, currency_to, exchange_rate, currency_date)
    SELECT
        pair.currency_from, pair.currency_to, round((pair.middle * (0.98 + random() * 0.04))::numeric, pair.digits),
        date '2026-03-01' + day
    FROM generate_series(0, days - 1) AS day
    CROSS JOIN (
        VALUES
            ('EUR', 'USD', 1.08, 6), ('GBP', 'USD', 1.27, 6), ('JPY', 'USD', 0.0067, 9),
            ('USD', 'EUR', 0.93, 6), ('EUR', 'GBP', 0.85, 6), ('EUR', 'JPY', 161.0, 4)
    ) AS pair (currency_from, currency_to, middle, digits)
    ORDER BY day, pair.currency_from, pair.currency_to;
    GET DIAGNOSTICS rate_count = ROW_COUNT;
    RETURN rate_count;
END
$$;

-- One change, in the caller's transaction: mostly a correction of a rate to USD. Returns what was done.
CREATE OR REPLACE FUNCTION public.exchange_rates_live_step(seed bigint)
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    money text;
    day date;
BEGIN
    PERFORM setseed((abs(seed % 1000003))::double precision / 1000003);
    PERFORM random() FROM generate_series(1, 8);
    money := (ARRAY['EUR', 'GBP', 'JPY'])[1 + floor(random() * 3)::int];
    day := date '2026-03-01' + floor(random() * 28)::int;
    IF random() < 0.1 THEN
        DELETE FROM public.exchange_rates
        WHERE currency_from = money AND currency_to = 'USD' AND currency_date = day;
        RETURN 'rate withdrawn';
    END IF;
    INSERT INTO public.exchange_rates (currency_from, currency_to, exchange_rate, currency_date)
    VALUES (money, 'USD', round((CASE money WHEN 'JPY' THEN 0.0067 ELSE 1.2 END * (0.9 + random() * 0.2))::numeric, 9), day)
    ON CONFLICT (currency_from, currency_to, currency_date) DO UPDATE SET exchange_rate = excluded.exchange_rate;
    RETURN 'rate corrected';
END
$$;
