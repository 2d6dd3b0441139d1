-- Functions for the metrics and for analysts.

-- [define]
-- An amount in whole 10^-18 dollars and back. The way back multiplies, which keeps the digits and is exact: DuckDB
-- takes ten times as long to divide numbers of this size.
CREATE OR REPLACE MACRO to_units(amount) AS replace(amount::DECIMAL(38, 18)::VARCHAR, '.', '')::HUGEINT;
CREATE OR REPLACE MACRO from_units(units) AS units::DECIMAL(38, 0) * 0.000000000000000001::DECIMAL(18, 18);

-- numerator × per ÷ denominator, for example USD per 1,000 tokens: computed in whole 10^-18 dollars and cut after
-- the 18th decimal, never a float. NULL without a denominator.
CREATE OR REPLACE MACRO exact_ratio(numerator, denominator, per := 1) AS
    CASE WHEN denominator > 0 THEN from_units(to_units(numerator) * per // denominator::HUGEINT) END;

-- A share or growth, rounded to 12 decimals. NULL without a denominator, and from 10^20, which no column holds.
CREATE OR REPLACE MACRO share_of(part, whole) AS
    CASE WHEN whole > 0 THEN try_cast(
        try_cast(round(part::DOUBLE / whole::DOUBLE, 12) AS DECIMAL(38, 12)) AS DECIMAL(38, 18)
    ) END;

-- The growth from a previous value, relative to its size, which may be below zero. NULL where it is zero or unknown.
CREATE OR REPLACE MACRO change_of(value, previous) AS share_of(value - previous, abs(previous));

-- Whether OpenAI restates a day no more, and the state of a day's month: the rules of reconciliation.sql.
CREATE OR REPLACE MACRO is_final(day, today) AS day <= today - {final_after_days};
CREATE OR REPLACE MACRO month_state(day, today) AS
    CASE
        WHEN day >= date_trunc('month', today) THEN 'open'
        WHEN day >= date_trunc('month', today) - INTERVAL 1 MONTH AND day(today) <= {closing_days} THEN 'closing'
        ELSE 'closed'
    END;

-- Whether a charge is for tokens in use: training is not. Without a unit, a charge with a direction counts tokens.
CREATE OR REPLACE MACRO unit_of(direction, quantity_unit) AS
    coalesce(
        quantity_unit,
        CASE WHEN direction IN ('input', 'cached_input', 'output', 'cache_write', 'cache_write_12h')
            OR direction ILIKE 'cache write%' THEN 'tokens' END
    );
CREATE OR REPLACE MACRO is_priced_by_token(direction, quantity_unit) AS
    direction IS DISTINCT FROM 'training' AND unit_of(direction, quantity_unit) IN ('tokens', '1000_tokens');

-- The first moment after a UTC day: a fetch from then on returns the whole day.
CREATE OR REPLACE MACRO day_end(day) AS (day::DATE + 1)::TIMESTAMP AT TIME ZONE 'UTC';
COMMENT ON MACRO day_end IS 'The first moment after a UTC day.';

-- A model's name without the date of its release: gpt-4o-2024-08-06 → gpt-4o.
CREATE OR REPLACE MACRO base_model(model) AS regexp_replace(model, '-\d{4}-\d{2}-\d{2}$', '');

-- A plain decimal text as DECIMAL(38,18), exact: up to 18 digits before the point, and zeros after the 18th decimal.
-- Whole and fraction are cast apart, 30 to 100 times as fast as one cast; a branch would cast all rows both ways.
CREATE OR REPLACE MACRO parts_to_decimal(number, sign) AS
    split_part(number, '.', 1)::BIGINT::DECIMAL(38, 18)
    + (sign || '0.' || left(split_part(number, '.', 2), 18))::DECIMAL(18, 18);

-- As parts_to_decimal; OpenAI writes zero as 0E-6176.
CREATE OR REPLACE MACRO exact_decimal(text) AS
    parts_to_decimal(
        CASE text WHEN '0E-6176' THEN '0' ELSE text END,
        CASE WHEN starts_with(text, '-') THEN '-' ELSE '' END
    );

COMMENT ON MACRO to_units IS 'A USD amount in whole 10^-18 dollars, exact';
COMMENT ON MACRO from_units IS 'Whole 10^-18 dollars as a USD amount, exact: the inverse of to_units';
COMMENT ON MACRO exact_ratio IS 'numerator × per ÷ denominator, e.g. USD per 1,000 tokens with per := 1000; cut after the 18th decimal, never a float. NULL without a denominator above zero';
COMMENT ON MACRO share_of IS 'part ÷ whole, rounded to 12 decimals. NULL without a whole above zero';
COMMENT ON MACRO change_of IS '(value − previous) ÷ |previous|, rounded to 12 decimals: 0.1 is 10% more. NULL where the previous value is zero or unknown';
COMMENT ON MACRO is_final IS 'Whether a UTC day is old enough on the UTC day `today` for OpenAI to restate it no more';
COMMENT ON MACRO month_state IS 'State of a day''s month on the UTC day `today`: open during the month, closing until day {closing_days} of the next, then closed';
COMMENT ON MACRO unit_of IS 'Unit of a charge''s quantity; tokens for a charge that has a token type but no unit; NULL if unknown';
COMMENT ON MACRO is_priced_by_token IS 'Whether a charge is for tokens in use; training is not';
COMMENT ON MACRO base_model IS 'Name of a model without the date of its release: gpt-4o-2024-08-06 becomes gpt-4o';
COMMENT ON MACRO parts_to_decimal IS 'As exact_decimal, for a text whose sign (- or nothing) is given';
COMMENT ON MACRO exact_decimal IS 'OpenAI''s text of an amount as DECIMAL(38,18), exact; an error where that has no room for it';
