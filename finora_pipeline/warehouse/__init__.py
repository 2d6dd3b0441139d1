"""The warehouse: raw pages, facts, metrics and the published copy, in DuckDB and Parquet. Knows nothing of
Dagster and nothing of keys."""
