-- cost_revisions: each change of a cost row that was seen after its day had been read first.
--
-- Grain: user, provider, date, project_id, line_item, observed_at.
-- Rules
--   1. A row is written when a day is read again and a line's amount or quantity is not what it was, or the line
--      has come or gone. Nothing is written for a day's first read.
--   2. daily_costs, taken back through the revisions after a moment, is what it was at that moment:
--      costs_as_of(moment).

-- [create]
CREATE TABLE cost_revisions (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    date            DATE NOT NULL,
    project_id      VARCHAR,
    line_item       VARCHAR,
    observed_at     TIMESTAMPTZ NOT NULL,
    old_amount_usd  DECIMAL(38, 18),
    new_amount_usd  DECIMAL(38, 18),
    old_quantity    DECIMAL(38, 18),
    new_quantity    DECIMAL(38, 18),
    was_there       BOOLEAN NOT NULL,
    is_there        BOOLEAN NOT NULL
);

-- [define]
COMMENT ON TABLE cost_revisions IS 'Each change of a cost that OpenAI restated: what it was, what it is, and when that was seen.';
COMMENT ON COLUMN cost_revisions.user_id IS 'Our user';
COMMENT ON COLUMN cost_revisions.provider IS 'openai';
COMMENT ON COLUMN cost_revisions.date IS 'UTC day of the charge';
COMMENT ON COLUMN cost_revisions.project_id IS 'OpenAI project';
COMMENT ON COLUMN cost_revisions.line_item IS 'OpenAI''s own text of the charge';
COMMENT ON COLUMN cost_revisions.observed_at IS 'When we read the new amount (UTC)';
COMMENT ON COLUMN cost_revisions.old_amount_usd IS 'USD before';
COMMENT ON COLUMN cost_revisions.new_amount_usd IS 'USD since';
COMMENT ON COLUMN cost_revisions.old_quantity IS 'Quantity before';
COMMENT ON COLUMN cost_revisions.new_quantity IS 'Quantity since';
COMMENT ON COLUMN cost_revisions.was_there IS 'False for a line that is new';
COMMENT ON COLUMN cost_revisions.is_there IS 'False for a line that has vanished';
