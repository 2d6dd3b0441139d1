"""Run monitoring ends every run whose process died, of any job and launcher."""

import subprocess
import sys
from collections.abc import Iterator
from logging import getLogger
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from finora_pipeline.cli import runs
from finora_pipeline.instance.home import prepare_instance
from tests.conftest import Installation


@pytest.fixture
def installation(start_openai, install) -> Installation:
    return install(start_openai(days=1))


@pytest.fixture
def instance(installation: Installation) -> Iterator[dg.DagsterInstance]:
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        yield instance


def started(instance: dg.DagsterInstance, job: dg.JobDefinition) -> str:
    run = instance.create_run_for_job(job)
    event = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job.name)
    instance.report_dagster_event(event, run.run_id)
    return run.run_id


def monitored(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    """Return the run's state after the daemon's check."""
    record = instance.get_run_record_by_id(run_id)
    assert record is not None
    # Only launchers that resume runs need a workspace.
    nowhere: Any = None
    monitor_started_run(instance, nowhere, record, getLogger(__name__))
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_whose_process_died_is_ended(installation: Installation, instance, monkeypatch):
    job = runs.build_defs(installation.settings).resolve_job_def("load_user_history")
    living, dead = started(instance, job), started(instance, job)
    # A run just started may not hold its lock yet.
    assert monitored(instance, dead) is dg.DagsterRunStatus.STARTED

    monkeypatch.setattr(instance.run_launcher, "_start_seconds", 0)
    program = f"""
from pathlib import Path
from finora_pipeline.data_folder.run_locks import hold
hold(Path("{installation.settings.home}"), "{living}")
print("held", flush=True)
input()"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert monitored(instance, living) is dg.DagsterRunStatus.STARTED
        assert monitored(instance, dead) is dg.DagsterRunStatus.FAILURE
        process.kill()
    assert monitored(instance, living) is dg.DagsterRunStatus.FAILURE
