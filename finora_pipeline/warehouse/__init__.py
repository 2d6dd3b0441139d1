"""Raw pages, facts, metrics and the published snapshot, in DuckDB and Parquet.

Knows nothing of Dagster, of keys or of OpenAI's API beyond its pages.
"""
