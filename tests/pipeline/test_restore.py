"""Back-up and restore into an empty data folder, as docs/operations.md describes."""

import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.rebuild import rebuild
from tests.conftest import Installation


def test_a_restored_installation_keeps_refreshing(start_openai, install, tmp_path: Path, monkeypatch):
    openai = start_openai(days=6, services=False)
    installation: Installation = install(openai)
    installation.connect(plan="growth")
    installation.refresh()
    openai.simulator.frozen_now += timedelta(hours=2)
    installation.refresh()
    revisions = installation.sql("SELECT count(*) FROM cost_revisions")

    home, backup = installation.settings.home, tmp_path / "backup"
    backup.mkdir()
    with sqlite3.connect(home / "accounts.sqlite") as accounts:
        accounts.execute("VACUUM INTO ?", [str(backup / "accounts.sqlite")])
    accounts.close()
    for folder in ("raw", "published"):
        shutil.copytree(home / folder, backup / folder)
    shutil.copy(home / "master.key", backup)

    fresh = tmp_path / "fresh"
    (fresh / "warehouse").mkdir(parents=True)
    for part in ("accounts.sqlite", "master.key"):
        shutil.copy(backup / part, fresh)
    shutil.copytree(backup / "raw", fresh / "raw")
    shutil.copy(backup / "published" / "finora.duckdb", fresh / "warehouse" / "warehouse.duckdb")
    monkeypatch.setenv("FINORA_HOME", str(fresh))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    restored = Installation(fresh, openai)

    assert rebuild(Warehouse(fresh)).differences == []
    openai.simulator.frozen_now += timedelta(hours=2)
    result = restored.refresh()
    assert result.failed_users == []
    restored.assert_exact("user-0", 0, restored.history(90))
    assert restored.sql("SELECT count(*) FROM cost_revisions")[0][0] > revisions[0][0] > 0
