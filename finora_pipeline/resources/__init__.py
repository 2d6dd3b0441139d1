"""Dagster resources around the accounts, OpenAI's API and the warehouse: configuration, nothing else."""
