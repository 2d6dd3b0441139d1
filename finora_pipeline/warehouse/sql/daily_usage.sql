-- daily_usage: usage as OpenAI's usage endpoints count it.
--
-- Grain: user, provider, date, service, project_id, member_id, api_key_id, model, batch, service_tier,
-- image_size, image_source, context_level, vector_store_id; a dimension that the service does not have is NULL.
-- Columns: whole counts in the unit of their measure. `{names}` in braces stand for lists that
-- warehouse/usage_columns.py writes from the table of measures, openai_admin/measures.py.
-- Rules
--   1. Counts are OpenAI's own; a measure that the service does not have, or that OpenAI did not send, is NULL.
--      input_tokens = cached + uncached + cache writes; uncached, cached and output each = text + audio +
--      image. Never add the parts to their total.
--   2. OpenAI counts usage and costs separately; they need not agree on recent days. Money comes from
--      daily_costs.
--   3. The newest complete page set of a day of an organization and service replaces that day.
--   4. `cost_model` comes with the metrics of the day (daily_model_costs.sql). Rows that replace others keep it until
--      then, since a day whose counts did not change is not computed again.
--   5. The last four dimensions are NULL, and the day's rows fewer, where OpenAI refuses to group by them and on
--      days fetched before they were requested. A fetch that first has them, or no longer has them, restates only
--      what differs in the sums without them.

-- [create]
CREATE TABLE daily_usage (
    user_id                       VARCHAR NOT NULL,
    provider                      VARCHAR NOT NULL,
    date                          DATE NOT NULL,
    service                       VARCHAR NOT NULL,
    project_id                    VARCHAR,
    member_id                     VARCHAR,
    api_key_id                    VARCHAR,
    model                         VARCHAR,
    batch                         BOOLEAN,
    service_tier                  VARCHAR,
    {first_measures},
    fetched_at                    TIMESTAMPTZ NOT NULL,
    raw_file                      VARCHAR NOT NULL,
    is_sample                     BOOLEAN NOT NULL,
    image_size                    VARCHAR,
    image_source                  VARCHAR,
    context_level                 VARCHAR,
    vector_store_id               VARCHAR,
    cost_model                    VARCHAR{later_measures}
);

-- [define]
COMMENT ON TABLE daily_usage IS 'Usage of every service: one row per user, UTC day, service, project, member, API key, model, batch, tier, and what else the service is counted by.';
COMMENT ON COLUMN daily_usage.user_id IS 'User (tenant)';
COMMENT ON COLUMN daily_usage.provider IS 'Provider: openai';
COMMENT ON COLUMN daily_usage.date IS 'UTC day of the usage; today is partial';
COMMENT ON COLUMN daily_usage.service IS 'Usage endpoint, e.g. completions (includes chat, responses and Codex)';
COMMENT ON COLUMN daily_usage.project_id IS 'OpenAI project; NULL if OpenAI gave none';
COMMENT ON COLUMN daily_usage.member_id IS 'OpenAI organization member; NULL if OpenAI gave none, as for service accounts';
COMMENT ON COLUMN daily_usage.api_key_id IS 'OpenAI API key; NULL if the service is not counted by it';
COMMENT ON COLUMN daily_usage.model IS 'Model as named by the usage endpoint, where costs may name it with or without its date; NULL if the service has none';
COMMENT ON COLUMN daily_usage.batch IS 'Whether the requests used the Batch API; NULL if the service is not counted by it';
COMMENT ON COLUMN daily_usage.service_tier IS 'Service tier, e.g. default, priority; NULL if the service is not counted by it';
{measure_comments}
COMMENT ON COLUMN daily_usage.fetched_at IS 'Fetch time (UTC)';
COMMENT ON COLUMN daily_usage.raw_file IS 'Raw file that contains the page';
COMMENT ON COLUMN daily_usage.cost_model IS 'Model as costs name it that day, else its own name, else the service: joins with daily_costs.cost_model and daily_model_costs.model. NULL until the metrics of the day are computed';
COMMENT ON COLUMN daily_usage.is_sample IS 'Deprecated, always false: there are no sample rows any more';
COMMENT ON COLUMN daily_usage.image_size IS 'Size of the images, e.g. 1024x1024; NULL for other services and where OpenAI does not split by it';
COMMENT ON COLUMN daily_usage.image_source IS 'Origin of the images, e.g. image.generation, image.edit; NULL as for image_size';
COMMENT ON COLUMN daily_usage.context_level IS 'Context level of web searches: low, medium, high; NULL as for image_size';
COMMENT ON COLUMN daily_usage.vector_store_id IS 'OpenAI vector store that was searched; NULL as for image_size';

-- [load]
-- Reads: new_days, reread_days, new_results (pipeline.sql).
-- Leaves: the rows of the days in new_days; old_usage, the rows that they replace, and old_cost_models.
CREATE OR REPLACE TEMP TABLE old_usage AS
SELECT daily_usage.* EXCLUDE (fetched_at, raw_file, is_sample, cost_model)
FROM daily_usage
SEMI JOIN reread_days AS reread
    ON reread.user_id = daily_usage.user_id
    AND reread.provider = daily_usage.provider
    AND reread.endpoint = daily_usage.service
    AND reread.date = daily_usage.date;

CREATE OR REPLACE TEMP TABLE old_cost_models AS
SELECT DISTINCT daily_usage.user_id, daily_usage.provider, daily_usage.date, service, model, cost_model
FROM daily_usage
SEMI JOIN reread_days AS reread
    ON reread.user_id = daily_usage.user_id
    AND reread.provider = daily_usage.provider
    AND reread.endpoint = daily_usage.service
    AND reread.date = daily_usage.date;

DELETE FROM daily_usage AS old
USING new_days AS new
WHERE old.service = new.endpoint
  AND old.user_id = new.user_id
  AND old.provider = new.provider
  AND old.date = new.date;

INSERT INTO daily_usage BY NAME
SELECT
    new.user_id,
    new.provider,
    new.date,
    endpoint AS service,
    result.project_id AS project_id,
    result.user_id AS member_id,
    result.api_key_id AS api_key_id,
    result.model AS model,
    result.batch AS batch,
    result.service_tier AS service_tier,
    {measures_of_result},
    fetched_at,
    raw_file,
    false AS is_sample,
    result.size AS image_size,
    result.source AS image_source,
    result.context_level AS context_level,
    result.vector_store_id AS vector_store_id,
    old.cost_model AS cost_model
FROM new_results('{usage_result}') AS new
LEFT JOIN old_cost_models AS old
    ON old.user_id = new.user_id
    AND old.provider = new.provider
    AND old.date = new.date
    AND old.service = new.endpoint
    AND old.model IS NOT DISTINCT FROM result.model;

-- [repeated]
-- Leaves: repeated_usage, hashes of grains ({grain}) that several new rows share.
-- OpenAI sends such rows only where it omitted a dimension.
CREATE OR REPLACE TEMP TABLE repeated_usage AS
SELECT hash({grain}) AS number
FROM daily_usage
WHERE fetched_at >= getvariable('first_fetched_at')
GROUP BY number
HAVING count(*) > 1;

-- [merge]
-- Reads: repeated_usage. Makes duplicate rows one row with their sums. Leaves: merged_usage.
-- Grouping all new rows instead would take memory in proportion to their number.
CREATE OR REPLACE TEMP TABLE merged_usage AS
SELECT
    {grain},
    {measure_sums},
    fetched_at, raw_file, is_sample, cost_model
FROM daily_usage
WHERE fetched_at >= getvariable('first_fetched_at')
  AND hash({grain}) IN (FROM repeated_usage)
GROUP BY ALL;

DELETE FROM daily_usage
WHERE fetched_at >= getvariable('first_fetched_at')
  AND hash({grain}) IN (FROM repeated_usage);

INSERT INTO daily_usage BY NAME FROM merged_usage;

-- [reread]
-- Reads: reread_days, old_usage. Leaves: reread_usage, the new rows of these days; regrouped, the days of which
-- only the old or only the new rows are split by the optional dimensions.
CREATE OR REPLACE TEMP TABLE reread_usage AS
SELECT daily_usage.* EXCLUDE (fetched_at, raw_file, is_sample, cost_model)
FROM daily_usage
SEMI JOIN reread_days AS reread
    ON reread.user_id = daily_usage.user_id
    AND reread.provider = daily_usage.provider
    AND reread.endpoint = daily_usage.service
    AND reread.date = daily_usage.date;

CREATE OR REPLACE TEMP TABLE regrouped AS
SELECT user_id, provider, service, date
FROM (SELECT *, true AS is_new FROM reread_usage UNION ALL BY NAME SELECT *, false AS is_new FROM old_usage)
WHERE service IN ({split_services})
GROUP BY ALL
HAVING bool_or(coalesce({optional_columns}) IS NOT NULL) FILTER (is_new)
    <> bool_or(coalesce({optional_columns}) IS NOT NULL) FILTER (NOT is_new);

-- [regroup]
-- Reads: regrouped. Leaves: old_usage or reread_usage ({rows}), on these days without the optional dimensions.
-- Equal sums are not a restatement, split or not.
CREATE OR REPLACE TEMP TABLE sums_without AS
SELECT
    user_id, provider, date, service, project_id, member_id, api_key_id, model, batch, service_tier,
    {measure_sums}
FROM {rows}
SEMI JOIN regrouped USING (user_id, provider, service, date)
GROUP BY ALL;

DELETE FROM {rows} AS split
USING regrouped
WHERE split.user_id = regrouped.user_id
  AND split.provider = regrouped.provider
  AND split.service = regrouped.service
  AND split.date = regrouped.date;

INSERT INTO {rows} BY NAME FROM sums_without;

-- [compare]
-- Reads: reread_days, old_usage, reread_usage. Adds to usage_revisions and changed_days. Leaves: restated, the
-- rows of days fetched before that differ in any measure.
CREATE OR REPLACE TEMP TABLE restated AS
WITH differences AS (
    (SELECT *, true AS is_new FROM reread_usage EXCEPT SELECT *, true FROM old_usage)
    UNION ALL
    (SELECT *, false FROM old_usage EXCEPT SELECT *, false FROM reread_usage)
),
counted AS (
    SELECT
        *,
        {other_measures} AS other
    FROM differences
)
SELECT
    user_id, provider, date, service, project_id, member_id, api_key_id, model, batch, service_tier,
    {optional_columns},
    any_value(requests) FILTER (NOT is_new) AS old_requests,
    any_value(requests) FILTER (is_new) AS new_requests,
    any_value(input_tokens) FILTER (NOT is_new) AS old_input_tokens,
    any_value(input_tokens) FILTER (is_new) AS new_input_tokens,
    any_value(output_tokens) FILTER (NOT is_new) AS old_output_tokens,
    any_value(output_tokens) FILTER (is_new) AS new_output_tokens,
    any_value(other) FILTER (NOT is_new) AS old_other,
    any_value(other) FILTER (is_new) AS new_other
FROM counted
GROUP BY ALL;

INSERT INTO usage_revisions BY NAME
SELECT
    restated.* EXCLUDE (
        old_requests, new_requests, old_input_tokens, new_input_tokens, old_output_tokens, new_output_tokens,
        old_other, new_other
    ),
    reread.fetched_at AS observed_at,
    old_requests, new_requests, old_input_tokens, new_input_tokens, old_output_tokens, new_output_tokens,
    old_other, new_other
FROM restated
JOIN reread_days AS reread
    ON reread.user_id = restated.user_id
    AND reread.provider = restated.provider
    AND reread.endpoint = restated.service
    AND reread.date = restated.date;

INSERT INTO changed_days SELECT DISTINCT user_id, provider, service, date FROM restated;
