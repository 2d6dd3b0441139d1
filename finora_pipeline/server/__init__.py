"""What `finora up` runs: supervisor, Dagster's UI, health, metrics, documentation."""
