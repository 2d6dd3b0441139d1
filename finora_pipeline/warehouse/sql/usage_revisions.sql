-- usage_revisions: each change of a usage row that was seen after its day had been read first.
--
-- Grain: user, provider, date, service, project_id, member_id, api_key_id, model, batch, service_tier,
-- observed_at. Rules as for cost_revisions.

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
    new_other          BIGINT
);

-- [define]
COMMENT ON TABLE usage_revisions IS 'Each change of use that OpenAI restated: what it was, what it is, and when that was seen.';
COMMENT ON COLUMN usage_revisions.user_id IS 'Our user';
COMMENT ON COLUMN usage_revisions.provider IS 'openai';
COMMENT ON COLUMN usage_revisions.date IS 'UTC day of the use';
COMMENT ON COLUMN usage_revisions.service IS 'Usage endpoint';
COMMENT ON COLUMN usage_revisions.project_id IS 'OpenAI project';
COMMENT ON COLUMN usage_revisions.member_id IS 'OpenAI organization member';
COMMENT ON COLUMN usage_revisions.api_key_id IS 'OpenAI API key';
COMMENT ON COLUMN usage_revisions.model IS 'Model as the usage endpoint names it';
COMMENT ON COLUMN usage_revisions.batch IS 'Whether through the Batch API';
COMMENT ON COLUMN usage_revisions.service_tier IS 'Service tier';
COMMENT ON COLUMN usage_revisions.observed_at IS 'When we read the new counts (UTC)';
COMMENT ON COLUMN usage_revisions.old_requests IS 'Requests before; all old counts are NULL for a new row';
COMMENT ON COLUMN usage_revisions.new_requests IS 'Requests since; all new counts are NULL for a vanished row';
COMMENT ON COLUMN usage_revisions.old_input_tokens IS 'Tokens in before';
COMMENT ON COLUMN usage_revisions.new_input_tokens IS 'Tokens in since';
COMMENT ON COLUMN usage_revisions.old_output_tokens IS 'Tokens out before';
COMMENT ON COLUMN usage_revisions.new_output_tokens IS 'Tokens out since';
COMMENT ON COLUMN usage_revisions.old_other IS 'Calls, images, seconds, characters, bytes or sessions before';
COMMENT ON COLUMN usage_revisions.new_other IS 'Calls, images, seconds, characters, bytes or sessions since';
