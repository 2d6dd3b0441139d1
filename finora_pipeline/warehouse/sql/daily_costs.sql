-- daily_costs: charges exactly as OpenAI's costs endpoint gives them.
--
-- Grain: user, provider, date, project_id, line_item (one row each; project_id and line_item may be NULL).
-- Columns: amount_usd in USD, quantity in quantity_unit, both exact.
-- Rules
--   1. `amount_usd` is OpenAI's own text as DECIMAL(38,18), never a float on the way. NULL where OpenAI gives none.
--   2. The newest complete page set of a day replaces that day, also if it is empty.
--   3. A line item with words unknown to the grammar keeps its text and its amount; `is_parsed` is false. Its model
--      is that of the text or, once usage is known, the model used that day which it names (attribution.sql).
--   4. `cost_service` and `charge_category` follow the patterns of openai_admin/charge_kinds.csv; what is charged by
--      stored gibibyte-hours is storage, and an amount below zero that no pattern names is a credit.
--   5. `cost_model` is the model, or the line item's text for a charge without one: the key of daily_model_costs.

-- [create]
CREATE TABLE daily_costs (
    user_id          VARCHAR NOT NULL,
    provider         VARCHAR NOT NULL,
    date             DATE NOT NULL,
    project_id       VARCHAR,
    project_name     VARCHAR,
    line_item        VARCHAR,
    amount_usd       DECIMAL(38, 18),
    quantity         DECIMAL(38, 18),
    quantity_unit    VARCHAR,
    model            VARCHAR,
    direction        VARCHAR,
    modality         VARCHAR,
    tier             VARCHAR,
    is_long_context  BOOLEAN NOT NULL,
    is_parsed        BOOLEAN NOT NULL,
    organization_id  VARCHAR,
    fetched_at       TIMESTAMPTZ NOT NULL,
    raw_file         VARCHAR NOT NULL,
    is_sample        BOOLEAN NOT NULL,
    organization_name VARCHAR,
    cost_service     VARCHAR,
    charge_category  VARCHAR,
    cost_model       VARCHAR
);

-- [define]
COMMENT ON TABLE daily_costs IS 'What OpenAI charged, in USD: one row per user, UTC day, project and line item. The financial source: it reconciles with the invoice.';
COMMENT ON COLUMN daily_costs.user_id IS 'User (tenant)';
COMMENT ON COLUMN daily_costs.provider IS 'Provider: openai';
COMMENT ON COLUMN daily_costs.date IS 'UTC day of the charge; today is partial, OpenAI may restate the two days before';
COMMENT ON COLUMN daily_costs.project_id IS 'OpenAI project; NULL for a charge of the whole organization';
COMMENT ON COLUMN daily_costs.project_name IS 'Name of the project at the fetch time; NULL if OpenAI gave none. named_costs has the newest';
COMMENT ON COLUMN daily_costs.line_item IS 'OpenAI''s text of the charge; NULL if OpenAI gave none';
COMMENT ON COLUMN daily_costs.amount_usd IS 'USD, exact; NULL if OpenAI gave no amount';
COMMENT ON COLUMN daily_costs.quantity IS 'Quantity bought, in quantity_unit; NULL if OpenAI gave none';
COMMENT ON COLUMN daily_costs.quantity_unit IS 'tokens, images, characters, duration_seconds, gibibyte_hours …; NULL if it has no single unit';
COMMENT ON COLUMN daily_costs.model IS 'Model named by the line item, e.g. gpt-4o-2024-08-06; NULL if it names none';
COMMENT ON COLUMN daily_costs.direction IS 'Token type: input, cached_input, output, cache_write (kept for 30 minutes), cache_write_12h or training; otherwise the unknown words of the line item. NULL without one';
COMMENT ON COLUMN daily_costs.modality IS 'text, image, audio or video, or the unknown word in its place; NULL where the line item names none';
COMMENT ON COLUMN daily_costs.tier IS 'Service tier or calling surface, the text before a bar: priority, fast, ultrafast, flex, scale, batch, evals, assistants api …; NULL without one';
COMMENT ON COLUMN daily_costs.is_long_context IS 'Priced as long context';
COMMENT ON COLUMN daily_costs.is_parsed IS 'False if the line item has unknown words; its amount counts all the same';
COMMENT ON COLUMN daily_costs.organization_id IS 'OpenAI organization; NULL if OpenAI gave none';
COMMENT ON COLUMN daily_costs.fetched_at IS 'Fetch time (UTC)';
COMMENT ON COLUMN daily_costs.raw_file IS 'Raw file that contains the page';
COMMENT ON COLUMN daily_costs.is_sample IS 'Deprecated, always false: there are no sample rows any more';
COMMENT ON COLUMN daily_costs.organization_name IS 'Name of the OpenAI organization at the fetch time; NULL if OpenAI gave none, and on days fetched by versions that did not keep it';
COMMENT ON COLUMN daily_costs.cost_service IS 'What is charged for: model_tokens, embeddings, moderation, image, speech, transcription, video, realtime, web_search, file_search, code_interpreter, storage, training or other. Never NULL';
COMMENT ON COLUMN daily_costs.charge_category IS 'usage, credit, adjustment or tax; by the text, else by the sign (below zero: credit). Never NULL';
COMMENT ON COLUMN daily_costs.cost_model IS 'Model as costs name it; the line item''s text for a charge without a model. Never NULL; joins with daily_usage.cost_model';

-- [line_items]
-- Reads: raw_pages (pipeline.sql, begin_load).
-- Leaves: nothing; returns the distinct line items of the pages.
SELECT DISTINCT unnest(line_items) FROM raw_pages;

-- [macros]
-- Leaves: service_of, category_of.
--
-- The service of a charge: that of its text, but what is charged by stored gibibyte-hours is storage.
CREATE OR REPLACE TEMP MACRO service_of(of_text, unit) AS
    CASE WHEN unit = 'gibibyte_hours' THEN 'storage' ELSE coalesce(of_text, 'other') END;

CREATE OR REPLACE TEMP MACRO category_of(of_text, amount_usd) AS
    coalesce(of_text, CASE WHEN amount_usd < 0 THEN 'credit' ELSE 'usage' END);

-- [load]
-- Reads: new_days, reread_days, new_results (pipeline.sql); macros; line_items, each distinct text parsed (an Arrow
-- table).
-- Leaves: the rows of the days in new_days; old_costs, the rows that they replace; days whose prices may change,
-- in changed_days.
CREATE OR REPLACE TEMP TABLE old_costs AS
SELECT
    user_id, provider, date, project_id, line_item, amount_usd, quantity,
    {'unit': quantity_unit, 'model': model, 'direction': direction} AS meaning
FROM daily_costs
SEMI JOIN reread_days USING (user_id, provider, date);

DELETE FROM daily_costs AS old
USING new_days AS new
WHERE old.user_id = new.user_id AND old.provider = new.provider AND old.date = new.date;

INSERT INTO daily_costs
SELECT
    user_id,
    provider,
    date,
    result.project_id,
    result.project_name,
    result.line_item,
    exact_decimal(result.amount.value),
    exact_decimal(result.quantity),
    result.quantity_unit,
    item.model,
    item.direction,
    item.modality,
    item.tier,
    coalesce(item.is_long_context, false),
    coalesce(item.is_parsed, false),
    result.organization_id,
    fetched_at,
    raw_file,
    false,
    result.organization_name,
    service_of(item.cost_service, result.quantity_unit),
    category_of(item.charge_category, exact_decimal(result.amount.value)),
    coalesce(item.model, result.line_item, 'not attributed')
FROM new_results('{"amount": {"value": "VARCHAR"}, "line_item": "VARCHAR", "quantity": "VARCHAR",
    "quantity_unit": "VARCHAR", "project_id": "VARCHAR", "project_name": "VARCHAR", "organization_id": "VARCHAR",
    "organization_name": "VARCHAR"}')
LEFT JOIN line_items AS item ON item.line_item = result.line_item;

-- Prices of the days before are compared with (reconciliation.sql, rule 3), and a longer history or a backfill may
-- fetch those after the day itself.
INSERT INTO changed_days
SELECT user_id, provider, 'costs', date
FROM pipeline.loaded_days AS loaded
SEMI JOIN (FROM new_days ANTI JOIN reread_days USING (user_id, provider, endpoint, date)) AS first_read
    ON first_read.user_id = loaded.user_id
    AND first_read.provider = loaded.provider
    AND loaded.date BETWEEN first_read.date + 1 AND first_read.date + {price_days}
WHERE loaded.endpoint = 'costs';

-- [distinct_line_items]
-- Reads: daily_costs.
-- Leaves: distinct_line_items, numbered from 0.
CREATE OR REPLACE TEMP TABLE distinct_line_items AS
SELECT row_number() OVER () - 1 AS number, line_item
FROM (SELECT DISTINCT line_item FROM daily_costs WHERE line_item IS NOT NULL);

-- [reparse]
-- Reads: macros; line_items, some distinct texts parsed again (an Arrow table).
-- Leaves: reparsed, the charges that changed their meaning; their days stale, their months unpublished.
CREATE OR REPLACE TEMP TABLE reparsed AS
SELECT DISTINCT user_id, provider, date, line_item
FROM daily_costs AS costs
JOIN line_items AS item USING (line_item)
WHERE (costs.model, costs.direction, costs.modality, costs.tier, costs.is_long_context, costs.is_parsed)
    IS DISTINCT FROM (item.model, item.direction, item.modality, item.tier, item.is_long_context, item.is_parsed)
    OR (costs.cost_service, costs.charge_category) IS DISTINCT FROM (
        service_of(item.cost_service, costs.quantity_unit), category_of(item.charge_category, costs.amount_usd)
    );

UPDATE daily_costs AS costs
SET
    model = item.model,
    direction = item.direction,
    modality = item.modality,
    tier = item.tier,
    is_long_context = item.is_long_context,
    is_parsed = item.is_parsed,
    cost_service = service_of(item.cost_service, costs.quantity_unit),
    charge_category = category_of(item.charge_category, costs.amount_usd),
    cost_model = coalesce(item.model, costs.line_item)
FROM line_items AS item
SEMI JOIN reparsed USING (line_item)
WHERE item.line_item = costs.line_item;

INSERT INTO pipeline.stale_days
SELECT DISTINCT user_id, provider, date FROM reparsed
EXCEPT
FROM pipeline.stale_days;

INSERT INTO pipeline.unpublished_months
SELECT DISTINCT 'daily_costs', date_trunc('month', date)::DATE FROM reparsed
EXCEPT
FROM pipeline.unpublished_months;

-- [fill]
-- Reads: daily_costs. Leaves: the columns of charges without a line item; every day with costs or usage stale.
UPDATE daily_costs
SET cost_service = 'other', charge_category = CASE WHEN amount_usd < 0 THEN 'credit' ELSE 'usage' END,
    cost_model = 'not attributed'
WHERE line_item IS NULL;

INSERT INTO pipeline.stale_days
SELECT user_id, provider, date FROM daily_costs
UNION
SELECT user_id, provider, date FROM daily_usage
EXCEPT
FROM pipeline.stale_days;

-- [compare]
-- Reads: old_costs (load), reread_days (pipeline.sql).
-- Leaves: restated; the changes in cost_revisions; the days whose rows or prices changed, in changed_days.
--
-- Rows of known days that changed. `is_restated` is false if only their meaning did: the unit, or what a newer
-- grammar reads from the line item.
CREATE OR REPLACE TEMP TABLE restated AS
WITH changes AS (
    SELECT
        user_id,
        provider,
        date,
        project_id,
        line_item,
        any_value(amount_usd) FILTER (is_new) AS new_amount_usd,
        any_value(amount_usd) FILTER (NOT is_new) AS old_amount_usd,
        any_value(quantity) FILTER (is_new) AS new_quantity,
        any_value(quantity) FILTER (NOT is_new) AS old_quantity,
        any_value(meaning) FILTER (is_new) AS new_meaning,
        any_value(meaning) FILTER (NOT is_new) AS old_meaning,
        bool_or(is_new) AS is_in_new,
        bool_or(NOT is_new) AS was_in_old
    FROM (
        SELECT *, false AS is_new FROM old_costs
        UNION ALL
        SELECT
            user_id, provider, date, project_id, line_item, amount_usd, quantity,
            {'unit': quantity_unit, 'model': model, 'direction': direction},
            true
        FROM daily_costs
        SEMI JOIN reread_days USING (user_id, provider, date)
    )
    GROUP BY user_id, provider, date, project_id, line_item
)
SELECT
    changes.*,
    is_in_new <> was_in_old
        OR old_amount_usd IS DISTINCT FROM new_amount_usd
        OR old_quantity IS DISTINCT FROM new_quantity AS is_restated,
    reread.fetched_at AS observed_at
FROM changes
JOIN reread_days AS reread USING (user_id, provider, date)
WHERE is_restated OR old_meaning IS DISTINCT FROM new_meaning;

INSERT INTO cost_revisions
SELECT
    user_id, provider, date, project_id, line_item, observed_at, old_amount_usd, new_amount_usd, old_quantity,
    new_quantity, was_in_old, is_in_new
FROM restated
WHERE is_restated;

-- Prices of the days before are compared with: reconciliation.sql, rule 3.
INSERT INTO changed_days
SELECT user_id, provider, 'costs', date FROM restated
UNION
SELECT loaded.user_id, loaded.provider, 'costs', loaded.date
FROM restated
JOIN pipeline.loaded_days AS loaded
    ON loaded.user_id = restated.user_id
    AND loaded.provider = restated.provider
    AND loaded.endpoint = 'costs'
    AND loaded.date BETWEEN restated.date + 1 AND restated.date + {price_days};
