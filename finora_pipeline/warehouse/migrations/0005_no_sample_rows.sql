-- Deletes the sample rows that earlier versions wrote for users without costs. Their months are written as Parquet
-- again; users who had only sample rows get their figures from their known days.
INSERT INTO pipeline.unpublished_months
SELECT DISTINCT table_name, date_trunc('month', date)::DATE
FROM (
    SELECT 'daily_costs' AS table_name, date FROM daily_costs WHERE is_sample
    UNION
    SELECT 'daily_usage', date FROM daily_usage WHERE is_sample
    UNION
    SELECT 'daily_model_costs', date FROM daily_model_costs WHERE is_sample
    UNION
    SELECT 'daily_member_costs', date FROM daily_member_costs WHERE is_sample
    UNION
    SELECT 'daily_key_costs', date FROM daily_key_costs WHERE is_sample
)
EXCEPT
FROM pipeline.unpublished_months;

INSERT INTO pipeline.stale_users
SELECT DISTINCT user_id, provider FROM user_metrics WHERE is_sample
EXCEPT
FROM pipeline.stale_users;

DELETE FROM daily_costs WHERE is_sample;

DELETE FROM daily_usage WHERE is_sample;

DELETE FROM daily_model_costs WHERE is_sample;

DELETE FROM daily_member_costs WHERE is_sample;

DELETE FROM daily_key_costs WHERE is_sample;

DELETE FROM user_metrics WHERE is_sample;
