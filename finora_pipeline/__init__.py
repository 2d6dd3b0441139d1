"""OpenAI costs of organizations: exact, on time, in DuckDB, orchestrated by Dagster.

Only `connect`, `read` and `scan` are public; every other module may change between versions.

import finora_pipeline
finora_pipeline.read("daily_costs", user_id="acme", since="2026-11-01")   # a pandas DataFrame
finora_pipeline.scan("daily_costs", columns=["date", "amount_usd"])      # a stream of Arrow batches
finora_pipeline.connect()                                                # a read-only DuckDB connection
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finora_pipeline.reading import connect, read, scan

__all__ = ["connect", "read", "scan"]


def __getattr__(name: str) -> Any:
    # DuckDB and Arrow take a good part of a second to import, so only readers import them.
    if name in __all__:
        from finora_pipeline import reading

        return getattr(reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
