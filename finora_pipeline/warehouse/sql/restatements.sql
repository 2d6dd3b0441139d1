-- restatements: what OpenAI changed after a day was complete.
--
-- Grain: user, provider, date, project_id, line_item, observed_at, as in cost_revisions.
-- Columns: amounts in USD, exact.
-- Rules
--   1. The baseline of a day is its first fetch at or after its end (pipeline.loaded_days, completed_at). What
--      changed up to it is ordinary accrual; each row of cost_revisions observed later is a restatement.
--   2. A charge that was not there, or has vanished, has the amount 0 on that side. An unknown amount is NULL and
--      adds nothing to change_usd, as it adds nothing to a sum of daily_costs. So the changes of a day add up to its
--      sum now minus its sum at the baseline.
--   3. change_usd is 0 where only the quantity changed.
--   4. `stage`: settling before the day is final (reconciliation.sql, rule 4), closed_month once its month is closed
--      (rule 5), late in between; all by the UTC day of observed_at.

-- [define]
CREATE OR REPLACE VIEW restatements AS
SELECT
    user_id,
    provider,
    date,
    project_id,
    line_item,
    observed_at,
    CASE
        WHEN NOT is_final(date, observed_on) THEN 'settling'
        WHEN month_state(date, observed_on) = 'closed' THEN 'closed_month'
        ELSE 'late'
    END AS stage,
    CASE WHEN was_there THEN old_amount_usd ELSE 0 END AS old_amount_usd,
    CASE WHEN is_there THEN new_amount_usd ELSE 0 END AS new_amount_usd,
    (coalesce(new_amount_usd, 0) - coalesce(old_amount_usd, 0))::DECIMAL(38, 18) AS change_usd
FROM (
    SELECT revisions.*, (observed_at AT TIME ZONE 'UTC')::DATE AS observed_on
    FROM cost_revisions AS revisions
    JOIN pipeline.loaded_days AS loaded
        ON loaded.endpoint = 'costs'
        AND loaded.user_id = revisions.user_id
        AND loaded.provider = revisions.provider
        AND loaded.date = revisions.date
    WHERE observed_at > completed_at
);
COMMENT ON VIEW restatements IS 'What OpenAI changed after a day was complete: the rows of cost_revisions that are no ordinary accrual.';
COMMENT ON COLUMN restatements.user_id IS 'User (tenant)';
COMMENT ON COLUMN restatements.provider IS 'Provider: openai';
COMMENT ON COLUMN restatements.date IS 'UTC day of the charge';
COMMENT ON COLUMN restatements.project_id IS 'OpenAI project';
COMMENT ON COLUMN restatements.line_item IS 'OpenAI''s text of the charge';
COMMENT ON COLUMN restatements.observed_at IS 'Fetch time of the new amount (UTC)';
COMMENT ON COLUMN restatements.stage IS 'settling: the day was not final yet; closed_month: its month was closed; late: in between';
COMMENT ON COLUMN restatements.old_amount_usd IS 'Old amount (USD): 0 for a new charge, NULL if unknown';
COMMENT ON COLUMN restatements.new_amount_usd IS 'New amount (USD): 0 for a vanished charge, NULL if unknown';
COMMENT ON COLUMN restatements.change_usd IS 'New minus old amount (USD), where an unknown amount adds nothing; 0 if only the quantity changed';
