-- daily_usage: what was used, as OpenAI's usage endpoints count it.
--
-- Grain: user, provider, date, service, project_id, member_id, api_key_id, model, batch, service_tier; a
-- dimension that the service does not have is NULL.
-- Rules
--   1. Counts are OpenAI's own; a measure that the service does not have, or that OpenAI did not tell, is NULL.
--      input_tokens = cached + uncached + cache writes; uncached, cached and output each = text + audio +
--      image. The parts are never added to their whole again.
--   2. Usage and costs are counted apart by OpenAI and need not agree on recent days; money comes from
--      daily_costs.
--   3. A day of an organization and service is replaced whole by its newest complete page set.

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
    requests                      BIGINT,
    calls                         BIGINT,
    input_tokens                  BIGINT,
    input_cached_tokens           BIGINT,
    input_uncached_tokens         BIGINT,
    input_cache_write_tokens      BIGINT,
    input_cache_write_30m_tokens  BIGINT,
    input_cache_write_12h_tokens  BIGINT,
    input_text_tokens             BIGINT,
    input_cached_text_tokens      BIGINT,
    output_tokens                 BIGINT,
    output_text_tokens            BIGINT,
    input_audio_tokens            BIGINT,
    input_cached_audio_tokens     BIGINT,
    output_audio_tokens           BIGINT,
    input_image_tokens            BIGINT,
    input_cached_image_tokens     BIGINT,
    output_image_tokens           BIGINT,
    images                        BIGINT,
    seconds                       BIGINT,
    characters                    BIGINT,
    usage_bytes                   BIGINT,
    sessions                      BIGINT,
    fetched_at                    TIMESTAMPTZ NOT NULL,
    raw_file                      VARCHAR NOT NULL,
    is_sample                     BOOLEAN NOT NULL
);

-- [define]
COMMENT ON TABLE daily_usage IS 'What was used, of every service: one row a user, UTC day, service, project, member, API key, model, batch and tier.';
COMMENT ON COLUMN daily_usage.user_id IS 'Our user';
COMMENT ON COLUMN daily_usage.provider IS 'Whose service: openai';
COMMENT ON COLUMN daily_usage.date IS 'UTC day of the use; today is partial';
COMMENT ON COLUMN daily_usage.service IS 'Usage endpoint, e.g. completions (chat, responses and Codex are in it)';
COMMENT ON COLUMN daily_usage.project_id IS 'OpenAI project';
COMMENT ON COLUMN daily_usage.member_id IS 'OpenAI organization member';
COMMENT ON COLUMN daily_usage.api_key_id IS 'OpenAI API key';
COMMENT ON COLUMN daily_usage.model IS 'Model as the usage endpoint names it; costs may name it with or without its date';
COMMENT ON COLUMN daily_usage.batch IS 'Whether through the Batch API';
COMMENT ON COLUMN daily_usage.service_tier IS 'Service tier, e.g. default, priority';
COMMENT ON COLUMN daily_usage.requests IS 'Requests to the model';
COMMENT ON COLUMN daily_usage.calls IS 'Calls of a tool: file searches, web searches';
COMMENT ON COLUMN daily_usage.input_tokens IS 'Tokens in, all of them: cached, uncached and cache writes';
COMMENT ON COLUMN daily_usage.input_cached_tokens IS 'Part of input_tokens that was read from the cache';
COMMENT ON COLUMN daily_usage.input_uncached_tokens IS 'Part of input_tokens that was neither read from the cache nor written to it';
COMMENT ON COLUMN daily_usage.input_cache_write_tokens IS 'Part of input_tokens that was written to the cache';
COMMENT ON COLUMN daily_usage.input_cache_write_30m_tokens IS 'Part of input_cache_write_tokens that is kept for 30 minutes';
COMMENT ON COLUMN daily_usage.input_cache_write_12h_tokens IS 'Part of input_cache_write_tokens that is kept for 12 hours';
COMMENT ON COLUMN daily_usage.input_text_tokens IS 'Part of input_uncached_tokens that is text';
COMMENT ON COLUMN daily_usage.input_cached_text_tokens IS 'Part of input_cached_tokens that is text';
COMMENT ON COLUMN daily_usage.output_tokens IS 'Tokens out, all of them';
COMMENT ON COLUMN daily_usage.output_text_tokens IS 'Part of output_tokens that is text';
COMMENT ON COLUMN daily_usage.input_audio_tokens IS 'Part of input_uncached_tokens that is audio';
COMMENT ON COLUMN daily_usage.input_cached_audio_tokens IS 'Part of input_cached_tokens that is audio';
COMMENT ON COLUMN daily_usage.output_audio_tokens IS 'Part of output_tokens that is audio';
COMMENT ON COLUMN daily_usage.input_image_tokens IS 'Part of input_uncached_tokens that is images';
COMMENT ON COLUMN daily_usage.input_cached_image_tokens IS 'Part of input_cached_tokens that is images';
COMMENT ON COLUMN daily_usage.output_image_tokens IS 'Part of output_tokens that is images';
COMMENT ON COLUMN daily_usage.images IS 'Images made';
COMMENT ON COLUMN daily_usage.seconds IS 'Seconds of audio transcribed';
COMMENT ON COLUMN daily_usage.characters IS 'Characters spoken';
COMMENT ON COLUMN daily_usage.usage_bytes IS 'Bytes held in vector stores';
COMMENT ON COLUMN daily_usage.sessions IS 'Code interpreter sessions';
COMMENT ON COLUMN daily_usage.fetched_at IS 'When OpenAI said so (UTC)';
COMMENT ON COLUMN daily_usage.raw_file IS 'Raw file that holds the page';
COMMENT ON COLUMN daily_usage.is_sample IS 'Made-up row of a user without real data';

-- [load]
-- From the raw files' pages, as OpenAI sent them, long ones in pieces. `canonical` stands in for a page that SQL
-- would not read as its check did: counts such as 10.0, names with NULs, keys that an object has twice.
CREATE OR REPLACE TEMP TABLE old_usage AS
SELECT daily_usage.* EXCLUDE (fetched_at, raw_file, is_sample)
FROM daily_usage
SEMI JOIN reread_days AS reread
    ON reread.user_id = daily_usage.user_id
    AND reread.provider = daily_usage.provider
    AND reread.endpoint = daily_usage.service
    AND reread.date = daily_usage.date
WHERE NOT is_sample;

-- Sample rows stay until there are real ones: sample_data.sql.
DELETE FROM daily_usage AS old
USING new_days AS new
WHERE old.service = new.endpoint
  AND old.user_id = new.user_id
  AND old.provider = new.provider
  AND old.date = new.date
  AND NOT old.is_sample;

INSERT INTO daily_usage
WITH pages AS (
    SELECT
        user_id,
        provider,
        endpoint,
        fetched_at,
        parse_filename(filename) AS raw_file,
        unnest(from_json(coalesce(canonical, body), '{"data": [{"start_time": "BIGINT", "results": [{
            "project_id": "VARCHAR", "user_id": "VARCHAR", "api_key_id": "VARCHAR", "model": "VARCHAR",
            "batch": "BOOLEAN", "service_tier": "VARCHAR", "num_model_requests": "BIGINT",
            "num_requests": "BIGINT", "input_tokens": "BIGINT", "input_cached_tokens": "BIGINT",
            "input_uncached_tokens": "BIGINT", "input_cache_write_tokens": "BIGINT",
            "input_cache_write_30m_tokens": "BIGINT", "input_cache_write_12h_tokens": "BIGINT",
            "input_text_tokens": "BIGINT", "input_cached_text_tokens": "BIGINT",
            "output_tokens": "BIGINT", "output_text_tokens": "BIGINT",
            "input_audio_tokens": "BIGINT", "input_cached_audio_tokens": "BIGINT",
            "output_audio_tokens": "BIGINT", "input_image_tokens": "BIGINT",
            "input_cached_image_tokens": "BIGINT", "output_image_tokens": "BIGINT",
            "images": "BIGINT", "seconds": "BIGINT", "characters": "BIGINT",
            "usage_bytes": "BIGINT", "num_sessions": "BIGINT"}]}]}').data) AS bucket
    FROM read_parquet(getvariable('text_files'), filename = true)
),
buckets AS (
    SELECT pages.* EXCLUDE (bucket), new.date, unnest(bucket.results) AS result
    FROM pages
    JOIN new_days AS new
        ON new.user_id = pages.user_id
        AND new.provider = pages.provider
        AND new.endpoint = pages.endpoint
        AND new.date = DATE '1970-01-01' + (bucket.start_time // 86400)::INTEGER
        AND new.fetched_at = pages.fetched_at
        AND new.raw_file = pages.raw_file
)
SELECT
    user_id,
    provider,
    date,
    endpoint AS service,
    result.project_id AS project_id,
    result.user_id AS member_id,
    result.api_key_id AS api_key_id,
    result.model AS model,
    result.batch AS batch,
    result.service_tier AS service_tier,
    result.num_model_requests,
    result.num_requests,
    result.input_tokens,
    result.input_cached_tokens,
    result.input_uncached_tokens,
    result.input_cache_write_tokens,
    result.input_cache_write_30m_tokens,
    result.input_cache_write_12h_tokens,
    result.input_text_tokens,
    result.input_cached_text_tokens,
    result.output_tokens,
    result.output_text_tokens,
    result.input_audio_tokens,
    result.input_cached_audio_tokens,
    result.output_audio_tokens,
    result.input_image_tokens,
    result.input_cached_image_tokens,
    result.output_image_tokens,
    result.images,
    result.seconds,
    result.characters,
    result.usage_bytes,
    result.num_sessions,
    fetched_at,
    raw_file,
    false
FROM buckets;

-- [repeated]
-- The new rows of which two seem to be of one grain ({grain}): OpenAI sends none unless it left a dimension
-- out.
CREATE OR REPLACE TEMP TABLE repeated_usage AS
SELECT hash({grain}) AS number
FROM daily_usage
WHERE fetched_at >= getvariable('first_fetched_at')
GROUP BY number
HAVING count(*) > 1;

-- [merge]
-- They become one row, with their sum. To group all rows at once would take memory by their number.
CREATE OR REPLACE TEMP TABLE merged_usage AS
SELECT
    {grain},
    sum(COLUMNS(* EXCLUDE ({grain}, fetched_at, raw_file, is_sample)))::BIGINT,
    fetched_at, raw_file, is_sample
FROM daily_usage
WHERE fetched_at >= getvariable('first_fetched_at')
  AND hash({grain}) IN (FROM repeated_usage)
GROUP BY ALL;

DELETE FROM daily_usage
WHERE fetched_at >= getvariable('first_fetched_at')
  AND hash({grain}) IN (FROM repeated_usage);

INSERT INTO daily_usage FROM merged_usage;

-- [compare]
-- What was restated: the rows of days read before that are not as they were, in any measure.
CREATE OR REPLACE TEMP TABLE restated AS
WITH reread_usage AS (
    SELECT daily_usage.* EXCLUDE (fetched_at, raw_file, is_sample)
    FROM daily_usage
    SEMI JOIN reread_days AS reread
        ON reread.user_id = daily_usage.user_id
        AND reread.provider = daily_usage.provider
        AND reread.endpoint = daily_usage.service
        AND reread.date = daily_usage.date
    WHERE NOT is_sample
),
differences AS (
    (SELECT *, true AS is_new FROM reread_usage EXCEPT SELECT *, true FROM old_usage)
    UNION ALL
    (SELECT *, false FROM old_usage EXCEPT SELECT *, false FROM reread_usage)
),
counted AS (
    SELECT
        *,
        coalesce(calls, 0) + coalesce(images, 0) + coalesce(seconds, 0) + coalesce(characters, 0)
            + coalesce(usage_bytes, 0) + coalesce(sessions, 0) AS other
    FROM differences
)
SELECT
    user_id, provider, date, service, project_id, member_id, api_key_id, model, batch, service_tier,
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

INSERT INTO usage_revisions
SELECT
    restated.* EXCLUDE (
        old_requests, new_requests, old_input_tokens, new_input_tokens, old_output_tokens, new_output_tokens,
        old_other, new_other
    ),
    reread.fetched_at,
    old_requests, new_requests, old_input_tokens, new_input_tokens, old_output_tokens, new_output_tokens,
    old_other, new_other
FROM restated
JOIN reread_days AS reread
    ON reread.user_id = restated.user_id
    AND reread.provider = restated.provider
    AND reread.endpoint = restated.service
    AND reread.date = restated.date;

INSERT INTO changed_days SELECT DISTINCT user_id, provider, service, date FROM restated;
