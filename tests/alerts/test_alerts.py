"""Alerts: one notification when each opens and one when it is over, by real SMTP and HTTP."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from sqlalchemy import update

from finora_pipeline.accounts.database import connections
from finora_pipeline.accounts.model import Status
from finora_pipeline.alerts.conditions import Condition, of_connections
from finora_pipeline.alerts.notify import message_of
from finora_pipeline.alerts.store import Alert, mark_notified, open_alerts, sync_alerts
from finora_pipeline.assets.partitions import USERS_NAME
from finora_pipeline.cli import main
from finora_pipeline.definitions import build_defs
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.jobs import PLAN_TAG, day_range_tags, range_tags
from finora_pipeline.openai_simulator import KeyState
from finora_pipeline.plans import PLANS
from finora_pipeline.sensors import alerts as alarms
from finora_pipeline.sensors.alerts import failed_checks, failed_runs
from tests.conftest import Installation

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
REVOKED = Condition("attention/acme", "The OpenAI connection of acme needs attention: the key was deleted.")


class Sink:
    """Messages that a server received."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.is_broken = False
        self.address = ""


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def webhook() -> Iterator[Sink]:
    sink = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not sink.is_broken:
                message = json.loads(body)
                sink.messages.append(f"{message['title']}\n{message['message']}")
            self.send_response(500 if sink.is_broken else 200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing on the terminal."""

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as port:
        sink.address = f"json://someone:a-password@127.0.0.1:{port}/hook"
        yield sink


@pytest.fixture
def mail() -> Iterator[Sink]:
    sink = Sink()

    class Handler(socketserver.StreamRequestHandler):
        """Enough of SMTP to receive a message."""

        def handle(self) -> None:
            self.wfile.write(b"220 sink\r\n")
            while line := self.rfile.readline():
                match line[:4].upper():
                    case b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        lines = iter(self.rfile.readline, b".\r\n")
                        sink.messages.append(b"".join(lines).decode())
                        self.wfile.write(b"250 taken\r\n")
                    case b"QUIT":
                        self.wfile.write(b"221 bye\r\n")
                        return
                    case _:
                        self.wfile.write(b"250 ok\r\n")

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        sink.address = f"mailto://127.0.0.1:{port}?from=finora@example.com&to=ops@example.com"
        yield sink


def evaluate_alerts(installation: Installation) -> str:
    """Evaluate the alerts sensor now; return its skip message."""
    prepare_instance(installation.settings)
    definitions = build_defs(installation.settings)
    repository = definitions.get_repository_def()
    with (
        dg.DagsterInstance.get() as instance,
        dg.build_sensor_context(
            instance=instance,
            repository_def=repository,
            resources={name: (definitions.resources or {})[name] for name in ("accounts", "warehouse")},
        ) as context,
    ):
        result = repository.get_sensor_def("alerts").evaluate_tick(context)
    assert result.run_requests == []
    return result.skip_message or ""


@pytest.fixture
def installation(start_openai, install) -> Installation:
    installation = install(start_openai(days=2, services=False))
    installation.connect(plan="growth")
    installation.run()
    return installation


def test_a_revoked_key_notifies_once_and_once_when_it_works_again(
    installation: Installation, webhook: Sink, mail: Sink, monkeypatch
):
    monkeypatch.setenv("FINORA_NOTIFY", f"{webhook.address}  {mail.address}")
    assert evaluate_alerts(installation) == "Nothing new; 0 open."
    simulator, key = installation.openai.simulator, installation.openai.organizations[0].admin_key
    simulator.set_key_state(key, KeyState.REVOKED)
    installation.run()
    assert "sent by: json, mailto" in evaluate_alerts(installation)
    assert evaluate_alerts(installation) == "Nothing new; 1 open."
    (message,) = webhook.messages
    assert message.startswith("finora: 1 new\n• The OpenAI connection of user-0 needs attention: ")
    assert "user-0 needs attention" in mail.messages[0].replace("=\n", "").replace("\r\n", " ")
    shown = CliRunner().invoke(main, ["alarms", "--json"])
    assert [alarm["key"] for alarm in json.loads(shown.stdout)] == ["attention/user-0"]

    simulator.set_key_state(key, KeyState.ACTIVE)
    installation.run(users=["user-0"])
    assert "1 over" in evaluate_alerts(installation)
    assert "✓ Over since" in webhook.messages[1]
    assert evaluate_alerts(installation) == "Nothing new; 0 open."
    assert len(webhook.messages) == len(mail.messages) == 2
    everything = "".join(webhook.messages + mail.messages)
    assert key not in everything
    assert "sk-admin" not in everything


def test_an_unsent_message_is_sent_by_the_next_check(installation: Installation, webhook: Sink, monkeypatch):
    monkeypatch.setenv("FINORA_NOTIFY", webhook.address)
    sync_alerts(installation.accounts.database, [REVOKED], NOW)
    webhook.is_broken = True
    output = evaluate_with([REVOKED], installation, monkeypatch)
    assert "No notification reached 1 of the addresses in FINORA_NOTIFY (json)" in output
    assert "a-password" not in output
    assert webhook.messages == []
    webhook.is_broken = False
    assert "finora: 1 new" in evaluate_with([REVOKED], installation, monkeypatch)
    assert len(webhook.messages) == 1


def test_a_bad_address_does_not_resend_to_the_others(
    installation: Installation, webhook: Sink, mail: Sink, monkeypatch
):
    monkeypatch.setenv("FINORA_NOTIFY", f"{webhook.address} {mail.address}")
    webhook.is_broken = True
    output = evaluate_with([REVOKED], installation, monkeypatch)
    assert "finora: 1 new (sent by: mailto)" in output
    assert "No notification reached 1 of the addresses in FINORA_NOTIFY (json)" in output
    assert "a-password" not in output
    assert evaluate_alerts(installation) == "Nothing new; 1 open."
    assert len(mail.messages) == 1
    assert CliRunner().invoke(main, ["alarms", "--test"]).exit_code == 1


def evaluate_with(conditions: list[Condition], installation: Installation, monkeypatch) -> str:
    monkeypatch.setattr(alarms, "of_connections", lambda *_: conditions)
    return evaluate_alerts(installation)


def test_an_unusable_address_is_reported_without_its_password(monkeypatch):
    monkeypatch.setenv("FINORA_NOTIFY", "nosuch://user:secret-password@host")
    result = CliRunner().invoke(main, ["alarms", "--test"])
    assert result.exit_code == 1
    assert "(nosuch)" in result.output
    assert "secret-password" not in result.output
    # An address without a scheme is a secret as a whole.
    monkeypatch.setenv("FINORA_NOTIFY", "hooks.example.com/services/secret-token mail:secret-password@host")
    result = CliRunner().invoke(main, ["alarms", "--test"])
    assert result.exit_code == 1
    assert "(one without ://, one without ://)" in result.output
    assert "secret" not in result.output
    monkeypatch.delenv("FINORA_NOTIFY")
    assert "FINORA_NOTIFY is empty" in CliRunner().invoke(main, ["alarms", "--test"]).output


def test_a_test_message_is_sent(webhook: Sink, monkeypatch):
    monkeypatch.setenv("FINORA_NOTIFY", webhook.address)
    assert CliRunner().invoke(main, ["alarms", "--test"]).exit_code == 0
    assert webhook.messages == ["finora: a test\nThis is what an alert looks like."]


def test_an_alert_over_before_any_notification_is_dropped(installation: Installation):
    database = installation.accounts.database
    assert [alarm.key for alarm in sync_alerts(database, [REVOKED], NOW)] == [REVOKED.key]
    assert sync_alerts(database, [], NOW + timedelta(minutes=1)) == []
    assert open_alerts(database) == []


def test_a_returning_alert_notifies_again(installation: Installation):
    database = installation.accounts.database
    mark_notified(database, sync_alerts(database, [REVOKED], NOW), NOW)
    later = NOW + timedelta(hours=1)
    (over,) = sync_alerts(database, [], later)
    assert over == Alert(REVOKED.key, REVOKED.message, NOW, later)
    # It returned before the notification that it was over.
    (again,) = sync_alerts(database, [REVOKED], later + timedelta(minutes=1))
    assert again.resolved_at is None
    mark_notified(database, [over, again], later)
    assert sync_alerts(database, [REVOKED], later + timedelta(minutes=2)) == []


def test_late_data_is_an_alert_after_the_lead_of_its_plan(installation: Installation):
    (connection,) = installation.accounts.connections.all()
    promised = connection.next_refresh_at
    assert promised is not None
    lead = PLANS["growth"].lead
    assert of_connections([connection], promised + lead) == []
    (condition,) = of_connections([connection] * 7, promised + lead + timedelta(seconds=1))
    assert condition.key == "too old/growth"
    assert "user-0, user-0, user-0, user-0, user-0 and 2 more" in condition.message
    removed = replace(connection, status=Status.REMOVED)
    assert of_connections([removed], promised + timedelta(days=9)) == []


def test_a_failed_last_run_is_an_alert_unless_it_will_be_retried(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def ended(status: str, plan: str, **tags: str) -> None:
            run = dg.DagsterRun(
                job_name="refresh",
                tags={PLAN_TAG: plan, **{f"dagster/{name}": value for name, value in tags.items()}},
                status=dg.DagsterRunStatus(status),
            )
            instance.add_run(run)

        now = datetime.now(UTC)
        ended("FAILURE", "growth")
        ended("FAILURE", "trial", will_retry="true")
        ended("FAILURE", "scale")
        ended("SUCCESS", "scale")
        assert [condition.key for condition in failed_runs(instance, [], now)] == ["run/refresh/growth"]
        assert list(failed_runs(instance, [], now + timedelta(days=8))) == []
        ended("SUCCESS", "growth")
        assert list(failed_runs(instance, [], now)) == []


def test_data_is_not_late_before_a_change_could_be_fetched(installation: Installation):
    now = datetime.now(UTC)
    with installation.accounts.database.write() as database:
        old = dict.fromkeys(("last_refresh_at", "connected_at", "changed_at"), now - timedelta(hours=5))
        database.execute(update(connections).values(old))
    installation.accounts.users.set_plan("user-0", "enterprise")
    plan = PLANS["enterprise"]
    assert of_connections(installation.accounts.connections.all(), now + plan.refresh_interval) == []
    late = now + plan.refresh_interval + plan.lead + timedelta(minutes=1)
    (condition,) = of_connections(installation.accounts.connections.all(), late)
    assert condition.key == "too old/enterprise"


@pytest.mark.parametrize("tags", [{"dagster/partition": "user-0"}, range_tags("user-0", "user-1")])
def test_a_failed_history_fetch_is_over_once_its_users_are_fetched(
    start_openai, install, tags: dict[str, str]
):
    installation = install(start_openai(organizations=2, days=2, services=False))
    user_ids = installation.connect(plan="growth")
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(USERS_NAME, user_ids)
        failed = dg.DagsterRun(job_name="load_user_history", tags=tags, status=dg.DagsterRunStatus.FAILURE)
        instance.add_run(failed)

        def conditions() -> list[str]:
            found = failed_runs(instance, installation.accounts.connections.all(), datetime.now(UTC))
            return [condition.key for condition in found]

        what = tags.get("dagster/partition", "user-0 to user-1")
        assert conditions() == [f"run/load_user_history/{what}"]
        installation.refresh(users=user_ids[1:])
        assert conditions() == [f"run/load_user_history/{what}"]
        installation.refresh(users=user_ids[:1])
        assert conditions() == []


def test_a_failed_history_fetch_of_a_purged_user_is_over(installation: Installation):
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(USERS_NAME, ["user-0"])
        for tags in ({"dagster/partition": "gone"}, range_tags("gone", "user-0")):
            status = dg.DagsterRunStatus.FAILURE
            instance.add_run(dg.DagsterRun(job_name="load_user_history", tags=tags, status=status))

        def conditions() -> list[str]:
            found = failed_runs(instance, installation.accounts.connections.all(), datetime.now(UTC))
            return [condition.key for condition in found]

        assert conditions() == ["run/load_user_history/gone to user-0"]
        installation.refresh()
        assert conditions() == []


def test_a_failed_backfill_is_an_alert_until_it_succeeds(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def ended(status: str, **tags: str) -> None:
            named = {name.replace("_", "/"): value for name, value in tags.items()}
            instance.add_run(
                dg.DagsterRun(job_name="__ASSET_JOB", tags=named, status=dg.DagsterRunStatus(status))
            )

        now = datetime.now(UTC)
        ended("FAILURE", finora_backfill="growth", dagster_backfill="b1")
        ended("FAILURE", dagster_partition="2026-11-24")
        ended("SUCCESS", finora_backfill="scale", dagster_backfill="b2")
        backfill, asset = sorted(failed_runs(instance, [], now), key=lambda condition: condition.message)
        assert backfill.key == "run/__ASSET_JOB/growth"
        assert backfill.message.startswith("A backfill of growth failed at ")
        assert asset.message.startswith("A materialization of 2026-11-24 failed at ")
        ended("SUCCESS", finora_backfill="growth", dagster_backfill="b3")
        assert list(failed_runs(instance, [], now)) == [asset]


def test_a_failed_check_is_an_alert(installation: Installation):
    prepare_instance(installation.settings)
    repository = build_defs(installation.settings).get_repository_def()
    with dg.DagsterInstance.get() as instance:

        def evaluated(passed: bool) -> None:
            result = dg.AssetCheckEvaluation(
                check_name="facts_equal_openais_totals",
                asset_key=dg.AssetKey("reconciliation"),
                passed=passed,
                metadata={},
            )
            instance.report_runless_asset_event(result)

        assert list(failed_checks(instance, repository)) == []
        evaluated(False)
        (condition,) = failed_checks(instance, repository)
        assert condition.key == "check/reconciliation/facts_equal_openais_totals"
        # The next refresh is queued or running: it has evaluated nothing yet.
        tags = day_range_tags(installation.today, installation.today)
        instance.create_run_for_job(repository.get_job("refresh"), tags=tags)
        assert list(failed_checks(instance, repository)) == [condition]
        evaluated(True)
        assert list(failed_checks(instance, repository)) == []


def test_a_message_names_the_first_and_counts_the_rest():
    many = [Alert(f"k{n}", f"what {n}", NOW, None) for n in range(30)]
    title, body = message_of([*many, Alert("o", "old", NOW, NOW)])
    assert title == "finora: 30 new, 1 over"
    assert body.splitlines()[-1] == "… and 10 more: finora alerts lists them."
