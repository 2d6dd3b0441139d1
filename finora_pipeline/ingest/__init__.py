"""A refresh of many users: which connections, which days, their pages landed. Knows nothing of Dagster."""
