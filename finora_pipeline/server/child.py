"""A supervised child process: started again whenever it exits, its output in a rotated log file."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOG_BYTES = 10_000_000
LOGS_KEPT = 5
# A child that exits is started again after this pause, doubled each time up to the longest.
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
# A child that has run this long has recovered: the pause starts over.
STEADY_SECONDS = 120.0
STOP_SECONDS = 20.0
_log = logging.getLogger("finora.up")


class Child:
    """A process that is started again whenever it exits.

    It dies with this process, which holds the other end of the pipe `followed` (`server.parent_watch`).
    """

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        logs: Path,
        followed: int,
    ) -> None:
        self.name = name
        self.starts = 0
        self._arguments = arguments
        self._environment = environment
        self._followed = followed
        self._process: asyncio.subprocess.Process | None = None
        # By process id: of this start and of earlier ones whose children, such as runs, are still alive.
        self._outputs: dict[int, asyncio.Task[None]] = {}
        self._log = RotatingFileHandler(logs / f"{name}.log", maxBytes=LOG_BYTES, backupCount=LOGS_KEPT)
        self._log.setFormatter(logging.Formatter("%(message)s"))

    @property
    def is_running(self) -> bool:
        """Whether the process is alive now."""
        return self._process is not None and self._process.returncode is None

    @property
    def process_id(self) -> int | None:
        """The id of the running process, or None."""
        return self._process.pid if self._process and self.is_running else None

    async def keep_running(self) -> None:
        """Run the process, and start it again whenever it exits, until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                self._process = await self._start()
            except OSError as error:
                result = f"could not be started ({error.strerror})"
            else:
                result = f"exited with code {await self._process.wait()}"
            if loop.time() - began >= STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            _log.warning("%s %s; starting it again in %.0f s.", self.name, result, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _start(self) -> asyncio.subprocess.Process:
        # Not asyncio's pipe: asyncio waits for its end, which runs that outlive their code server hold open.
        output, written = os.pipe()
        try:
            # Its own group: Ctrl-C at the terminal only reaches this process, which stops all in order.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "finora_pipeline.server.parent_watch",
                *self._arguments,
                env=dict(self._environment),
                stdin=self._followed,
                stdout=written,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(written)
        self.starts += 1
        self._outputs = {pid: copying for pid, copying in self._outputs.items() if not copying.done()}
        self._outputs[process.pid] = asyncio.create_task(self._copy(output))
        return process

    async def _copy(self, output: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", 0)
        )
        try:
            while chunk := await reader.read(1 << 16):
                for line in chunk.decode(errors="replace").splitlines():
                    self._log.emit(logging.LogRecord(self.name, logging.INFO, "", 0, line, None, None))
        finally:
            transport.close()

    async def stop(self) -> None:
        """Stop it like Ctrl-C; kill its group if it does not exit, and what earlier starts left running."""
        if self._process and self.is_running:
            self._process.send_signal(signal.SIGINT)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        for process_id, copying in self._outputs.items():
            # While a process holds the output open, the group id cannot be reused.
            if not copying.done():
                with suppress(ProcessLookupError):
                    os.killpg(process_id, signal.SIGKILL)
        await asyncio.gather(*self._outputs.values(), return_exceptions=True)
        if self._process:
            await self._process.wait()
        self._log.close()
