"""Connections and their states, organizations, refreshes and audit rows, as plain data without secrets."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from finora_pipeline.plans import Plan

# A permanent failure is retried once a day; the hour less keeps a daily tick from missing its turn.
RETRY_ATTENTION_AFTER = timedelta(hours=23)
# Any other failure that needs a person is retried at the plan's pace, and within this time.
RETRY_PASSING_AFTER = timedelta(minutes=55)

# Column values of a connection whose history has not been fetched.
NO_HISTORY: dict[str, None] = {"history_from": None, "read_until": None}
# How long before its expiry a key is reported.
EXPIRY_WARNED_BEFORE = timedelta(days=14)
# A moment further in the future than this was recorded while a clock ran ahead.
CLOCK_TOLERANCE = timedelta(minutes=5)

_USER_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_@+-]|\.(?!\.)){0,99}")


class AccountsError(Exception):
    """A request that cannot be carried out; the message is a sentence for the person who made it."""


class KeyReplaced(AccountsError):
    """The user's key was replaced or removed after the run began."""


class AddressUnconfirmed(AccountsError):
    """The key may not be sent to the configured address until a person confirms it."""


class OtherOrganization(AccountsError):
    """The key belongs to another organization than the connected one, or may, and no switch was asked for."""


class Status(StrEnum):
    """The state of a connection, in the words shown to people."""

    ACTIVE = "active"
    NEEDS_ATTENTION = "needs attention"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Organization:
    """What is known of the organization behind a key.

    The id and name come from cost rows, so they are None while it has no costs; `project_ids` is empty if
    the key may not list projects.
    """

    organization_id: str | None = None
    name: str | None = None
    project_ids: frozenset[str] = field(default_factory=frozenset[str])

    def is_same_as(self, other: "Organization") -> bool | None:
        """Whether both are the same organization; None if neither ids nor projects show it."""
        if self.organization_id and other.organization_id:
            return self.organization_id == other.organization_id
        if self.project_ids and other.project_ids:
            return bool(self.project_ids & other.project_ids)
        return None


@dataclass(frozen=True, slots=True)
class Connection:
    """A user's connection to OpenAI, without its key.

    UTC days from `history_from` to `read_until` (exclusive) have been fetched without a gap; both are None
    until the history that the plan keeps has been fetched completely. `cost_groupings` maps dimensions to
    whether the organization's API splits costs by them, as far as known. `base_url` is the address the key
    is bound to, None until an operator confirms one after an upgrade. OpenAI refuses costs of days before
    `given_from`. `last_refresh_at` is the start of the newest refresh that is published and reached its day.
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
        """The oldest UTC day to fetch; None for no limit.

        Limited by what the plan keeps (plus `grace`), by the organization's first day and by what OpenAI
        returns.
        """
        kept = self.plan.first_day_kept(today - grace)
        # An organization replaced while the clock ran ahead begins today.
        since = self.organization_since and min(self.organization_since, today)
        days = [day for day in (kept, since, self.given_from) if day]
        return max(days, default=None)

    @property
    def next_refresh_at(self) -> datetime | None:
        """When the next refresh is due by the plan's promise; None for a removed connection.

        A new connection, plan or key starts the plan's interval again.
        """
        if self.status is Status.REMOVED:
            return None
        moments = (self.last_refresh_at, self.connected_at, self.plan_since, self.changed_at)
        return self.plan.next_refresh(max(moment for moment in moments if moment))

    @property
    def refreshed_at(self) -> datetime | None:
        """Time of the newest published data since the latest connect, or None."""
        read = self.last_refresh_at
        return read if read and read >= self.connected_at else None

    def is_late(self, now: datetime) -> bool:
        """Whether an active connection's data is past the promised next refresh plus the plan's lead.

        The lead gives a missed tick time to be made up before anyone is notified.
        """
        promised = self.next_refresh_at
        return self.status is Status.ACTIVE and promised is not None and now > promised + self.plan.lead

    def expiry_warning(self, now: datetime) -> str | None:
        """A sentence if the Admin key expires within `EXPIRY_WARNED_BEFORE` or has expired, else None."""
        ends = self.key_expires_at
        if ends is None or self.status is Status.REMOVED or ends - now > EXPIRY_WARNED_BEFORE:
            return None
        verb = "expires" if ends > now else "expired"
        return (
            f"The Admin key {verb} on {ends:%Y-%m-%d} (UTC). Create a new one in OpenAI and save it before "
            "refreshes stop."
        )

    def may_be_fetched(self, now: datetime) -> bool:
        """Whether a refresh of several users should include this connection."""
        if self.status is Status.NEEDS_ATTENTION:
            last = self.last_attempt_at
            if last and is_future(last, now):
                return True
            return self.retry_at is None or now >= self.retry_at
        return self.status is Status.ACTIVE

    def is_due(self, now: datetime) -> bool:
        """Whether the plan's promise would break by waiting for the next tick."""
        since = self._fresh_since
        return self.may_be_fetched(now) and (is_future(since, now) or self.plan.is_due(since, now))

    def may_join(self, now: datetime) -> bool:
        """Whether a scheduled refresh of due connections should include this one as well."""
        since = self._fresh_since
        return self.may_be_fetched(now) and (is_future(since, now) or self.plan.may_join(since, now))

    @property
    def _fresh_since(self) -> datetime:
        return self.last_refresh_at or self.connected_at


@dataclass(frozen=True, slots=True)
class Refresh:
    """One attempt to refresh one user: the window, and the outcome.

    `window_start` and `window_end` are UTC days, the end exclusive. `reason` is a code of
    `openai_admin.errors` and `message` its sentence; both are None for a complete fetch. `permanent`:
    retrying is useless; `needs_person`: a person must change something. OpenAI refused costs of days before
    `given_from`; `is_history_given`: it now returns days it had refused. `plan` is the plan the window was
    computed for. `cost_groupings` maps dimensions to whether the API split costs by them.
    `organization_id` and `organization_name` come from the rows. `key_version` is the key used.
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
    cost_groupings: Mapping[str, bool] = field(default_factory=dict[str, bool])
    organization_id: str | None = None
    organization_name: str | None = None
    key_version: int | None = None
    published_at: datetime | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the costs of the whole window were fetched."""
        return self.reason is None

    @property
    def outcome(self) -> str:
        """`complete` or `failed`."""
        return "complete" if self.is_complete else "failed"


@dataclass(frozen=True, slots=True)
class PartFailure:
    """An optional part that OpenAI does not return: a usage endpoint, a split of costs, a list.

    `part` is the name of the endpoint or list; a project's list has the project too (`api_keys/proj_1`).
    """

    part: str
    reason: str
    message: str
    since: datetime
    last_attempt_at: datetime
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class PartOutcomes:
    """Outcomes of the optional parts in one fetch of a single user.

    `given` holds the names of parts that OpenAI returned; `failed` maps the others to reason code, sentence
    and time of the next attempt. `key_version` is the key used.
    """

    user_id: str
    at: datetime
    given: frozenset[str]
    failed: Mapping[str, tuple[str, str, datetime]]
    key_version: int
    directory_read_at: datetime | None = None
    key_expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class CompleteRefresh:
    """A complete fetch of a single user in one run: its start, and the UTC day it reached (exclusive)."""

    run_id: str
    user_id: str
    started_at: datetime
    window_end: date

    @property
    def is_up_to_date(self) -> bool:
        """Whether it reached the day it began on; a fetch of past days leaves the data's age unchanged."""
        return self.window_end > self.started_at.astimezone(UTC).date()


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the audit trail. `actor` is None in rows of versions that recorded no actor."""

    at: datetime
    action: str
    detail: str | None
    actor: str | None


def is_future(moment: datetime, now: datetime) -> bool:
    """Whether a recorded moment is in the future: a clock ran ahead, so the moment means nothing."""
    return moment > now + CLOCK_TOLERANCE


def attention_alert(user_id: str) -> str:
    """The key of the alert about a user's connection that needs attention."""
    return f"attention/{user_id}"


def check_user_id(user_id: str) -> str:
    """The id without surrounding white space. Raises `AccountsError` for one that cannot be used."""
    user_id = user_id.strip()
    if user_id.startswith("sk-"):
        raise AccountsError("A user id cannot start with sk-, as keys do. Check the order of the columns.")
    if not _USER_ID.fullmatch(user_id):
        raise AccountsError(
            f"“{user_id[:100]}” cannot be a user id. Use up to 100 letters, digits or . _ - + @ (no spaces), "
            "beginning with a letter or digit."
        )
    return user_id
