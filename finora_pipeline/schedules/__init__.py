"""Schedules: one per plan, and the nightly upkeep. The jobs they run are defined in `jobs.py`."""
