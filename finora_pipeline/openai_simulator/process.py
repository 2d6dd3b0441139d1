"""Runs the simulator in a separate process, so that it does not share its caller's CPU time."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SimulatorNotStarted(RuntimeError):
    """The simulator's process exited before it served."""


@contextmanager
def in_own_process(*options: str) -> Iterator[str]:
    """Run `finora simulate-openai` with these options on a free port; yields the base address.

    Raises `SimulatorNotStarted`.
    """
    command = [sys.executable, "-m", "finora_pipeline", "simulate-openai", "--json", "--port", "0", *options]
    # In its own session: Ctrl-C must not stop it before its clients.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        answer = ""
        for line in iter(process.stdout.readline, ""):
            answer += line
            if line.startswith("}"):
                break
        if not answer:
            raise SimulatorNotStarted("The OpenAI simulator did not start.")
        yield json.loads(answer)["base_url"]
    finally:
        process.terminate()
        process.wait(timeout=10)
