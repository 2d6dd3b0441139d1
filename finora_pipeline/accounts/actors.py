"""The actor of a change to the accounts, named in every row of the audit trail.

with acting_as("ops@example.com"):
    accounts.connections.remove("acme")
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

COMMAND_LINE = "command line"
# Scheduled runs and everything else that no person started.
DAEMON = "daemon"
# An operator without a login, who opened the link printed by `finora up`.
START_LINK = "start link"
# Stands for the user id in rows about operators; no user has this id.
OPERATORS = ""
_actor: ContextVar[str] = ContextVar("actor", default=DAEMON)


@contextmanager
def acting_as(actor: str) -> Generator[None]:
    """Name the actor of every change within the block, including threads that it calls."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


def act_as(actor: str) -> None:
    """Name the actor for the rest of this process."""
    _actor.set(actor)


def current_actor() -> str:
    """The current actor: a login's name, `COMMAND_LINE`, `START_LINK` or `DAEMON`."""
    return _actor.get()
