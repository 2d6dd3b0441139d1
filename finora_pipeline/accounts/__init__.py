"""Users, connections, logins, the record of refreshes and the audit trail, in a database of their own.

The only code that can decrypt a stored key. What talks to OpenAI belongs in `openai_admin`, what fetches for
many users in `ingest`, costs in `warehouse`. Nothing here imports Dagster.
"""
