"""Conditions that need a person, and the messages about them: each is sent once. Knows nothing of Dagster."""
