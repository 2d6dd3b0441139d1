-- When a day was complete and last checked, and up to when revisions are folded.

ALTER TABLE pipeline.loaded_days ADD COLUMN completed_at TIMESTAMPTZ;

ALTER TABLE pipeline.loaded_days ADD COLUMN checked_at TIMESTAMPTZ;

CREATE TABLE pipeline.folded_revisions (table_name VARCHAR NOT NULL, observed_before TIMESTAMPTZ NOT NULL);
