"""Runs a module like `python -m`, and exits when the process at the other end of its standard input dies.

    python -m finora_pipeline.server.parent_watch MODULE ARGUMENTS…

If the supervisor is SIGKILLed its children must exit, or two daemons would run after the next start.
"""

import os
import runpy
import signal
import sys
import threading

from finora_pipeline.data_folder.private_files import restrict_new_files


def main() -> None:
    restrict_new_files()
    threading.Thread(target=_follow, name="follower", daemon=True).start()
    sys.argv[:] = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _follow() -> None:
    # Nothing is ever written, so this blocks until the other end is closed.
    while os.read(sys.stdin.fileno(), 1):
        pass
    # The whole group, since runs are child processes of the code server.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
