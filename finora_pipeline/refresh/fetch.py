"""Reads the pages of many users and lands them: bounded in memory, one user's failure never another's."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from threading import Event

import pyarrow as pa

from finora_pipeline.accounts.connections import Organizations
from finora_pipeline.accounts.model import (
    AccountsError,
    AddressUnconfirmed,
    Connection,
    KeyReplaced,
    PartFailure,
    PartsRead,
    Refresh,
)
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.accounts.vault import VaultError
from finora_pipeline.disk import StorageError, told_if_full
from finora_pipeline.logs import READS
from finora_pipeline.openai_admin.client import OrganizationClient
from finora_pipeline.openai_admin.endpoints import BESIDES_COSTS, Endpoint
from finora_pipeline.openai_admin.errors import AnswerTooLarge, OpenAIAdminError
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.refresh.user_pages import (
    UserPages,
    ended,
    failed,
    is_directory_due,
    names_too_slow,
    read_costs_and_usage,
    read_names,
)
from finora_pipeline.refresh.windows import FIRST_DAY, window_of
from finora_pipeline.warehouse.raw import PageSet, RawPages

# Pages that wait in memory before they are landed; a raw file is about this long before compression.
BATCH_BYTES = 6_000_000
# Failed reads bring no pages; their outcomes are recorded all the same before they are many.
BATCH_OUTCOMES = 500
# Users read at the same time, for each request that may be in flight: as many as keep the requests going at
# 0.5 s an answer, fewer when windows are long, so that memory holds about as many days of pages.
USERS_A_REQUEST = 0.6
FEWEST_USERS_AT_ONCE = 36
# A window of more days is a history, which may take longer.
LONG_WINDOW_DAYS = 31

ProgressCallback = Callable[[int, int, int], None]
_log = logging.getLogger(__name__)
# A line a user and run, for machines: it goes to the log file of reads alone.
_reads = logging.getLogger(READS)


@dataclass(frozen=True, slots=True)
class Budgets:
    """How much one user may take of a run.

    `user_seconds` and `history_seconds`: of reading the last days, or a history; `user_bytes`: of decoded
    pages. `days_at_once`: the days of all users that are read at the same time, since memory holds their
    pages. `quiet_seconds`: while no user's read has ended for so long, what has been read is published.
    """

    user_seconds: float = 15 * 60.0
    history_seconds: float = 60 * 60.0
    user_bytes: int = 512 * 1024 * 1024
    days_at_once: int = 3_600
    quiet_seconds: float = 30.0

    def seconds_for(self, window: Window) -> float:
        """How long a read of this window may take."""
        return self.history_seconds if window.days > LONG_WINDOW_DAYS else self.user_seconds

    def checked(self, pages: UserPages) -> UserPages:
        """The pages, if they are not too large together. Raises `AnswerTooLarge`."""
        size = sum(page_set.bytes for page_set in pages.sets)
        if size > self.user_bytes:
            raise AnswerTooLarge(
                f"OpenAI sent {size / 1e6:,.0f} MB for this user; at most {self.user_bytes / 1e6:,.0f} MB "
                "are accepted. Nothing of it was kept."
            )
        return pages


BUDGETS = Budgets()


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
    publish_ahead: Callable[[], None] | None = None,
    budgets: Budgets = BUDGETS,
    ask_all: bool = False,
) -> Fetched:
    """Reads each connection's window and lands every complete page set; records how each read ended.

    `readings` is what is read besides the costs, and once a day the directory. `load_ahead` is called in a
    thread now and then, to load what has landed while OpenAI is still being asked; its event is set when all
    is read. `publish_ahead` is called in a thread when only slow users are left. `newest_sets` are those in
    the facts, by user and endpoint (`load.newest_sets`): what comes again unchanged does not land. `ask_all`
    also asks for parts that were refused or failed too recently.
    `on_progress(done, total, failed)` is called after each user. A user whose key is another than the
    connection's, or who is removed or purged in the meantime, is left out. Raises `StorageError`.
    """
    planned = [(c, window) for c in connections if (window := window_of(c, asked, today)) is not None]
    failures = accounts.part_failures([connection.user_id for connection, _ in planned])
    fetched = Fetched(users=len(planned))
    landing = _Landing(accounts, raw, run_id, fetched, load_ahead, newest_sets or {})
    # The longest last: one takes the room of many.
    waiting = iter(sorted(planned, key=lambda one: one[1].days))
    room = _Room(budgets.days_at_once)
    done = 0
    clock = asyncio.get_running_loop().time
    some_ended, last_ended = asyncio.Event(), clock()

    async def read(connection: Connection, window: Window) -> None:
        nonlocal done, last_ended
        began = datetime.now(UTC)
        known = failures.get(connection.user_id, ())
        organization, pages = None, None
        try:
            organization = organizations.of(connection)
            async with asyncio.timeout(budgets.seconds_for(window)):
                pages = await read_costs_and_usage(
                    organization, connection, window, readings, known, began, ask_all
                )
            pages = budgets.checked(pages)
        except KeyReplaced:
            # The days to read may be others now; the new key begins a refresh of its own.
            _log.info("User %s was left out: the key was replaced", connection.user_id, extra=_of(connection))
        except Exception as error:
            pages = UserPages(_not_read(connection, window, began, error, budgets))
        done, last_ended = done + 1, clock()
        some_ended.set()
        if pages is None:
            return
        await landing.add(pages)
        if on_progress:
            on_progress(done, len(planned), len(fetched.failures))
        if organization and with_directory and pages.outcome.is_complete:
            await read_directory(organization, connection, known, began)

    async def read_directory(
        organization: OrganizationClient,
        connection: Connection,
        known: Sequence[PartFailure],
        began: datetime,
    ) -> None:
        # Names come after the costs have landed: no list of them keeps money from being published.
        if not is_directory_due(connection, known, began):
            return
        try:
            async with asyncio.timeout(budgets.user_seconds):
                await landing.add_names(await read_names(organization, connection, known, began))
        except TimeoutError:
            _log.warning("The names of user %s took too long", connection.user_id, extra=_of(connection))
            await landing.add_names(names_too_slow(connection, began, budgets.user_seconds))
        except StorageError:
            raise
        except Exception:
            _log.exception("Reading names of user %s failed", connection.user_id, extra=_of(connection))

    async def read_users() -> None:
        for connection, window in waiting:
            async with room.taken(window.days):
                await read(connection, window)

    # Not cancelled: what it has begun to land or publish goes on in a thread, and may fail.
    all_read = asyncio.Event()

    async def publish_when_quiet(publish: Callable[[], None]) -> None:
        while True:
            await some_ended.wait()
            while not all_read.is_set() and (left := last_ended + budgets.quiet_seconds - clock()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(all_read.wait(), left)
            if all_read.is_set():
                return
            some_ended.clear()
            await landing.land_now()
            _log.info("%d of %d users are published without waiting for the rest", done, len(planned))
            try:
                await asyncio.to_thread(publish)
            except Exception:
                # The run itself publishes at its end, and then fails with the reason.
                _log.exception("Publishing without waiting for slow users failed")
                return

    at_once = max(FEWEST_USERS_AT_ONCE, int(organizations.client.places * USERS_A_REQUEST))
    watch = asyncio.create_task(publish_when_quiet(publish_ahead)) if publish_ahead else None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(planned))):
                group.create_task(read_users())
    except BaseExceptionGroup as errors:
        # One sentence instead of each worker's own.
        if found := errors.subgroup(StorageError):
            raise found.exceptions[0] from None
        raise
    finally:
        all_read.set()
        some_ended.set()
        landing.end_loading()
        if watch:
            await watch
    await landing.finish()
    # What Arrow keeps for its next pages is better given to DuckDB now.
    pa.default_memory_pool().release_unused()
    outcomes = organizations.client.outcomes
    fetched.requests = outcomes.total()
    accounts.record_requests(run_id, outcomes)
    return fetched


def _not_read(
    connection: Connection, window: Window, began: datetime, error: Exception, budgets: Budgets
) -> Refresh:
    """The outcome of a read that failed for another reason than OpenAI's answer to the costs."""
    if isinstance(error, OpenAIAdminError):
        return failed(connection, window, began, error)
    needs_person = False
    if isinstance(error, AddressUnconfirmed):
        reason, message, needs_person = "address_unconfirmed", str(error), True
    elif isinstance(error, (AccountsError, VaultError)):
        reason, message = "vault", str(error)
    elif isinstance(error, TimeoutError):
        minutes = budgets.seconds_for(window) / 60
        reason = "too_slow"
        message = f"OpenAI took longer than {minutes:g} minutes to answer. The next refresh tries again."
    else:
        _log.error(
            "Reading user %s failed unexpectedly", connection.user_id, extra=_of(connection), exc_info=error
        )
        reason = "internal_error"
        message = f"The pipeline failed ({type(error).__name__}); its log says where."
    outcome = ended(connection, window, began, [])
    return replace(outcome, reason=reason, message=message, needs_person=needs_person)


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
        self._parts: list[PartsRead] = []
        # The key that each user's pages were read with.
        self._versions: dict[str, int | None] = {}
        self._bytes = 0
        self._one_at_a_time = asyncio.Lock()
        self._load_ahead = load_ahead
        self._all_read = Event()
        self._newest_sets = newest_sets
        self._loading: asyncio.Task[None] | None = None

    async def add(self, pages: UserPages) -> None:
        """Takes in one user's read."""
        self._outcomes.append(pages.outcome)
        if not pages.outcome.is_complete:
            self._fetched.failures.append(pages.outcome)
        await self._take(pages)

    async def add_names(self, pages: UserPages) -> None:
        """Takes in one user's directory, which comes after the user's read."""
        await self._take(pages)

    async def _take(self, pages: UserPages) -> None:
        if pages.parts:
            self._parts.append(pages.parts)
        self._fetched.bytes += sum(page_set.bytes for page_set in pages.sets)
        for page_set in pages.sets:
            if self._is_unchanged(page_set):
                self._fetched.unchanged_pages += len(page_set.pages)
            else:
                self._sets.append(page_set)
                self._versions[page_set.user_id] = pages.outcome.key_version
                self._bytes += page_set.bytes
        self._fetched.pages += pages.outcome.pages
        if self._is_full:
            async with self._one_at_a_time:
                # While it waited for its turn, another worker may have landed all there was.
                if self._is_full:
                    await self.flush()

    async def land_now(self) -> None:
        """Lands what waits, in its turn, and waits until nothing is being loaded."""
        async with self._one_at_a_time:
            await self.flush()
            await self._loaded()

    def _is_unchanged(self, page_set: PageSet) -> bool:
        # If another run loads something else of the user meanwhile, the next refresh sees that and lands.
        known = self._newest_sets.get((page_set.user_id, page_set.pages[0].endpoint.name))
        return known is not None and known == page_set.sha256

    @property
    def _is_full(self) -> bool:
        return self._bytes >= BATCH_BYTES or len(self._outcomes) + len(self._parts) >= BATCH_OUTCOMES

    async def flush(self) -> None:
        """Lands what waits; no other flush may be going."""
        sets, outcomes, parts = self._sets, self._outcomes, self._parts
        self._sets, self._outcomes, self._parts, self._bytes = [], [], [], 0
        landed = await asyncio.to_thread(self._land, sets, outcomes, parts)
        left_out = {outcome.user_id for outcome in outcomes} - landed
        failures = self._fetched.failures
        failures[:] = [failure for failure in failures if failure.user_id not in left_out]
        if self._load_ahead and (self._loading is None or self._loading.done()):
            await self._loaded()
            self._loading = asyncio.create_task(asyncio.to_thread(self._load_ahead, self._all_read))

    def end_loading(self) -> None:
        """Has what is being loaded ahead stop soon."""
        self._all_read.set()

    async def finish(self) -> None:
        """Lands the rest, and waits until nothing is being loaded."""
        await self.flush()
        await self._loaded()

    async def _loaded(self) -> None:
        if self._loading:
            await self._loading

    def _land(
        self, sets: Sequence[PageSet], outcomes: Sequence[Refresh], parts: Sequence[PartsRead]
    ) -> set[str]:
        """Lands and records; returns whose reads these were."""
        with told_if_full(self._raw.folder), self._raw.landing():
            # What was read with a key that has been replaced or removed may be another organization's.
            users = {*(outcome.user_id for outcome in outcomes), *(one.user_id for one in sets)}
            current = self._accounts.key_versions(sorted(users))
            outcomes = [o for o in outcomes if o.key_version == current.get(o.user_id)]
            # Landed before it is recorded: a recorded read with nothing pending is taken for loaded.
            self._writer.land(one for one in sets if self._versions[one.user_id] == current.get(one.user_id))
            with told_if_full("the accounts database"):
                self._accounts.record_refreshes(self._run_id, outcomes)
                self._accounts.record_parts(parts)
        for outcome in outcomes:
            _reads.info("user read", extra=_fields(outcome))
        return {outcome.user_id for outcome in outcomes}


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
