-- Columns of the dimensions that images, web searches and file searches are grouped by. Days loaded before keep
-- NULL until they are fetched again. All months are published again, so that their files have the same columns.

ALTER TABLE daily_usage ADD COLUMN image_size VARCHAR;
ALTER TABLE daily_usage ADD COLUMN image_source VARCHAR;
ALTER TABLE daily_usage ADD COLUMN context_level VARCHAR;
ALTER TABLE daily_usage ADD COLUMN vector_store_id VARCHAR;

ALTER TABLE usage_revisions ADD COLUMN image_size VARCHAR;
ALTER TABLE usage_revisions ADD COLUMN image_source VARCHAR;
ALTER TABLE usage_revisions ADD COLUMN context_level VARCHAR;
ALTER TABLE usage_revisions ADD COLUMN vector_store_id VARCHAR;

INSERT INTO pipeline.unpublished_months
SELECT DISTINCT 'daily_usage', date_trunc('month', date)::DATE
FROM daily_usage
EXCEPT
FROM pipeline.unpublished_months;
