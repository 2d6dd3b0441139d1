"""What `finora up` runs: the supervisor of its processes, health and metrics, Dagster's UI behind a guard."""
