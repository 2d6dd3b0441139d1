"""DAGSTER_HOME: its preparation for this process, and a check that its databases can be read."""

import fcntl
import os
from pathlib import Path

import dagster as dg

from finora_pipeline.data_folder.disk import runs_store, storage_errors
from finora_pipeline.data_folder.private_files import open_lock
from finora_pipeline.instance.config import write_instance_file
from finora_pipeline.settings import Settings

# The content of the project's `workspace.yaml`, for installations without a checkout. Schedules and sensors
# keep their state under the location's name.
LOCATION = "finora"
WORKSPACE = f"""\
load_from:
  - python_module:
      module_name: finora_pipeline.definitions
      location_name: {LOCATION}
"""


# Dagster stores the events of a run's partitions in batches only where this is set.
EVENT_BATCHES = {"DAGSTER_EVENT_BATCH_SIZE": "1000"}


def prepare_instance(settings: Settings) -> None:
    """Create DAGSTER_HOME with an up-to-date `dagster.yaml`, and set it for this process.

    Raises `InstanceFileError`.
    """
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    write_instance_file(settings.dagster_home)
    os.environ |= {"DAGSTER_HOME": str(settings.dagster_home)} | EVENT_BATCHES
    _create_databases(settings.dagster_home)


def check_record(settings: Settings) -> None:
    """Raise `StorageError` if one of Dagster's databases cannot be read.

    Without this check its processes would only exit and be started again.
    """
    with storage_errors(runs_store(settings.dagster_home)), dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
        instance.all_asset_keys()
        instance.all_instigator_state()


def _create_databases(dagster_home: Path) -> None:
    """Create Dagster's databases under a lock: two processes must not do so at the same time."""
    created = dagster_home / ".created"
    if created.exists():
        return
    descriptor = open_lock(dagster_home / ".create.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with dg.DagsterInstance.get() as instance:
            instance.get_runs_count()
        created.touch()
    finally:
        os.close(descriptor)
