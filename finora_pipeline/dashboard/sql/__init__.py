"""The questions that the pages ask the published copy, one file each."""

from functools import lru_cache
from pathlib import Path


@lru_cache
def statement(name: str) -> str:
    """The SQL of a file. Values reach it as parameters only."""
    return (Path(__file__).parent / f"{name}.sql").read_text()
