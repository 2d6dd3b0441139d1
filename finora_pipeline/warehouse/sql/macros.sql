-- Functions that the metrics use and analysts may.

-- [create]
-- USD per 1,000 tokens (or per anything, with `per` = 1): numerator × per ÷ denominator, computed in whole
-- 10^-18 dollars and cut after the 18th decimal, never through a float. NULL without a denominator.
CREATE MACRO exact_ratio(numerator, denominator, per := 1) AS (
    SELECT CASE WHEN denominator > 0 THEN
        (quotient // 1000000000000000000)::DECIMAL(38, 18)
        + (quotient % 1000000000000000000)::DECIMAL(18, 0) * 0.000000000000000001::DECIMAL(18, 18)
    END
    FROM (
        SELECT replace(numerator::DECIMAL(38, 18)::VARCHAR, '.', '')::HUGEINT * per
            // nullif(denominator, 0)::HUGEINT AS quotient
    )
);

-- A model's name without the date of its release: gpt-4o-2024-08-06 → gpt-4o.
CREATE MACRO base_model(model) AS regexp_replace(model, '-\d{4}-\d{2}-\d{2}$', '');
