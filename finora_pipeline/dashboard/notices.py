"""The state of a user's data in words: what is going on, what to do about it, how fresh the figures are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from finora_pipeline.accounts.model import Connection, Status
from finora_pipeline.dashboard.formats import duration, moment


@dataclass(frozen=True, slots=True)
class Notice:
    """A line above the figures. `kind` is info, progress, warning or error; `action` leads to Settings."""

    kind: str
    title: str
    text: str
    action: str | None = None
    steps: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True, slots=True)
class Freshness:
    text: str
    is_overdue: bool


def notices(connection: Connection | None, failure: str | None, is_sample: bool) -> list[Notice]:
    """What a user must know of the figures, most important first. `failure` is what the latest attempt said
    if it failed; `is_sample` tells that there are no figures of the user's own."""
    if connection is None and not is_sample:
        text = "The costs shown here were read before."
        return [Notice("info", "OpenAI is not connected", text, "Connect OpenAI")]
    if connection is None:
        return [_sample("Connect OpenAI to see what your organization costs.", "Connect OpenAI")]
    if connection.status is Status.REMOVED:
        since = moment(connection.status_since)
        if is_sample:
            return [_sample(f"OpenAI was removed on {since}.", "Connect OpenAI")]
        text = "The costs read until then stay and are shown here."
        return [Notice("info", f"OpenAI was removed on {since}", text, "Connect again")]
    found = []
    if connection.status is Status.NEEDS_ATTENTION:
        title = f"OpenAI needs your attention since {moment(connection.status_since)}"
        found.append(Notice("error", title, connection.status_reason or "", "Update the key"))
    elif failure:
        tried = moment(connection.last_attempt_at)
        text = f"{failure} The next refresh tries again."
        found.append(Notice("warning", f"OpenAI could not be read at {tried}", text))
    is_well = connection.status is Status.ACTIVE and not failure
    if is_well and not is_sample and connection.refreshed_at is None:
        text = (
            "These figures were read before OpenAI was connected again. This page shows the new ones as soon "
            "as they are here."
        )
        found.append(Notice("progress", "Refresh under way", text))
    if is_well and is_sample:
        if connection.refreshed_at is None:
            tried = connection.last_attempt_at
            steps = [
                ("Key checked with OpenAI", True),
                ("Cost history read", tried is not None and tried >= connection.changed_at),
                ("Figures published", False),
            ]
            text = (
                "Your costs are being read for the first time. This page shows them as soon as they are here."
            )
            found.append(Notice("progress", "First refresh under way", text, steps=steps))
        else:
            text = "OpenAI reports no costs of your organization yet."
            found.append(Notice("info", "Nothing charged so far", text))
    if is_sample:
        when = "as soon as OpenAI reports costs" if connection.refreshed_at else "with the first refresh"
        found.append(_sample(f"Your own figures take their place {when}."))
    return found


def _sample(text: str, action: str | None = None) -> Notice:
    return Notice("sample", "This is sample data of an imaginary organization", text, action)


def freshness(connection: Connection | None, now: datetime) -> Freshness | None:
    """How old the figures are and when the next are promised; None without any, and while they are of before
    it was connected again."""
    if connection is None or connection.last_refresh_at is None:
        return None
    told = f"Refreshed {duration(now - connection.last_refresh_at)} ago"
    promised = connection.next_refresh_at
    if promised is None:
        return Freshness(f"{told}, not refreshed any more", False)
    if connection.refreshed_at is None:
        return None
    if promised < now:
        return Freshness(f"{told}, overdue for {duration(now - promised)}", True)
    return Freshness(f"{told}, next within {duration(promised - now)}; today is partial", False)
