"""An installation's dagster.yaml keeps its own values and gets what a new version ships."""

from pathlib import Path

import dagster as dg
import pytest
import yaml

from finora_pipeline.instance import config as instance_settings
from finora_pipeline.instance.config import InstanceFileError, drift, write_instance_file

EARLIER = """\
telemetry:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 4
    tag_concurrency_limits:
      - key: finora/plan
        limit: 1
        value: {applyLimitPerUniqueValue: true}
      - key: finora/batch
        limit: 5
"""


def read(home: Path) -> dict:
    return yaml.safe_load((home / "dagster.yaml").read_text())


def test_a_new_installation_gets_the_shipped_file_with_its_comments(tmp_path: Path):
    write_instance_file(tmp_path)
    assert (tmp_path / "dagster.yaml").read_text() == instance_settings.SHIPPED.read_text()
    assert drift(tmp_path) == []


def test_own_values_are_kept_and_new_ones_added(tmp_path: Path):
    (tmp_path / "dagster.yaml").write_text(EARLIER)
    write_instance_file(tmp_path)
    merged = read(tmp_path)
    assert merged["concurrency"]["runs"]["max_concurrent_runs"] == 4
    limits = {
        limit["key"]: limit["limit"] for limit in merged["concurrency"]["runs"]["tag_concurrency_limits"]
    }
    assert limits == {"finora/plan": 1, "finora/batch": 5, "finora/backfill": 1}
    assert merged["run_launcher"]["class"] == "WatchedRunLauncher"
    assert (tmp_path / "dagster.yaml.before-upgrade").read_text() == EARLIER
    assert "concurrency.runs.max_concurrent_runs: 4 (shipped: 6)" in drift(tmp_path)


def test_dagster_reads_the_merged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(EARLIER)
    write_instance_file(tmp_path)
    with dg.DagsterInstance.get() as instance:
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == 4


def test_another_storage_replaces_the_shipped_one_whole(tmp_path: Path):
    storage = {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
    write_instance_file(tmp_path)
    assert read(tmp_path)["storage"] == storage


def test_a_value_that_was_shipped_follows_the_next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_instance_file(tmp_path)
    installed = tmp_path / "dagster.yaml"
    installed.write_text(installed.read_text().replace("max_retries: 1", "max_retries: 3"))
    newer = tmp_path / "newer.yaml"
    shipped = instance_settings.SHIPPED.read_text()
    newer.write_text(shipped.replace("max_concurrent_runs: 6", "max_concurrent_runs: 9"))
    monkeypatch.setattr(instance_settings, "SHIPPED", newer)
    write_instance_file(tmp_path)
    assert read(tmp_path)["concurrency"]["runs"]["max_concurrent_runs"] == 9
    assert read(tmp_path)["run_retries"]["max_retries"] == 3
    assert drift(tmp_path) == ["run_retries.max_retries: 3 (shipped: 1)"]


def test_invalid_yaml_is_one_sentence(tmp_path: Path):
    (tmp_path / "dagster.yaml").write_text("storage: [")
    with pytest.raises(InstanceFileError, match="not valid YAML"):
        write_instance_file(tmp_path)
