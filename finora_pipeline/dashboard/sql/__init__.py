"""The queries of the pages on the published snapshot, one file each."""

from functools import lru_cache
from pathlib import Path

from finora_pipeline.warehouse.kpis import KPI_TEXTS
from finora_pipeline.warehouse.sql import fill


@lru_cache
def statement(name: str) -> str:
    """The SQL of a file with the definitions of the key figures. Values enter it as parameters only."""
    return fill((Path(__file__).parent / f"{name}.sql").read_text(), KPI_TEXTS)
