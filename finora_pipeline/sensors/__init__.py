"""Sensors: runs for changed connections, and the alerts. What is a condition belongs in `alerts`."""
