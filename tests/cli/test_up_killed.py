"""A killed process of finora up leaves no orphans and is restarted."""

import asyncio
import os
import time
from pathlib import Path

from finora_pipeline.server.child import Child
from tests.cli.test_up import PATIENCE, up


def test_a_killed_finora_up_leaves_no_process(start_openai, install):
    installation = install(start_openai(days=1))
    with up(installation) as (process, client):
        processes = client.get("/health", params={"wait": PATIENCE}).json()["processes"].values()
        process.kill()
        process.wait()
        # They hold its log until they exit.
        assert process.stderr is not None
        process.stderr.read()
    for one in processes:
        wait_until_gone(one["pid"])
    with up(installation) as (process, client):
        assert client.get("/health", params={"wait": PATIENCE}).status_code == 200


def wait_until_gone(process_id: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {process_id} still runs")


def test_a_child_is_restarted_while_its_children_still_run(tmp_path):
    """As a code server whose runs outlive it: they hold its output and exit with finora up."""
    program = (
        "import subprocess, sys, os; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "open(os.environ['STARTED'], 'a').write(f'{child.pid}\\n'); os._exit(1)"
    )
    (tmp_path / "dying.py").write_text(program)
    started = tmp_path / "started"
    environment = os.environ | {"STARTED": str(started), "PYTHONPATH": str(tmp_path)}

    async def run() -> list[int]:
        followed, held = os.pipe()
        child = Child("dying", ("dying",), environment, tmp_path, followed)
        keeping = asyncio.create_task(child.keep_running())
        async with asyncio.timeout(PATIENCE):
            while child.starts < 2 or len(started.read_text().splitlines()) < 2:
                await asyncio.sleep(0.01)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await child.stop()
        os.close(followed)
        os.close(held)
        return [int(line) for line in started.read_text().splitlines()]

    for process_id in asyncio.run(run()):
        wait_until_gone(process_id)
