"""The state of a connection in words: what happened, what to do, how fresh the data is."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from finora_pipeline.accounts.model import RETRY_ATTENTION_AFTER, Connection, Status
from finora_pipeline.dashboard.figures.formats import duration, moment


@dataclass(frozen=True, slots=True)
class Notice:
    """A box above the figures. `kind` is info, progress, sample, warning or error.

    `action` is the text of a button that leads to Settings; `steps` are texts and whether each is done.
    """

    kind: str
    title: str
    text: str
    action: str | None = None
    steps: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True, slots=True)
class Freshness:
    """The age of the data in words, and whether the promised next refresh has passed."""

    text: str
    is_late: bool


def notices(connection: Connection | None, failure: str | None, is_sample: bool) -> list[Notice]:
    """The notices above a user's figures, most important first.

    `failure` is the message of the latest attempt if it failed; `is_sample` says that the figures are those
    of the sample: no day of the user's own is known.
    """
    if connection is None or connection.status is Status.REMOVED:
        return [_not_connected(connection, is_sample)]
    found = []
    if connection.status is Status.NEEDS_ATTENTION:
        found.append(_attention(connection))
    elif failure:
        found.append(_failure(connection, failure))
    elif connection.refreshed_at is None:
        found.append(_first_refresh(connection) if is_sample else _new_key())
    if is_sample:
        which = "next" if connection.refreshed_at else "first"
        found.append(_sample(f"Your own figures replace it with the {which} refresh."))
    return found


def _not_connected(connection: Connection | None, is_sample: bool) -> Notice:
    if connection is None and is_sample:
        return _sample("Connect OpenAI to see what your organization costs.", "Connect OpenAI")
    if connection is None:
        text = "The costs shown here were fetched before."
        return Notice("info", "OpenAI is not connected", text, "Connect OpenAI")
    since = moment(connection.status_since)
    if is_sample:
        return _sample(f"OpenAI was removed on {since}.", "Connect OpenAI")
    text = "Costs fetched until then stay and are shown here."
    return Notice("info", f"OpenAI was removed on {since}", text, "Connect again")


def _attention(connection: Connection) -> Notice:
    since, reason = moment(connection.status_since), connection.status_reason or ""
    if _is_key_refused(connection):
        return Notice("error", f"Your OpenAI key stopped working on {since}", reason, "Update the key")
    return Notice("error", f"Refreshes have failed since {since}", reason, "Open Settings")


def _is_key_refused(connection: Connection) -> bool:
    """Whether the key is the reason: then alone the next attempt waits for most of a day."""
    tried, retry = connection.last_attempt_at, connection.retry_at
    return tried is not None and retry is not None and retry - tried >= RETRY_ATTENTION_AFTER


def _failure(connection: Connection, failure: str) -> Notice:
    title = f"We couldn’t fetch from OpenAI at {moment(connection.last_attempt_at)}"
    retry = "The next refresh retries"
    if connection.refreshed_at:
        retry += f"; figures are up to {moment(connection.refreshed_at)}"
    return Notice("warning", title, f"{failure} {retry}.")


def _new_key() -> Notice:
    text = "Loading data with the new key. Figures below are from before."
    return Notice("progress", "Refresh under way", text)


def _first_refresh(connection: Connection) -> Notice:
    tried = connection.last_attempt_at
    steps = [
        ("Key checked with OpenAI", True),
        ("Cost history fetched", tried is not None and tried >= connection.changed_at),
        ("Figures published", False),
    ]
    text = "Fetching your costs for the first time. This page shows them as soon as they are here."
    return Notice("progress", "First refresh under way", text, steps=steps)


def _sample(text: str, action: str | None = None) -> Notice:
    return Notice("sample", "This is sample data of an imaginary organization", text, action)


def freshness(connection: Connection | None, now: datetime) -> Freshness | None:
    """The age of the data and the promised next refresh.

    None without data, and while the data is from before the latest connect.
    """
    if connection is None or connection.last_refresh_at is None:
        return None
    promised = connection.next_refresh_at
    if promised is None:
        at = moment(connection.last_refresh_at)
        return Freshness(f"Last refreshed {at}. Refreshes stopped when the key was removed.", False)
    if connection.refreshed_at is None:
        return None
    age = f"Refreshed {duration(now - connection.last_refresh_at)} ago"
    if promised < now:
        return Freshness(f"{age} · {duration(now - promised)} late", True)
    return Freshness(f"{age} · next within {duration(promised - now)} · today is incomplete", False)
