"""The demo, as `make run ARGS=--once` starts it, on an empty and on its own data folder."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from finora_pipeline.cli import main

ROOT = Path(__file__).parents[2]


def run_demo(home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "OPENAI_BASE_URL")}
    environment |= {"FINORA_HOME": str(home)}
    command = [sys.executable, "-m", "finora_pipeline", "demo", "--once"]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def published(home: Path) -> list[tuple[object, ...]]:
    with duckdb.connect(home / "published" / "finora.duckdb", read_only=True) as connection:
        return connection.execute(
            "SELECT user_id, count(DISTINCT date) FROM daily_costs GROUP BY user_id ORDER BY user_id"
        ).fetchall()


def test_the_demo_runs_from_nothing_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    first = run_demo(home)
    assert first.returncode == 0, first.stderr
    for words in ("Connected demo-growth", "users", "days", "total", "$", "per 1k tokens", "finora sql"):
        assert words in first.stdout
    expected = [("demo-enterprise", 90), ("demo-growth", 90), ("demo-scale", 90), ("demo-trial", 7)]
    assert published(home) == expected

    second = run_demo(home)
    assert second.returncode == 0, second.stderr
    assert "already connected" in second.stdout
    assert published(home) == expected

    # The demo's folder never connects to a real organization.
    key = "sk-admin-thiskeyisknowntonobody0123456789"
    monkeypatch.setenv("OPENAI_ADMIN_KEY", key)
    refused = CliRunner().invoke(main, ["demo", "--once", "--real"])
    assert refused.exit_code == 1
    assert "Set FINORA_HOME to another folder" in refused.stderr
    assert key not in refused.output


def test_the_demo_refuses_a_folder_with_real_connections(install, start_openai):
    installation = install(start_openai(days=2))
    installation.connect()
    refused = CliRunner().invoke(main, ["demo", "--once"])
    assert refused.exit_code == 1
    assert "holds real connections. Set FINORA_HOME to another folder for the demo" in " ".join(
        refused.stderr.split()
    )
    assert [c.user_id for c in installation.accounts.connections.all()] == ["user-0"]


def test_the_query_in_the_summary_runs(tmp_path: Path):
    from finora_pipeline.cli.demo.run import QUESTION

    assert QUESTION.startswith("SELECT model")
    with duckdb.connect(tmp_path / "x.duckdb") as connection:
        connection.execute(
            "CREATE TABLE daily_model_costs AS "
            "SELECT 'm' AS model, 1.5 AS amount_usd, 2 AS input_tokens, 3 AS output_tokens, "
            "false AS is_sample"
        )
        assert len(connection.execute(QUESTION).fetchall()) == 1
