"""Who changes the accounts: named in every row of the audit trail.

with acting_as("ops@example.com"):
    accounts.connections.remove("acme")
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

COMMAND_LINE = "command line"
# Scheduled runs and all else that no person started.
DAEMON = "daemon"
# An operator without a login, who opened the link that the start printed.
START_LINK = "start link"
# In place of a user's id in rows about operators; no user has it.
OPERATORS = ""
_actor: ContextVar[str] = ContextVar("actor", default=DAEMON)


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """Names the actor of all that the block changes, also in the threads that it calls."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


def act_as(actor: str) -> None:
    """Names the actor for the rest of this process."""
    _actor.set(actor)


def current_actor() -> str:
    """A login's name, `COMMAND_LINE` or `DAEMON`."""
    return _actor.get()
