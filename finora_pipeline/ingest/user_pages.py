"""The pages of a single user: costs first, then every optional part with an outcome of its own.

Only costs decide the outcome of a refresh. A usage endpoint, a split of costs or a list that OpenAI refuses
or fails to return is recorded and retried rarely.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

import msgspec

from finora_pipeline.accounts.model import Connection, PartFailure, PartOutcomes, Refresh, is_future
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.openai_admin.client import OrganizationClient
from finora_pipeline.openai_admin.directory import Directory
from finora_pipeline.openai_admin.endpoints import (
    API_KEYS,
    COSTS,
    COSTS_BY,
    PROJECTS,
    SERVICE_ACCOUNTS,
    Endpoint,
)
from finora_pipeline.openai_admin.errors import (
    InsufficientPermissions,
    InvalidKey,
    NotTheAPI,
    OpenAIAdminError,
    WindowRefused,
)
from finora_pipeline.openai_admin.pages import Page, Window, canonical, decode_costs
from finora_pipeline.openai_admin.provider import FIRST_DAY
from finora_pipeline.warehouse.raw import PageSet

# Names change rarely; an hour less than a day, so that a daily refresh does not miss its turn.
DIRECTORY_AFTER = timedelta(hours=23)
# A refused part is retried once a day, a failed one once an hour; a little less, so that no tick misses it.
RETRY_REFUSED_AFTER = timedelta(hours=23)
RETRY_FAILED_AFTER = timedelta(minutes=55)
# Seconds of retries for an optional part in one refresh; costs land without waiting for them.
PART_RETRY_SECONDS = 15.0
LIST_RETRY_SECONDS = 3.0
# The part that stands for the days before those OpenAI returns.
HISTORY = "history"
# The reason of a part that OpenAI refuses, whatever its error code.
REFUSED = "refused"
LIST_NAMES = {
    "projects": "projects",
    "members": "members",
    "api_keys": "API keys",
    "service_accounts": "service accounts",
}
# Suffix of an endpoint's name: some of its values could not be decoded.
VALUES = ":values"
# Suffix of an endpoint's name: its usage is not split by the optional dimensions.
SPLIT = ":split"
# Beyond this many, values that could not be decoded are only counted.
VALUES_NAMED = 3
# Beyond this many, failed lists of a kind are only counted.
LISTS_NAMED = 5
# A reason code, a sentence and the time of the next attempt.
Failure = tuple[str, str, datetime]

_DIMENSION_OF = {endpoint.name: dimension for dimension, endpoint in COSTS_BY.items()}


@dataclass(frozen=True, slots=True)
class UserPages:
    """The page sets fetched of a single user, the outcome of the refresh, and those of optional parts."""

    outcome: Refresh
    sets: list[PageSet] = field(default_factory=list[PageSet])
    parts: PartOutcomes | None = None


async def fetch_costs_and_usage(
    organization: OrganizationClient,
    connection: Connection,
    window: Window,
    endpoints: Sequence[Endpoint],
    failures: Sequence[PartFailure],
    began: datetime,
    retry_parts: bool = False,
) -> UserPages:
    """Fetch costs, then the other endpoints at the same time.

    If OpenAI refuses costs, nothing else is fetched. Endpoints in `failures` are skipped until their next
    attempt is due, and fetched without dimensions that were refused, unless `retry_parts`.
    """
    known_from = max(connection.connected_at.date(), connection.organization_since or FIRST_DAY)
    given_from = None
    try:
        if window.start == FIRST_DAY:
            window, given_from = await _from_first_costs(organization, window)
        costs, given = await organization.fetch_newest(COSTS, window, known_from=known_from)
    except OpenAIAdminError as error:
        return UserPages(failed(connection, window, began, error))
    if given.start > window.start:
        given_from = given.start
    known = {failure.part: failure for failure in failures}
    waiting = {failure.part for failure in failures if not retry_parts and failure.retry_at > began}
    due = [one for one in endpoints if one.name not in waiting]
    wanted = [_unsplit(one) if f"{one.name}{SPLIT}" in waiting else one for one in due]
    parts = await _fetch_parts(organization, wanted, given, known_from, known, began)
    if odd := [place for page in costs for place in page.head.left_out]:
        parts.failed[f"{COSTS.name}{VALUES}"] = _left_out(COSTS, odd, began)
    if given_from:
        sentence = f"OpenAI returns costs from {given_from} on and refuses older days."
        parts.failed[HISTORY] = (REFUSED, sentence, began + RETRY_REFUSED_AFTER)
    # A history fetched again asks for all days, so OpenAI has refused none of them.
    is_history_given = not given_from and connection.given_from is None and HISTORY in known
    sets = [PageSet(connection.user_id, pages) for pages in (costs, *parts.pages)]
    names = [part for one in (COSTS, *wanted) for part in (one.name, f"{one.name}{VALUES}")]
    given_names = [*parts.split, *(part for part in names if part not in parts.failed)]
    return UserPages(
        replace(
            ended(connection, given, began, sets),
            cost_groupings=parts.groupings,
            given_from=given_from,
            is_history_given=is_history_given,
        ),
        sets,
        PartOutcomes(
            user_id=connection.user_id,
            at=began,
            given=frozenset([*given_names, HISTORY] if is_history_given else given_names),
            failed=parts.failed,
            key_version=connection.key_version,
        ),
    )


@dataclass(slots=True)
class _Parts:
    """Pages of the optional endpoints and failures by part.

    `split`: the parts that stand for usage split by its optional dimensions; `groupings`: whether costs were
    split by each dimension.
    """

    pages: list[list[Page]] = field(default_factory=list[list[Page]])
    failed: dict[str, Failure] = field(default_factory=dict[str, Failure])
    split: list[str] = field(default_factory=list[str])
    groupings: dict[str, bool] = field(default_factory=dict[str, bool])


async def _fetch_parts(
    organization: OrganizationClient,
    endpoints: Sequence[Endpoint],
    window: Window,
    known_from: date,
    known: Mapping[str, PartFailure],
    began: datetime,
) -> _Parts:
    answers = await asyncio.gather(
        *(_fetch_part(organization, one, window, known_from, one.name in known) for one in endpoints),
        return_exceptions=True,
    )
    parts = _Parts()
    for endpoint, answer in zip(endpoints, answers, strict=True):
        if isinstance(answer, OpenAIAdminError):
            # After a first failure the next refresh tries again.
            wait = RETRY_FAILED_AFTER if endpoint.name in known else timedelta(0)
            parts.failed[endpoint.name] = _part_failure(answer, _subject(endpoint, answer), began, wait)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            pages, refusal = answer
            parts.pages.append(pages)
            if odd := [place for page in pages for place in page.head.left_out]:
                parts.failed[f"{endpoint.name}{VALUES}"] = _left_out(endpoint, odd, began)
            if refusal:
                by = " and ".join(name.replace("_", " ") for name in endpoint.optional_group_by)
                subject = f"OpenAI does not split use of {endpoint.name} by {by}"
                parts.failed[f"{endpoint.name}{SPLIT}"] = _part_failure(refusal, subject, began)
            elif endpoint.optional_group_by:
                parts.split.append(f"{endpoint.name}{SPLIT}")
        if endpoint.name in _DIMENSION_OF:
            parts.groupings[_DIMENSION_OF[endpoint.name]] = not isinstance(answer, BaseException)
    return parts


def is_directory_due(connection: Connection, failures: Sequence[PartFailure], now: datetime) -> bool:
    """Whether names should be fetched: once a day, and when a failed list is due again."""
    fetched_at = connection.directory_read_at
    if fetched_at is None or is_future(fetched_at, now) or now - fetched_at >= DIRECTORY_AFTER:
        return True
    # A refused list waits for the next day, like all others.
    return any(_is_list(one.part) and one.reason != REFUSED and one.retry_at <= now for one in failures)


async def fetch_names(
    organization: OrganizationClient, connection: Connection, failures: Sequence[PartFailure], began: datetime
) -> UserPages:
    """Fetch the directory, each list with its own outcome, and the expiry of the Admin key."""
    has_failed = any(_is_list(failure.part) for failure in failures)
    directory, expires_at = await asyncio.gather(
        organization.directory(0 if has_failed else LIST_RETRY_SECONDS), organization.admin_key_expiry()
    )
    refused = _list_failures(directory, began)
    given = {one.listing.name for one in directory.lists if one.error is None and not one.project_id}
    sets = [PageSet(connection.user_id, directory.pages)] if directory.pages else []
    return UserPages(
        ended(connection, trailing_window(began.date()), began, sets),
        sets,
        PartOutcomes(
            user_id=connection.user_id,
            at=began,
            given=frozenset(given),
            failed=refused,
            key_version=connection.key_version,
            directory_read_at=began,
            key_expires_at=expires_at,
        ),
    )


def _list_failures(directory: Directory, began: datetime) -> dict[str, Failure]:
    """The failures of lists by part; more than `LISTS_NAMED` of the same kind are combined."""
    failed = {one.listing.name: one for one in directory.failed if not one.project_id}
    failures = {
        name: _part_failure(one.error, f"The organization's {LIST_NAMES[name]} cannot be listed", began)
        for name, one in failed.items()
        if one.error
    }
    names = _project_names(directory)
    for listing in (API_KEYS, SERVICE_ACCOUNTS):
        of_kind = [one for one in directory.failed if one.listing is listing and one.error]
        what = f"The {LIST_NAMES[listing.name]} of"
        if len(of_kind) > LISTS_NAMED:
            error = of_kind[0].error
            assert error is not None
            subject = f"{what} {len(of_kind):,} projects cannot be listed"
            failures[listing.name] = _part_failure(error, subject, began)
            continue
        for one in of_kind:
            assert one.error is not None
            subject = f"{what} the project “{names.get(one.project_id) or one.project_id}” cannot be listed"
            failures[f"{listing.name}/{one.project_id}"] = _part_failure(one.error, subject, began)
    return failures


class _Named(msgspec.Struct):
    id: str
    name: str | None = None


class _NamedList(msgspec.Struct):
    data: list[_Named]


def _project_names(directory: Directory) -> dict[str, str | None]:
    pages = [page for one in directory.lists if one.listing is PROJECTS for page in one.pages]
    bodies = [canonical(page) or page.body for page in pages]
    return {one.id: one.name for body in bodies for one in msgspec.json.decode(body, type=_NamedList).data}


def names_too_slow(connection: Connection, began: datetime, seconds: float) -> UserPages:
    """The record of names that could not be fetched in time; they are retried tomorrow."""
    sentence = (
        f"The names of projects, members and API keys took longer than {seconds / 60:g} minutes to fetch."
    )
    return UserPages(
        ended(connection, trailing_window(began.date()), began, []),
        parts=PartOutcomes(
            user_id=connection.user_id,
            at=began,
            given=frozenset(),
            failed={PROJECTS.name: ("too_slow", sentence, began + RETRY_REFUSED_AFTER)},
            key_version=connection.key_version,
            directory_read_at=began,
        ),
    )


async def _fetch_part(
    organization: OrganizationClient, endpoint: Endpoint, window: Window, known_from: date, has_failed: bool
) -> tuple[list[Page], OpenAIAdminError | None]:
    """The pages, and OpenAI's refusal to split them by the optional dimensions, if it refuses that."""
    retry_seconds = 0.0 if has_failed else PART_RETRY_SECONDS
    refusals: list[OpenAIAdminError] = []
    splits = (endpoint, _unsplit(endpoint)) if endpoint.optional_group_by else (endpoint,)
    for one in splits:
        try:
            pages = await organization.fetch(one, window, known_from=known_from, retry_seconds=retry_seconds)
            return pages, next(iter(refusals), None)
        except OpenAIAdminError as error:
            # A split of costs refused for one day is refused for all days.
            if error.status != 400 or endpoint.is_costs:
                raise
            refusals.append(error)
            if isinstance(error, WindowRefused):
                break
    for one in splits:
        try:
            pages, _ = await organization.fetch_accepted(
                one, window, refusals[-1], known_from=known_from, retry_seconds=retry_seconds
            )
            return pages, None if one is endpoint else refusals[0]
        except OpenAIAdminError as error:
            if error.status != 400:
                raise
    raise refusals[-1]


def _unsplit(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, group_by=endpoint.required_group_by)


async def _from_first_costs(organization: OrganizationClient, window: Window) -> tuple[Window, date | None]:
    """The window from the organization's first costs on, found in ungrouped pages of half a year each.

    Also returns the first day that OpenAI returns, if it refuses older days.
    """
    pages, given = await organization.fetch_newest(COSTS, window, ())
    buckets = [bucket for page in pages for bucket in decode_costs(page.body).data if bucket.results]
    given_from = given.start if given.start > window.start else None
    if not buckets:
        first = trailing_window(window.last).start
    else:
        first = datetime.fromtimestamp(buckets[0].start_time, UTC).date()
    return Window(max(first, given.start), window.end), given_from


def _subject(endpoint: Endpoint, error: OpenAIAdminError) -> str:
    if endpoint.name in _DIMENSION_OF:
        kind = {"user_id": "member", "api_key_id": "API key"}[_DIMENSION_OF[endpoint.name]]
        return f"OpenAI does not split costs by {kind}, so the split is estimated from usage"
    if endpoint.is_costs:
        return "OpenAI's own daily totals cannot be compared"
    if _is_refusal(error):
        return f"Use of {endpoint.name} is not open to this organization"
    return f"Use of {endpoint.name} could not be fetched"


def _left_out(endpoint: Endpoint, places: Sequence[str], began: datetime) -> Failure:
    """The record of values that could not be decoded: they are unknown, all others count."""
    more = f" and {len(places) - VALUES_NAMED} more" if len(places) > VALUES_NAMED else ""
    named = "; ".join(places[:VALUES_NAMED])
    return "left_out", f"Some values of {endpoint.name} are unknown: {named}{more}.", began


def _is_list(part: str) -> bool:
    return part.partition("/")[0] in LIST_NAMES


def _is_refusal(error: OpenAIAdminError) -> bool:
    # A proxy's web page is not a response of OpenAI.
    return error.is_refusal and not isinstance(error, NotTheAPI)


def _part_failure(
    error: OpenAIAdminError, subject: str, began: datetime, wait: timedelta = RETRY_FAILED_AFTER
) -> Failure:
    """Reason code, sentence and time of the next attempt of a part that OpenAI did not return."""
    sentence = f"{subject}: {error}"
    if _is_refusal(error):
        return REFUSED, sentence, began + RETRY_REFUSED_AFTER
    return error.reason, sentence, began + wait


def failed(connection: Connection, window: Window, began: datetime, error: OpenAIAdminError) -> Refresh:
    """The outcome of a refresh whose costs OpenAI did not return."""
    outcome = ended(connection, window, began, [])
    return replace(
        outcome,
        reason=error.reason,
        message=str(error),
        # Only the key's own errors are permanent: a query refused today may succeed tomorrow.
        permanent=isinstance(error, (InvalidKey, InsufficientPermissions)),
        needs_person=error.needs_person,
    )


def ended(connection: Connection, window: Window, began: datetime, sets: Sequence[PageSet]) -> Refresh:
    """The outcome of a complete fetch, with the organization named in its rows."""
    named = (page.head.organization for page_set in sets for page in page_set.pages)
    organization_id, organization_name = next(filter(None, named), (None, None))
    return Refresh(
        user_id=connection.user_id,
        plan=connection.plan.name,
        window_start=window.start,
        window_end=window.end,
        started_at=began,
        finished_at=datetime.now(UTC),
        pages=sum(len(page_set.pages) for page_set in sets),
        organization_id=organization_id,
        organization_name=organization_name,
        key_version=connection.key_version,
    )
