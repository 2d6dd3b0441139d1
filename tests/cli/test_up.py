"""finora up, as an operator runs it: health, metrics, a killed daemon, a clean shutdown."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import httpx
import pytest
import yaml

from finora_pipeline.cli.backfills import backfill_state, launch_backfill
from finora_pipeline.jobs import BATCH_TAG, USER_TAG
from finora_pipeline.server import child as child_module
from finora_pipeline.server import supervisor
from tests.conftest import Installation

PATIENCE = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(installation: Installation, *arguments: object) -> tuple[list[str], dict[str, str]]:
    environment = os.environ | {
        "FINORA_HOME": str(installation.settings.home),
        "DAGSTER_HOME": str(installation.settings.dagster_home),
        "OPENAI_BASE_URL": installation.settings.openai_base_url,
        "COLUMNS": "200",
    }
    return [sys.executable, "-m", "finora_pipeline", "up", *map(str, arguments)], environment


@dataclass
class Served:
    """A running `finora up` and the links it printed."""

    process: subprocess.Popen[str]
    links: dict[str, str]

    @property
    def token(self) -> str:
        return self.links["Dagster UI"].partition("?token=")[2]

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def address(self, name: str) -> str:
        """Return a server's address without the token."""
        return self.links[name].partition("/?token=")[0]


@contextmanager
def served_up(installation: Installation, *options: str, **settings: str) -> Iterator[Served]:
    """Start `finora up` and wait for its links."""
    ports = ("--port", free_port(), "--health-port", free_port(), "--dashboard-port", free_port())
    line, environment = command(installation, *ports, *options)
    with subprocess.Popen(line, env=environment | settings, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            links = {}
            for printed in iter(process.stderr.readline, ""):
                name, _, address = printed.strip().partition(": ")
                links[name] = address.partition("/health")[0]
                if name == "Health and metrics":
                    break
            assert "Health and metrics" in links, links
            yield Served(process, links)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


@contextmanager
def up(installation: Installation) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Run `finora up`; yield it with a client that sends the token to its health page."""
    with (
        served_up(installation) as served,
        httpx.Client(
            base_url=served.address("Health and metrics"), headers=served.bearer, timeout=PATIENCE
        ) as client,
    ):
        yield served.process, client


def first_run_of(installation: Installation, backfill_id: str) -> dg.DagsterRun:
    """Wait for the backfill's first run to succeed; return it."""
    until = time.monotonic() + PATIENCE
    while True:
        state = backfill_state(installation.accounts, backfill_id)
        with dg.DagsterInstance.get() as instance:
            for run_id in state.run_ids:
                run = instance.get_run_by_id(run_id)
                if run and run.status is dg.DagsterRunStatus.SUCCESS:
                    return run
        assert time.monotonic() < until, f"Backfill {backfill_id} had no run that ended well: {state}."
        time.sleep(0.2)


def test_up_serves_supervises_and_shuts_down(start_openai, install):
    installation = install(start_openai(days=2, services=False))
    installation.connect(plan="scale")
    installation.run()
    # Before the daemon's first iteration, so that the test need not wait for its second.
    days = installation.history(2)
    backfill_id = launch_backfill(installation.settings, days, plan="scale", users=["user-0"])
    with up(installation) as (process, client):
        healthy = client.get("/health", params={"wait": PATIENCE})
        assert healthy.status_code == 200, healthy.text
        before = healthy.json()["processes"]
        assert set(before) == {"code-server", "daemon", "webserver", "dashboard"}
        (location,) = yaml.safe_load((installation.settings.dagster_home / "workspace.yaml").read_text())[
            "load_from"
        ]
        # It executes any request: a port would be open to every account of the machine.
        assert location["grpc_server"].keys() == {"socket", "location_name"}
        code_socket = Path(location["grpc_server"]["socket"])
        assert stat.S_ISSOCK(code_socket.stat().st_mode)
        assert stat.S_IMODE(code_socket.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(code_socket.parent.stat().st_mode) == 0o700

        page = client.get("/metrics").text
        assert 'finora_connections{plan="scale",status="active"} 1.0' in page
        assert 'finora_data_age_seconds{of="oldest",plan="scale"}' in page
        assert 'finora_reads_24h{outcome="complete"} 1.0' in page
        assert 'finora_runs_24h{job="refresh",plan="",status="success"} 1.0' in page
        assert 'finora_requests_24h{outcome="200"}' in page
        assert "finora_published_rows" in page
        assert "finora_alarms_open 0.0" in page
        assert "sk-" not in page

        line, environment = command(installation, "--port", 0, "--health-port", 0)
        second = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "Another finora up or finora demo already serves this data folder." in second.stderr

        run = first_run_of(installation, backfill_id)
        assert run.tags["dagster/asset_partition_range_start"] == days.start.isoformat()
        assert run.tags["dagster/asset_partition_range_end"] == days.last.isoformat()
        assert run.tags[USER_TAG] == "user-0"
        assert run.tags.items() >= BATCH_TAG.items()
        assert [read.user_id for read in installation.accounts.refreshes.of_run(run.run_id)] == ["user-0"]
        assert backfill_state(installation.accounts, backfill_id).users_read == 1

        os.kill(before["daemon"]["pid"], signal.SIGKILL)
        # Only the child that exited is restarted.
        assert process.stderr is not None
        assert "daemon exited with code -9" in process.stderr.readline()
        again = client.get("/health", params={"wait": PATIENCE})
        assert again.status_code == 200
        after = again.json()["processes"]
        assert {name: child_state["starts"] for name, child_state in after.items()} == {
            "code-server": 1,
            "daemon": 2,
            "webserver": 1,
            "dashboard": 1,
        }
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    for child_state in after.values():
        with pytest.raises(ProcessLookupError):
            os.kill(child_state["pid"], 0)
    logs = sorted(path.name for path in (installation.settings.home / "logs").glob("[a-z]*"))
    assert logs == ["code-server.log", "daemon.log", "dashboard.log", "runs.log", "webserver.log"]


def test_the_code_servers_socket_path_is_short_enough(tmp_path):
    with supervisor.code_socket(tmp_path) as near:
        assert near == tmp_path / "code.sock"
    far_home = tmp_path / ("long" * 30)
    far_home.mkdir()
    with supervisor.code_socket(far_home) as near, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(near))
        assert stat.S_IMODE(near.parent.stat().st_mode) == 0o700
    assert not near.parent.exists()


def test_a_port_in_use_is_reported(start_openai, install):
    installation = install(start_openai(days=1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line, environment = command(installation, "--port", taken.getsockname()[1], "--health-port", 0)
        ended = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "is in use. Stop the program that uses it" in ended.stderr


def test_one_port_for_two_servers_is_refused(start_openai, install):
    installation = install(start_openai(days=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line, environment = command(installation, "--port", port, "--health-port", port)
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, "must differ" in ended.stderr) == (1, True)


def test_a_child_that_cannot_start_is_retried(tmp_path, monkeypatch, caplog):
    """As for a moment without memory; here the environment is too large for a moment."""
    monkeypatch.setattr(child_module, "FIRST_PAUSE_SECONDS", 0.01)
    environment = {**os.environ, "TOO_LARGE": "x" * (1 << 18)}
    followed, held = os.pipe()
    child = child_module.Child("daemon", ("json.tool", "--help"), environment, tmp_path, followed)

    async def run() -> None:
        keeping = asyncio.create_task(child.keep_running())
        async with asyncio.timeout(PATIENCE):
            while not caplog.records and not keeping.done():
                await asyncio.sleep(0.01)
            del environment["TOO_LARGE"]
            while child.starts == 0 and not keeping.done():
                await asyncio.sleep(0.01)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await child.stop()

    asyncio.run(run())
    os.close(followed)
    os.close(held)
    assert caplog.messages[0].startswith("daemon could not be started (Argument list too long); starting")
    assert child.starts >= 1
