"""Memory and threads that DuckDB may use in one process: from settings, else by machine.

A container's own limits count (cgroup v2 and v1); its /proc and number of CPUs are the host's.
"""

import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from finora_pipeline.settings import SMALLEST_MEMORY_LIMIT, Settings

# One part of four; runs, the dashboard and the file cache share the rest.
PART_OF_MEMORY = 4
MOST_MEMORY_BYTES = 4_000_000_000
# More threads gain little for batches of this size, and each has buffers that cannot be spilled.
MOST_THREADS = 4
BYTES_A_THREAD = 128_000_000
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class DuckDBLimits:
    """Memory (bytes) and threads of DuckDB in one process."""

    memory_bytes: int
    threads: int

    @property
    def config(self) -> dict[str, str | bool | int | float | list[str]]:
        """Options of `duckdb.connect`."""
        return {"memory_limit": f"{self.memory_bytes}B", "threads": self.threads}


def duckdb_limits(settings: Settings | None = None) -> DuckDBLimits:
    """The limits in force, from FINORA_MEMORY_LIMIT and FINORA_THREADS or by machine.

    By machine: a quarter of its memory up to 4 GB, and its processors up to four. Raises `SettingsError`.
    """
    chosen = settings or Settings.from_environment()
    memory = chosen.memory_limit_bytes or max(
        SMALLEST_MEMORY_LIMIT, min(machine_memory_bytes() // PART_OF_MEMORY, MOST_MEMORY_BYTES)
    )
    threads = chosen.threads or max(1, min(machine_cpus(), MOST_THREADS, memory // BYTES_A_THREAD))
    return DuckDBLimits(memory, threads)


def release_arrow_memory() -> None:
    """Gives the memory that Arrow keeps for its next tables back, for DuckDB to use."""
    pa.default_memory_pool().release_unused()


@lru_cache(maxsize=1)
def machine_memory_bytes() -> int:
    """Bytes of memory that this process may use at most."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_number(folder / "memory.max") for folder in _groups()]
    limits.append(_number(_CGROUP / "memory" / "memory.limit_in_bytes"))
    return min([physical, *(limit for limit in limits if limit)])


@lru_cache(maxsize=1)
def machine_cpus() -> int:
    """Processors that this process may use at most."""
    # macOS has no affinity.
    usable = os.cpu_count() or 1 if sys.platform == "darwin" else len(os.sched_getaffinity(0))
    quotas = [quota for folder in _groups() if (quota := _quota(folder / "cpu.max"))]
    return max(1, min([usable, *quotas]))


def _groups() -> list[Path]:
    """The control groups of this process, from its own up to the root: each may have a limit."""
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:
        return [_CGROUP]
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = _CGROUP / own
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(_CGROUP))]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        # The file is missing, or says "max".
        return None


def _quota(file: Path) -> int | None:
    try:
        quota, period = file.read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None
