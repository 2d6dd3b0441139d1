"""What the accounts speak of: connections and their states, organizations, refreshes. Plain data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from finora_pipeline.plans import Plan

# What only a person can change is asked for once a day; the hour less keeps a daily tick from missing.
RETRY_ATTENTION_AFTER = timedelta(hours=23)
# All else that keeps a user from being read is tried again at the plan's pace, and within this time.
RETRY_PASSING_AFTER = timedelta(minutes=55)

# The columns of a connection whose history has not been fetched.
UNREAD: dict[str, None] = {"history_from": None, "read_until": None}
# How long before its end a key is reported.
EXPIRY_WARNED_BEFORE = timedelta(days=14)
# A moment that is later than this after now was recorded while a clock ran ahead.
CLOCK_TOLERANCE = timedelta(minutes=5)

_USER_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_@+-]|\.(?!\.)){0,99}")


class AccountsError(Exception):
    """A request that cannot be done; the message is one sentence for the person who asked."""


class KeyReplaced(AccountsError):
    """The key that a run began with is no longer the user's."""


class AddressUnconfirmed(AccountsError):
    """The key may not be sent to the address that is configured until a person confirms it."""


class OtherOrganization(AccountsError):
    """The key is of another organization than the one connected, and nobody said that it takes its place."""


class Status(StrEnum):
    """The state of a connection, in the words a person reads."""

    ACTIVE = "active"
    NEEDS_ATTENTION = "needs attention"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Organization:
    """What is known of the organization behind a key: its id (from cost rows, so None while it has no
    costs), its name and the ids of its projects (empty if the key may not list them)."""

    organization_id: str | None = None
    name: str | None = None
    project_ids: frozenset[str] = field(default_factory=frozenset)

    def is_same_as(self, other: "Organization") -> bool | None:
        """Whether both are one organization; None if nothing tells."""
        if self.organization_id and other.organization_id:
            return self.organization_id == other.organization_id
        if self.project_ids and other.project_ids:
            return bool(self.project_ids & other.project_ids)
        return None


@dataclass(frozen=True, slots=True)
class Connection:
    """A user's connection to OpenAI, without its secret.

    The UTC days from `history_from` up to `read_until` (exclusive) have been read without a gap; both are
    None while the history that the plan keeps has not been read whole. `cost_groupings` tells by which
    further dimensions the organization's API splits costs, as far as that is known. `base_url` is the address
    that the key is bound to, None while an upgrade waits for an operator to confirm one; `given_from` the
    day before which OpenAI gives no costs.
    """

    user_id: str
    email: str | None
    plan: Plan
    plan_since: datetime | None
    status: Status
    status_reason: str | None
    status_since: datetime
    key_hint: str
    key_version: int
    organization: Organization
    connected_at: datetime
    changed_at: datetime
    history_from: date | None
    read_until: date | None
    cost_groupings: Mapping[str, bool]
    directory_read_at: datetime | None
    organization_since: date | None
    last_attempt_at: datetime | None
    last_refresh_at: datetime | None
    base_url: str | None = None
    key_expires_at: datetime | None = None
    given_from: date | None = None
    retry_at: datetime | None = None

    def first_day(self, today: date, grace: timedelta = timedelta(0)) -> date | None:
        """The oldest UTC day that is read, of those that the plan keeps (and for `grace` after), this
        organization had and OpenAI gives; None for everything."""
        kept = self.plan.first_day_kept(today - grace)
        # Of an organization that was replaced while the clock ran ahead, today is the first.
        since = self.organization_since and min(self.organization_since, today)
        days = [day for day in (kept, since, self.given_from) if day]
        return max(days, default=None)

    @property
    def next_refresh_at(self) -> datetime | None:
        """Until when the plan promises the next refresh; None if the connection is not refreshed.

        A new connection, plan or key gives it the plan's whole interval.
        """
        if self.status is Status.REMOVED:
            return None
        moments = (self.last_refresh_at, self.connected_at, self.plan_since, self.changed_at)
        return self.plan.next_refresh(max(moment for moment in moments if moment))

    @property
    def refreshed_at(self) -> datetime | None:
        """As of when the data is; None while nothing has been read since it was connected, the last time."""
        read = self.last_refresh_at
        return read if read and read >= self.connected_at else None

    def expiry_warning(self, now: datetime) -> str | None:
        """A sentence while the Admin key is about to expire, or has."""
        ends = self.key_expires_at
        if ends is None or self.status is Status.REMOVED or ends - now > EXPIRY_WARNED_BEFORE:
            return None
        verb = "expires" if ends > now else "expired"
        return (
            f"The Admin key {verb} on {ends:%Y-%m-%d} (UTC). Create a new one in OpenAI and save it before "
            "refreshes stop."
        )

    def may_be_read(self, now: datetime) -> bool:
        """Whether a refresh of many should read this connection."""
        if self.status is Status.NEEDS_ATTENTION:
            last = self.last_attempt_at
            if last and is_future(last, now):
                return True
            return self.retry_at is None or now >= self.retry_at
        return self.status is Status.ACTIVE

    def is_due(self, now: datetime) -> bool:
        """Whether a scheduled refresh should read this connection now, to keep the plan's promise."""
        since = self._fresh_since
        return self.may_be_read(now) and (is_future(since, now) or self.plan.is_due(since, now))

    def may_join(self, now: datetime) -> bool:
        """Whether a scheduled refresh that is made for others should read this connection, too."""
        since = self._fresh_since
        return self.may_be_read(now) and (is_future(since, now) or self.plan.may_join(since, now))

    @property
    def _fresh_since(self) -> datetime:
        return self.last_refresh_at or self.connected_at


@dataclass(frozen=True, slots=True)
class Refresh:
    """One attempt to refresh one user: what was asked for, and how it ended.

    `window_start` and `window_end` are UTC days, the end exclusive. `reason` is a code of
    `openai_admin.errors` and `message` its sentence, both None if the read was complete. `permanent` means
    that asking again is useless, `needs_person` that a person must change something. `given_from` is the
    day before which OpenAI refused to give costs, `is_history_given` that it gives days it had refused.
    `plan` is the one that the window was made for; `cost_groupings` what the read learned of the splits of
    costs that the API takes; `organization_id` and its name whose costs they were, where rows name it;
    `key_version` which of the user's keys it was made with.
    """

    user_id: str
    window_start: date
    window_end: date
    started_at: datetime
    finished_at: datetime
    pages: int
    reason: str | None = None
    message: str | None = None
    permanent: bool = False
    needs_person: bool = False
    given_from: date | None = None
    is_history_given: bool = False
    plan: str | None = None
    cost_groupings: Mapping[str, bool] = field(default_factory=dict)
    organization_id: str | None = None
    organization_name: str | None = None
    key_version: int | None = None
    published_at: datetime | None = None

    @property
    def is_complete(self) -> bool:
        return self.reason is None

    @property
    def outcome(self) -> str:
        """`complete` or `failed`."""
        return "complete" if self.is_complete else "failed"


@dataclass(frozen=True, slots=True)
class PartFailure:
    """An optional part of a user's pages that OpenAI does not give: a usage endpoint, a split, a list.

    `part` is the endpoint's or list's name, with its project for a list of one (`api_keys/proj_1`).
    """

    part: str
    reason: str
    message: str
    since: datetime
    last_attempt_at: datetime
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class PartsRead:
    """How the optional parts of one user's pages were read at one moment.

    `failed` holds reason, sentence and moment of the next attempt of those that were not given; `given` the
    names of the others. `key_version` is that of the key which asked.
    """

    user_id: str
    at: datetime
    given: frozenset[str]
    failed: Mapping[str, tuple[str, str, datetime]]
    key_version: int
    directory_read_at: datetime | None = None
    key_expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """A complete read of one user in one run, when it began and up to which UTC day (exclusive)."""

    run_id: str
    user_id: str
    started_at: datetime
    window_end: date

    @property
    def is_up_to_date(self) -> bool:
        """Whether it reached the day on which it began: a read of old days makes nothing fresh."""
        return self.window_end > self.started_at.astimezone(UTC).date()


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the audit trail. `actor` is None in rows of versions that did not name one."""

    at: datetime
    action: str
    detail: str | None
    actor: str | None


def is_future(moment: datetime, now: datetime) -> bool:
    """Whether a recorded moment cannot be: it is of a clock that ran ahead, and says nothing."""
    return moment > now + CLOCK_TOLERANCE


def attention_alert(user_id: str) -> str:
    """The key of the alert that a user's connection needs attention."""
    return f"attention/{user_id}"


def check_user_id(user_id: str) -> str:
    """The id without surrounding white space. Raises `AccountsError` for one that cannot be used."""
    user_id = user_id.strip()
    if user_id.startswith("sk-"):
        raise AccountsError("A user id cannot start with sk-, as keys do: are the columns in order?")
    if not _USER_ID.fullmatch(user_id):
        raise AccountsError(
            f"“{user_id[:100]}” cannot be a user id: take up to 100 letters, digits and . _ - + @, "
            "beginning with a letter or digit."
        )
    return user_id
