"""The dashboard: pages on the published snapshot, and forms that write to the accounts.

`views/` holds the endpoints, `figures/` what they compute from a snapshot, `security/` what decides about
requests, `sql/`, `templates/` and `static/` what their names say. Nothing here imports Dagster or opens the
warehouse; keys are checked and stored by `accounts/`.
"""

DEFAULT_PORT = 8000
