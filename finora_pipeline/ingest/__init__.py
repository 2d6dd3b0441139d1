"""The refresh of many users: selection of connections and days, fetch, landing and publishing.

Requests to OpenAI belong in `openai_admin`, files and tables in `warehouse`. Nothing here imports Dagster.
"""
