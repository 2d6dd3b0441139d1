-- cost_revisions: each change of a cost row after its day was first fetched.
--
-- Grain: user, provider, date, project_id, line_item, observed_at.
-- Columns: amounts in USD, quantities in the quantity_unit of daily_costs.
-- Rules
--   1. A row is written when a day is fetched again and a charge has another amount or quantity, is new or has
--      vanished. The first fetch of a day writes none. Most rows are the accrual of a running day; restatements are
--      in the view of that name.
--   2. daily_costs with the revisions after a moment undone is daily_costs at that moment: costs_as_of(moment).
--   3. Rows of UTC days that ended more than {exact_days} days ago are folded: of the rows that a charge got on one
--      UTC day, accrual and restatement apart, one remains, from the first old to the last new values and with the
--      last observed_at. None remains where nothing has changed in the end.

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
COMMENT ON TABLE cost_revisions IS 'Each change of a cost after its day was first fetched, ordinary accrual included: amounts before and after. For what OpenAI restated, see restatements. Rows older than {exact_days} days are folded to one per charge and UTC day.';
COMMENT ON COLUMN cost_revisions.user_id IS 'User (tenant)';
COMMENT ON COLUMN cost_revisions.provider IS 'Provider: openai';
COMMENT ON COLUMN cost_revisions.date IS 'UTC day of the charge';
COMMENT ON COLUMN cost_revisions.project_id IS 'OpenAI project; NULL for a charge of the whole organization';
COMMENT ON COLUMN cost_revisions.line_item IS 'OpenAI''s text of the charge; NULL if OpenAI gave none';
COMMENT ON COLUMN cost_revisions.observed_at IS 'Fetch time of the new amount (UTC); of the last one of its UTC day once folded';
COMMENT ON COLUMN cost_revisions.old_amount_usd IS 'Old amount (USD); NULL for a new charge, or if OpenAI gave none';
COMMENT ON COLUMN cost_revisions.new_amount_usd IS 'New amount (USD); NULL for a vanished charge, or if OpenAI gave none';
COMMENT ON COLUMN cost_revisions.old_quantity IS 'Old quantity, in the quantity_unit of daily_costs; NULL as for old_amount_usd';
COMMENT ON COLUMN cost_revisions.new_quantity IS 'New quantity, in the quantity_unit of daily_costs; NULL as for new_amount_usd';
COMMENT ON COLUMN cost_revisions.was_there IS 'False for a new charge';
COMMENT ON COLUMN cost_revisions.is_there IS 'False for a charge that has vanished';

-- [fold]
-- Reads: the rows observed from $start until before $end, of the users of $portion of $portions; loaded_days.
-- Leaves: those rows folded (rule 3); folded.
CREATE OR REPLACE TEMP TABLE folded AS
SELECT
    user_id,
    provider,
    date,
    project_id,
    line_item,
    max(observed_at) AS observed_at,
    arg_min({'amount': old_amount_usd, 'quantity': old_quantity, 'there': was_there}, observed_at) AS old,
    arg_max({'amount': new_amount_usd, 'quantity': new_quantity, 'there': is_there}, observed_at) AS new
FROM (
    SELECT revisions.*, coalesce(observed_at > completed_at, false) AS is_restatement
    FROM cost_revisions AS revisions
    LEFT JOIN pipeline.loaded_days AS loaded
        ON loaded.endpoint = 'costs'
        AND loaded.user_id = revisions.user_id
        AND loaded.provider = revisions.provider
        AND loaded.date = revisions.date
    WHERE observed_at >= $start AND observed_at < $end AND hash(revisions.user_id) % $portions::UBIGINT = $portion::UBIGINT
)
GROUP BY user_id, provider, date, project_id, line_item, is_restatement
HAVING old IS DISTINCT FROM new;

DELETE FROM cost_revisions
WHERE observed_at >= $start AND observed_at < $end AND hash(user_id) % $portions::UBIGINT = $portion::UBIGINT;

INSERT INTO cost_revisions BY NAME
SELECT
    folded.* EXCLUDE (old, new),
    old.amount AS old_amount_usd,
    new.amount AS new_amount_usd,
    old.quantity AS old_quantity,
    new.quantity AS new_quantity,
    old.there AS was_there,
    new.there AS is_there
FROM folded;
