-- What a clock that once ran ahead has stamped: $end_of_present is the moment after which all is of the
-- future.

-- [moments]
UPDATE pipeline.loaded_days
SET first_fetched_at = least(first_fetched_at, $end_of_present), fetched_at = 'epoch'::TIMESTAMPTZ
WHERE fetched_at > $end_of_present;

DELETE FROM pipeline.loaded_sets WHERE fetched_at > $end_of_present;

UPDATE daily_costs SET fetched_at = $end_of_present WHERE fetched_at > $end_of_present;

UPDATE daily_usage SET fetched_at = $end_of_present WHERE fetched_at > $end_of_present;

UPDATE pipeline.billed_costs SET fetched_at = $end_of_present WHERE fetched_at > $end_of_present;

UPDATE cost_revisions SET observed_at = $end_of_present WHERE observed_at > $end_of_present;

UPDATE usage_revisions SET observed_at = $end_of_present WHERE observed_at > $end_of_present;

-- A list that was read since is the newer one, though it may wait to be loaded for a while.
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
