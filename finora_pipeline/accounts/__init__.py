"""Users, plans and connections; the only code that can decrypt a key. Knows nothing of Dagster."""
