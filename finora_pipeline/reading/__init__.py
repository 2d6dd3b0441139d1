"""Reading the published snapshot: from notebooks, the command line and any other SQL.

Nothing here writes, and nothing here needs the accounts or Dagster.
"""

from finora_pipeline.reading.connection import NothingPublished, connect
from finora_pipeline.reading.tables import ResultTooLarge, read, scan

__all__ = ["NothingPublished", "ResultTooLarge", "connect", "read", "scan"]
