"""What the pages show, computed from a user's snapshot: tiles, charts, breakdowns, formats.

Exact sums come from `sql/`; this folder picks, divides and formats them. It knows nothing of requests, logins
or templates.
"""
