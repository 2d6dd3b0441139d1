"""The simulator in a process of its own, for whoever needs its CPU apart: the demo and the benchmarks."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SimulatorNotStarted(RuntimeError):
    """The simulator's process ended before it served."""


@contextmanager
def in_own_process(*options: str) -> Iterator[str]:
    """Runs `finora simulate-openai` with these options on a free port; yields the base address."""
    command = [sys.executable, "-m", "finora_pipeline", "simulate-openai", "--json", "--port", "0", *options]
    # A session of its own: Ctrl-C must not end it before those who read from it.
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
