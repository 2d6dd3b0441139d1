"""The queries of the pages on the published snapshot, one file each."""

from functools import lru_cache
from pathlib import Path


@lru_cache
def statement(name: str) -> str:
    """The SQL of a file. Values enter it as parameters only."""
    return (Path(__file__).parent / f"{name}.sql").read_text()
