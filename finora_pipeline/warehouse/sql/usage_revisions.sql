-- usage_revisions: each change of a usage row seen after its day had been fetched before.
--
-- Grain: user, provider, date, service, project_id, member_id, api_key_id, model, batch, service_tier,
-- image_size, image_source, context_level, vector_store_id, observed_at. Counts in the units of daily_usage. Rules as
-- for cost_revisions, folding included.

-- [create]
CREATE TABLE usage_revisions (
    user_id            VARCHAR NOT NULL,
    provider           VARCHAR NOT NULL,
    date               DATE NOT NULL,
    service            VARCHAR NOT NULL,
    project_id         VARCHAR,
    member_id          VARCHAR,
    api_key_id         VARCHAR,
    model              VARCHAR,
    batch              BOOLEAN,
    service_tier       VARCHAR,
    observed_at        TIMESTAMPTZ NOT NULL,
    old_requests       BIGINT,
    new_requests       BIGINT,
    old_input_tokens   BIGINT,
    new_input_tokens   BIGINT,
    old_output_tokens  BIGINT,
    new_output_tokens  BIGINT,
    old_other          BIGINT,
    new_other          BIGINT,
    image_size         VARCHAR,
    image_source       VARCHAR,
    context_level      VARCHAR,
    vector_store_id    VARCHAR
);

-- [define]
COMMENT ON TABLE usage_revisions IS 'Each change of usage after its day was first fetched, ordinary accrual included: counts before and after. Rows older than {exact_days} days are folded to one per row of usage and UTC day.';
COMMENT ON COLUMN usage_revisions.user_id IS 'User (tenant)';
COMMENT ON COLUMN usage_revisions.provider IS 'Provider: openai';
COMMENT ON COLUMN usage_revisions.date IS 'UTC day of the usage';
COMMENT ON COLUMN usage_revisions.service IS 'Usage endpoint';
COMMENT ON COLUMN usage_revisions.project_id IS 'OpenAI project; NULL if OpenAI gave none';
COMMENT ON COLUMN usage_revisions.member_id IS 'OpenAI organization member; NULL if OpenAI gave none, as for service accounts';
COMMENT ON COLUMN usage_revisions.api_key_id IS 'OpenAI API key; NULL if the service is not counted by it';
COMMENT ON COLUMN usage_revisions.model IS 'Model as named by the usage endpoint; NULL if the service has none';
COMMENT ON COLUMN usage_revisions.batch IS 'Whether the requests used the Batch API; NULL if the service is not counted by it';
COMMENT ON COLUMN usage_revisions.service_tier IS 'Service tier, e.g. default, priority; NULL if the service is not counted by it';
COMMENT ON COLUMN usage_revisions.observed_at IS 'Fetch time of the new counts (UTC); of the last ones of their UTC day once folded';
COMMENT ON COLUMN usage_revisions.old_requests IS 'Old requests; all old counts are NULL for a new row';
COMMENT ON COLUMN usage_revisions.new_requests IS 'New requests; all new counts are NULL for a vanished row';
COMMENT ON COLUMN usage_revisions.old_input_tokens IS 'Old input tokens; NULL as for old_requests';
COMMENT ON COLUMN usage_revisions.new_input_tokens IS 'New input tokens; NULL as for new_requests';
COMMENT ON COLUMN usage_revisions.old_output_tokens IS 'Old output tokens; NULL as for old_requests';
COMMENT ON COLUMN usage_revisions.new_output_tokens IS 'New output tokens; NULL as for new_requests';
COMMENT ON COLUMN usage_revisions.old_other IS 'Old sum of the service''s other counts ({other_units}); NULL as for old_requests';
COMMENT ON COLUMN usage_revisions.new_other IS 'New sum of the service''s other counts ({other_units}); NULL as for new_requests';
COMMENT ON COLUMN usage_revisions.image_size IS 'Size of the images; NULL too where the old or the new counts were not split by it';
COMMENT ON COLUMN usage_revisions.image_source IS 'Origin of the images; NULL as for image_size';
COMMENT ON COLUMN usage_revisions.context_level IS 'Context level of web searches; NULL as for image_size';
COMMENT ON COLUMN usage_revisions.vector_store_id IS 'OpenAI vector store; NULL as for image_size';

-- [fold]
-- Reads: the rows observed from $start until before $end, of the users of $portion of $portions; loaded_days.
-- Leaves: those rows folded (cost_revisions.sql, rule 3); folded.
CREATE OR REPLACE TEMP TABLE folded AS
SELECT
    {grain},
    max(observed_at) AS observed_at,
    arg_min(
        {'requests': old_requests, 'input': old_input_tokens, 'output': old_output_tokens, 'other': old_other}, observed_at
    ) AS old,
    arg_max(
        {'requests': new_requests, 'input': new_input_tokens, 'output': new_output_tokens, 'other': new_other}, observed_at
    ) AS new
FROM (
    SELECT revisions.*, coalesce(observed_at > completed_at, false) AS is_restatement
    FROM usage_revisions AS revisions
    LEFT JOIN pipeline.loaded_days AS loaded
        ON loaded.endpoint = revisions.service
        AND loaded.user_id = revisions.user_id
        AND loaded.provider = revisions.provider
        AND loaded.date = revisions.date
    WHERE observed_at >= $start AND observed_at < $end AND hash(revisions.user_id) % $portions::UBIGINT = $portion::UBIGINT
)
GROUP BY {grain}, is_restatement
HAVING old IS DISTINCT FROM new;

DELETE FROM usage_revisions
WHERE observed_at >= $start AND observed_at < $end AND hash(user_id) % $portions::UBIGINT = $portion::UBIGINT;

INSERT INTO usage_revisions BY NAME
SELECT
    folded.* EXCLUDE (old, new),
    old.requests AS old_requests,
    new.requests AS new_requests,
    old.input AS old_input_tokens,
    new.input AS new_input_tokens,
    old.output AS old_output_tokens,
    new.output AS new_output_tokens,
    old.other AS old_other,
    new.other AS new_other
FROM folded;
