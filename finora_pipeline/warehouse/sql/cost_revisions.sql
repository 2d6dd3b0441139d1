-- cost_revisions: each change of a cost row after its day was first fetched.
--
-- Grain: user, provider, date, project_id, line_item, observed_at.
-- Columns: amounts in USD, quantities in the quantity_unit of daily_costs.
-- Rules
--   1. A row is written when a day is fetched again and a charge has another amount or quantity, is new or has
--      vanished. The first fetch of a day writes none.
--   2. daily_costs with the revisions after a moment undone is daily_costs at that moment: costs_as_of(moment).

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
COMMENT ON TABLE cost_revisions IS 'Each change of a cost that OpenAI restated: amounts before and after, and when we fetched them.';
COMMENT ON COLUMN cost_revisions.user_id IS 'User (tenant)';
COMMENT ON COLUMN cost_revisions.provider IS 'Provider: openai';
COMMENT ON COLUMN cost_revisions.date IS 'UTC day of the charge';
COMMENT ON COLUMN cost_revisions.project_id IS 'OpenAI project';
COMMENT ON COLUMN cost_revisions.line_item IS 'OpenAI''s text of the charge';
COMMENT ON COLUMN cost_revisions.observed_at IS 'Fetch time of the new amount (UTC)';
COMMENT ON COLUMN cost_revisions.old_amount_usd IS 'Old amount (USD)';
COMMENT ON COLUMN cost_revisions.new_amount_usd IS 'New amount (USD)';
COMMENT ON COLUMN cost_revisions.old_quantity IS 'Old quantity';
COMMENT ON COLUMN cost_revisions.new_quantity IS 'New quantity';
COMMENT ON COLUMN cost_revisions.was_there IS 'False for a new charge';
COMMENT ON COLUMN cost_revisions.is_there IS 'False for a charge that has vanished';
