"""Reads the pages of many users and lands them: bounded in memory, one user's failure never another's."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from threading import Event

import pyarrow as pa

from finora_pipeline.accounts.connections import Organizations
from finora_pipeline.accounts.model import AccountsError, Connection, KeyReplaced, Refresh, is_future
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.accounts.vault import VaultError
from finora_pipeline.disk import StorageError, told_if_full
from finora_pipeline.logs import READS
from finora_pipeline.openai_admin.client import OrganizationClient, first_failure
from finora_pipeline.openai_admin.endpoints import BESIDES_COSTS, COSTS, COSTS_BY, Endpoint
from finora_pipeline.openai_admin.errors import OpenAIAdminError, PermanentError, UnsupportedRequest
from finora_pipeline.openai_admin.pages import Window, decode_costs
from finora_pipeline.refresh.windows import FIRST_DAY, trailing_window, window_of
from finora_pipeline.warehouse.raw import PageSet, RawPages

# Pages that wait in memory before they are landed; a raw file is about this long before compression.
BATCH_BYTES = 6_000_000
# Failed reads bring no pages; their outcomes are recorded all the same before they are many.
BATCH_OUTCOMES = 500
# Users read at the same time: as many as keep the requests in flight, fewer when their windows are long, so
# that memory holds about as many days of pages either way.
MOST_USERS_AT_ONCE = 36
DAYS_AT_ONCE = 900
# Names change rarely; an hour less than a day, so that a daily refresh does not miss its turn.
DIRECTORY_AFTER = timedelta(hours=23)

_DIMENSION_OF = {endpoint.name: dimension for dimension, endpoint in COSTS_BY.items()}
ProgressCallback = Callable[[int, int, int], None]
_log = logging.getLogger(__name__)
# A line a user and run, for machines: it goes to the log file of reads alone.
_reads = logging.getLogger(READS)


@dataclass(slots=True)
class Fetched:
    """What a fetch did: users asked, pages and bytes read, how many of the pages were as at the last read and
    are not stored again, requests made, failures by user."""

    users: int = 0
    pages: int = 0
    unchanged_pages: int = 0
    bytes: int = 0
    requests: int = 0
    failures: list[Refresh] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        """How many users failed for which reason."""
        return Counter(failure.reason for failure in self.failures if failure.reason)


def read_before(
    accounts: Accounts, run_id: str, connections: Sequence[Connection], asked: Window
) -> set[str]:
    """Users whose days a run that was cut short has read whole: what it landed need not be read again."""
    today = datetime.now(UTC).date()
    windows = {c.user_id: window_of(c, asked, today) for c in connections}
    return {
        row["user_id"]
        for row in accounts.refreshes_of(run_id)
        if row["outcome"] == "complete"
        and (window := windows.get(row["user_id"]))
        # Everything begins where the organization's costs do, which only the read knows.
        and (window.start == FIRST_DAY or row["window_start"] <= window.start)
        and row["window_end"] >= window.end
    }


def select_connections(
    accounts: Accounts,
    *,
    plan: str | None = None,
    user_ids: Sequence[str] | None = None,
    now: datetime | None = None,
    skip_missing: bool = False,
    only_due: bool = False,
) -> list[Connection]:
    """The connections a refresh reads: the named users', else all, of one plan or of every plan; all that may
    be read, or nobody while none is due by the plan's promise, else those that will be before long.

    Raises `AccountsError` for a named user without a connection, unless `skip_missing`: a user who is
    removed between a run's request and its start must not fail it for the others.
    """
    if user_ids:
        found = accounts.connections(plan=plan, user_ids=user_ids)
        readable = [c for c in found if c.next_refresh_at is not None]
        missing = sorted(set(user_ids) - {c.user_id for c in readable})
        if missing and not skip_missing:
            of_plan = f" on the plan {plan}" if plan else ""
            named = ", ".join(missing)
            raise AccountsError(f"There is no OpenAI connection{of_plan} to refresh for {named}.")
        return readable
    moment = now or datetime.now(UTC)
    readable = [c for c in accounts.connections(plan=plan) if c.may_be_read(moment)]
    if not only_due:
        return readable
    return [c for c in readable if c.may_join(moment)] if any(c.is_due(moment) for c in readable) else []


async def fetch(
    accounts: Accounts,
    organizations: Organizations,
    raw: RawPages,
    connections: Sequence[Connection],
    asked: Window,
    today: date,
    run_id: str,
    on_progress: ProgressCallback | None = None,
    readings: Sequence[Endpoint] = tuple(BESIDES_COSTS.values()),
    with_directory: bool = True,
    load_ahead: Callable[[Event], None] | None = None,
    newest_sets: Mapping[tuple[str, str], str] | None = None,
) -> Fetched:
    """Reads each connection's window and lands every complete page set; records how each read ended.

    `readings` is what is read besides the costs, and once a day the directory. `load_ahead` is called in a
    thread now and then, to load what has landed while OpenAI is still being asked; its event tells that all
    is read. `newest_sets` are those in the facts, by user and endpoint (`load.newest_sets`): what comes again
    as it was does not land.
    `on_progress(done, total, failed)` is called after each user. A user whose key is another than the
    connection's, or who is removed or purged meanwhile, is left out. Raises `StorageError`.
    """
    planned = [(c, window) for c in connections if (window := window_of(c, asked, today)) is not None]
    fetched = Fetched(users=len(planned))
    landing = _Landing(accounts, raw, run_id, fetched, load_ahead, newest_sets or {})
    # The longest last: one takes the room of many.
    waiting = iter(sorted(planned, key=lambda one: one[1].days))
    room = _Room(DAYS_AT_ONCE)
    done = 0

    async def read(connection: Connection, window: Window) -> None:
        nonlocal done
        began = datetime.now(UTC)
        try:
            organization = organizations.of(connection)
            outcome, sets = await _read_user(
                organization, connection, window, readings, with_directory, began
            )
        except KeyReplaced:
            # The days to read may be others now; the new key begins a refresh of its own.
            _log.info("User %s was left out: the key was replaced", connection.user_id, extra=_of(connection))
            done += 1
            return
        except (AccountsError, VaultError) as error:
            outcome, sets = _ended(connection, window, began, [], "vault", str(error), False), []
        except Exception as error:
            _log.exception("Reading user %s failed unexpectedly", connection.user_id, extra=_of(connection))
            message = f"The pipeline failed ({type(error).__name__}); its log says where."
            outcome, sets = _ended(connection, window, began, [], "internal_error", message, False), []
        done += 1
        await landing.add(outcome, sets)
        if on_progress:
            on_progress(done, len(planned), len(fetched.failures))

    async def read_users() -> None:
        for connection, window in waiting:
            async with room.taken(window.days):
                await read(connection, window)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(MOST_USERS_AT_ONCE, len(planned))):
                group.create_task(read_users())
    except BaseExceptionGroup as errors:
        # One sentence instead of each worker's own.
        if found := errors.subgroup(StorageError):
            raise found.exceptions[0] from None
        raise
    await landing.finish()
    # What Arrow keeps for its next pages is better given to DuckDB now.
    pa.default_memory_pool().release_unused()
    outcomes = organizations.client.outcomes
    fetched.requests = outcomes.total()
    accounts.record_requests(run_id, outcomes)
    return fetched


class _Room:
    """Room for the pages of so many days; whoever needs more than half of it gets half."""

    def __init__(self, days: int) -> None:
        self._most = days // 2
        self._free = days
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, days: int) -> AsyncIterator[None]:
        """Waits for the room of these days, and has it for the length of the block."""
        days = min(days, self._most)
        async with self._freed:
            await self._freed.wait_for(lambda: self._free >= days)
            self._free -= days
        try:
            yield
        finally:
            async with self._freed:
                self._free += days
                self._freed.notify_all()


class _Landing:
    """Gathers what workers read and lands it in batches, off the event loop."""

    def __init__(
        self,
        accounts: Accounts,
        raw: RawPages,
        run_id: str,
        fetched: Fetched,
        load_ahead: Callable[[Event], None] | None,
        newest_sets: Mapping[tuple[str, str], str],
    ) -> None:
        self._accounts = accounts
        self._raw = raw
        self._writer = raw.writer(run_id)
        self._run_id = run_id
        self._fetched = fetched
        self._outcomes: list[Refresh] = []
        self._sets: list[PageSet] = []
        self._bytes = 0
        self._one_at_a_time = asyncio.Lock()
        self._load_ahead = load_ahead
        self._all_read = Event()
        self._newest_sets = newest_sets
        self._loading: asyncio.Task[None] | None = None

    async def add(self, outcome: Refresh, sets: list[PageSet]) -> None:
        self._outcomes.append(outcome)
        self._fetched.bytes += sum(page_set.bytes for page_set in sets)
        for page_set in sets:
            if self._is_unchanged(page_set):
                self._fetched.unchanged_pages += len(page_set.pages)
            else:
                self._sets.append(page_set)
                self._bytes += page_set.bytes
        self._fetched.pages += outcome.pages
        if not outcome.is_complete:
            self._fetched.failures.append(outcome)
        if self._is_full:
            async with self._one_at_a_time:
                # While it waited for its turn, another worker may have landed all there was.
                if self._is_full:
                    await self.flush()

    def _is_unchanged(self, page_set: PageSet) -> bool:
        # If another run loads something else of the user meanwhile, the next refresh sees that and lands.
        known = self._newest_sets.get((page_set.user_id, page_set.pages[0].endpoint.name))
        return known is not None and known == page_set.sha256

    @property
    def _is_full(self) -> bool:
        return self._bytes >= BATCH_BYTES or len(self._outcomes) >= BATCH_OUTCOMES

    async def flush(self) -> None:
        """Lands what waits; no other flush may be going."""
        sets, outcomes = self._sets, self._outcomes
        self._sets, self._outcomes, self._bytes = [], [], 0
        landed = await asyncio.to_thread(self._land, sets, outcomes)
        left_out = {outcome.user_id for outcome in outcomes} - landed
        failures = self._fetched.failures
        failures[:] = [failure for failure in failures if failure.user_id not in left_out]
        if self._load_ahead and (self._loading is None or self._loading.done()):
            await self._loaded()
            self._loading = asyncio.create_task(asyncio.to_thread(self._load_ahead, self._all_read))

    async def finish(self) -> None:
        """Lands the rest, and waits until nothing is being loaded."""
        self._all_read.set()
        await self.flush()
        await self._loaded()

    async def _loaded(self) -> None:
        if self._loading:
            await self._loading

    def _land(self, sets: Sequence[PageSet], outcomes: Sequence[Refresh]) -> set[str]:
        """Lands and records; returns whose reads these were."""
        with told_if_full(self._raw.folder), self._raw.landing():
            # What was read with a key that was replaced or removed meanwhile may be another organization's.
            current = self._accounts.key_versions([outcome.user_id for outcome in outcomes])
            outcomes = [o for o in outcomes if o.key_version == current.get(o.user_id)]
            wanted = {outcome.user_id for outcome in outcomes}
            # Landed before it is recorded: a recorded read with nothing pending is taken for loaded.
            self._writer.land(one for one in sets if one.user_id in wanted)
            with told_if_full("the accounts database"):
                self._accounts.record_refreshes(self._run_id, outcomes)
        for outcome in outcomes:
            _reads.info("user read", extra=_fields(outcome))
        return wanted


def _of(connection: Connection) -> dict[str, str]:
    return {"user_id": connection.user_id}


def _fields(outcome: Refresh) -> dict[str, object]:
    """What the log tells of a read. Never a secret."""
    return {
        "user_id": outcome.user_id,
        "plan": outcome.plan,
        "first_day": outcome.window_start.isoformat(),
        "last_day": (outcome.window_end - timedelta(days=1)).isoformat(),
        "outcome": outcome.reason or "complete",
        "pages": outcome.pages,
        "seconds": round((outcome.finished_at - outcome.started_at).total_seconds(), 3),
    }


async def _read_user(
    organization: OrganizationClient,
    connection: Connection,
    window: Window,
    readings: Sequence[Endpoint],
    with_directory: bool,
    began: datetime,
) -> tuple[Refresh, list[PageSet]]:
    """One user's read. Costs first: if the key is refused, nothing more is asked. Then all else at the same
    time; what could be read lands, whatever failed beside it."""
    sets: list[PageSet] = []
    groupings: dict[str, bool] = {}
    try:
        if window.start == FIRST_DAY:
            window = await _from_first_costs(organization, window)
        known_from = max(connection.connected_at.date(), connection.organization_since or FIRST_DAY)
        costs = await organization.read(COSTS, window, known_from=known_from)
        sets.append(PageSet(connection.user_id, costs))
        wanted = [endpoint for endpoint in readings if _is_taken(connection, endpoint, began)]
        reads = (organization.read(endpoint, window, known_from=known_from) for endpoint in wanted)
        failures = []
        answers = await asyncio.gather(*reads, return_exceptions=True)
        for endpoint, answer in zip(wanted, answers, strict=True):
            dimension = _DIMENSION_OF.get(endpoint.name)
            if not isinstance(answer, BaseException):
                sets.append(PageSet(connection.user_id, answer))
            elif not (dimension and isinstance(answer, UnsupportedRequest)):
                failures.append(answer)
                continue
            if dimension:
                groupings[dimension] = not isinstance(answer, BaseException)
        if failures:
            raise first_failure(failures)
    except OpenAIAdminError as error:
        permanent = isinstance(error, PermanentError)
        ended = _ended(connection, window, began, sets, error.reason, str(error), permanent)
        return replace(ended, cost_groupings=groupings), sets
    directory_read_at = None
    if with_directory and _is_directory_old(connection, began):
        directory_read_at = began
        try:
            sets.append(PageSet(connection.user_id, await organization.directory()))
        except OpenAIAdminError as error:
            # Names are no reason to call costs that were read a failure. A key that may not list them is
            # asked again tomorrow, anything else at the next refresh.
            _log.warning(
                "The names of user %s could not be read: %s", connection.user_id, error, extra=_of(connection)
            )
            directory_read_at = began if isinstance(error, PermanentError) else None
    ended = _ended(connection, window, began, sets)
    return replace(ended, cost_groupings=groupings, directory_read_at=directory_read_at), sets


def _is_directory_old(connection: Connection, now: datetime) -> bool:
    read_at = connection.directory_read_at
    return read_at is None or is_future(read_at, now) or now - read_at >= DIRECTORY_AFTER


def _is_taken(connection: Connection, endpoint: Endpoint, now: datetime) -> bool:
    """Whether to ask for it: not for a split of the costs that the organization's API has refused today."""
    dimension = _DIMENSION_OF.get(endpoint.name)
    if dimension is None or connection.cost_groupings.get(dimension, True):
        return True
    tried = connection.last_attempt_at
    return tried is None or tried.date() != now.date()


async def _from_first_costs(organization: OrganizationClient, window: Window) -> Window:
    """The window from the organization's first costs on, found in ungrouped pages of half a year each."""
    buckets = [
        bucket
        for page in await organization.read(COSTS, window, ())
        for bucket in decode_costs(page.body).data
        if bucket.results
    ]
    if not buckets:
        return trailing_window(window.last)
    return Window(datetime.fromtimestamp(buckets[0].start_time, UTC).date(), window.end)


def _ended(
    connection: Connection,
    window: Window,
    began: datetime,
    sets: list[PageSet],
    reason: str | None = None,
    message: str | None = None,
    permanent: bool = False,
) -> Refresh:
    told = (page.head.organization for page_set in sets for page in page_set.pages)
    organization_id, organization_name = next(filter(None, told), (None, None))
    return Refresh(
        user_id=connection.user_id,
        plan=connection.plan.name,
        window_start=window.start,
        window_end=window.end,
        started_at=began,
        finished_at=datetime.now(UTC),
        pages=sum(len(page_set.pages) for page_set in sets),
        reason=reason,
        message=message,
        permanent=permanent,
        organization_id=organization_id,
        organization_name=organization_name,
        key_version=connection.key_version,
    )
