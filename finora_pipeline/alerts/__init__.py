"""Conditions that need a person, their record, and the notifications: each is sent once.

What Dagster alone knows (failed runs and checks) is added in `sensors/alerts.py`; nothing here imports
Dagster.
"""
