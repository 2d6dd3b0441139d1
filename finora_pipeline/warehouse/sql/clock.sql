-- Moments that a clock running ahead has stamped: those after $end_of_present are in the future.

-- [moments]
-- Reads: $end_of_present.
-- Leaves: no moment in the future; days fetched in the future count as older than every fetch.
--
-- A day that has ended stays complete from now on, so that revisions observed in the future stay accrual.
UPDATE pipeline.loaded_days
SET first_fetched_at = least(first_fetched_at, $end_of_present),
    fetched_at = CASE WHEN fetched_at > $end_of_present THEN 'epoch'::TIMESTAMPTZ ELSE fetched_at END,
    completed_at = CASE
        WHEN completed_at <= $end_of_present THEN completed_at
        WHEN completed_at IS NOT NULL AND day_end(date) <= $end_of_present THEN $end_of_present
    END,
    checked_at = CASE WHEN fetched_at > $end_of_present THEN 'epoch'::TIMESTAMPTZ ELSE fetched_at END
WHERE fetched_at > $end_of_present OR checked_at > $end_of_present;

DELETE FROM pipeline.loaded_sets WHERE fetched_at > $end_of_present;

UPDATE daily_costs SET fetched_at = $end_of_present WHERE fetched_at > $end_of_present;

UPDATE daily_usage SET fetched_at = $end_of_present WHERE fetched_at > $end_of_present;

UPDATE pipeline.billed_costs SET fetched_at = $end_of_present WHERE fetched_at > $end_of_present;

UPDATE cost_revisions SET observed_at = $end_of_present WHERE observed_at > $end_of_present;

UPDATE usage_revisions SET observed_at = $end_of_present WHERE observed_at > $end_of_present;

-- A day earlier, so that a list fetched before this load but not loaded yet counts as newer.
UPDATE projects
SET first_seen_at = least(first_seen_at, $end_of_present - INTERVAL 1 DAY),
    last_seen_at = $end_of_present - INTERVAL 1 DAY
WHERE last_seen_at > $end_of_present;

UPDATE members
SET first_seen_at = least(first_seen_at, $end_of_present - INTERVAL 1 DAY),
    last_seen_at = $end_of_present - INTERVAL 1 DAY
WHERE last_seen_at > $end_of_present;

UPDATE api_keys
SET first_seen_at = least(first_seen_at, $end_of_present - INTERVAL 1 DAY),
    last_seen_at = $end_of_present - INTERVAL 1 DAY
WHERE last_seen_at > $end_of_present;
