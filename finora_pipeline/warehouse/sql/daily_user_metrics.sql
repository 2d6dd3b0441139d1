-- daily_user_metrics: the figures of user_metrics as they were published on each day.
--
-- Grain: user, provider, as_of_date, metric, period.
-- Rules
--   1. user_metrics.sql (refresh) writes the rows of the day on which a user's figures are computed; a later
--      computation on that day replaces them. Rows of earlier days stay as they were published.
--   2. A day without rows has the figures of the last day with rows: nothing had changed since.

-- [create]
CREATE TABLE daily_user_metrics (
    user_id       VARCHAR NOT NULL,
    provider      VARCHAR NOT NULL,
    as_of_date    DATE NOT NULL,
    metric        VARCHAR NOT NULL,
    period        VARCHAR NOT NULL,
    through_date  DATE NOT NULL,
    known_days    INTEGER NOT NULL,
    unit          VARCHAR NOT NULL,
    value         DECIMAL(38, 18)
);

-- [define]
COMMENT ON TABLE daily_user_metrics IS 'History of user_metrics: each figure as published on a day.';
COMMENT ON COLUMN daily_user_metrics.user_id IS 'User (tenant)';
COMMENT ON COLUMN daily_user_metrics.provider IS 'Provider: openai';
COMMENT ON COLUMN daily_user_metrics.as_of_date IS 'UTC day on which the figure was published; a day without rows has the figures of the last day with rows';
COMMENT ON COLUMN daily_user_metrics.metric IS 'As in user_metrics';
COMMENT ON COLUMN daily_user_metrics.period IS '7d, 30d, 90d or month';
COMMENT ON COLUMN daily_user_metrics.through_date IS 'Last complete UTC day at that time, with which the period ends';
COMMENT ON COLUMN daily_user_metrics.known_days IS 'Days of the period that were known then';
COMMENT ON COLUMN daily_user_metrics.unit IS 'As in user_metrics';
COMMENT ON COLUMN daily_user_metrics.value IS 'Figure as published then; NULL if unknown, or without a denominator';
