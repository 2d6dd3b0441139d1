"""Runs a module as `python -m` does, and ends with whoever holds the other end of its standard input.

    python -m finora_pipeline.server.parent_watch MODULE ARGUMENTS…

A `finora up` that is killed can end nobody any more: its daemon would go on beside the next start's.
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
    # Nothing is ever written: the read ends when the last holder of the other end has.
    while os.read(sys.stdin.fileno(), 1):
        pass
    # The whole group, since runs are processes of the code server's.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
