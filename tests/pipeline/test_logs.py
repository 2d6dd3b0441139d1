"""A run's logs for machines: JSON lines with run and user, and requests by outcome."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from finora_pipeline.ingest import run_log as logs
from finora_pipeline.ingest.run_log import delete_user_lines, run_log
from finora_pipeline.openai_simulator import Fault, FaultKind, KeyState


def test_each_fetch_is_a_log_line_with_run_and_user(start_openai, install):
    openai = start_openai(organizations=2, days=3, services=False)
    installation = install(openai)
    installation.connect(plan="trial")
    openai.simulator.set_key_state(openai.organizations[1].admin_key, KeyState.REVOKED)
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.RATE_LIMIT, times=1))
    result = installation.run()

    text = (installation.settings.home / "logs" / "runs.log").read_text()
    assert "sk-admin" not in text
    lines = {line["user_id"]: line for line in map(json.loads, text.splitlines())}
    assert {line["run_id"] for line in lines.values()} == {result.run_id}
    assert lines["user-0"]["outcome"] == "complete"
    assert lines["user-0"]["pages"] > 0
    assert lines["user-1"]["outcome"] == "invalid_key"
    assert lines["user-0"]["plan"] == "trial"

    requests = installation.accounts.refreshes.requests_since(datetime.now(UTC) - timedelta(hours=1))
    assert requests["429"] == 1
    assert requests["401"] == 1
    assert requests["200"] > 1


def test_a_long_log_is_rotated_when_a_run_begins(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "MOST_BYTES", 10)
    for _ in range(logs.KEPT + 3):
        with run_log(tmp_path, "run"):
            (tmp_path / "logs" / "runs.log").write_text("x" * 20)
    kept = sorted(path.name for path in (tmp_path / "logs").glob("runs.log*"))
    assert kept == ["runs.log", *(f"runs.log.{number}" for number in range(1, logs.KEPT + 1))]


def test_a_purged_user_is_in_no_log_file(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    lines = [
        '{"user_id": "acme", "event": "user read"}',
        "The key of acme was replaced.",
        "run tags: finora/user=acme",
        "acme",
        '{"user_id": "acme-2"}',
        "x-acme my.acme acme.eu acme@example.com",
        "nothing of the kind",
    ]
    for name in ("runs.log", "runs.log.1", "code-server.log", "daemon.log"):
        (folder / name).write_text("\n".join(lines) + "\n")
    with (folder / "daemon.log").open("a") as written:
        assert delete_user_lines(tmp_path, "acme") == 16
        written.write("after\n")
    assert (folder / "runs.log.1").read_text().splitlines() == lines[4:]
    assert (folder / "daemon.log").read_text().splitlines() == [*lines[4:], "after"]
    assert delete_user_lines(tmp_path / "elsewhere", "acme") == 0
