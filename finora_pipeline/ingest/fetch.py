"""The fetch of many users at once, bounded in memory; one user's failure never affects another."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from finora_pipeline.accounts.model import (
    AccountsError,
    AddressUnconfirmed,
    Connection,
    KeyReplaced,
    PartFailure,
    Refresh,
)
from finora_pipeline.accounts.onboarding import Organizations
from finora_pipeline.accounts.vault import VaultError
from finora_pipeline.data_folder.disk import StorageError
from finora_pipeline.ingest.landing import Fetched, Landing
from finora_pipeline.ingest.user_pages import (
    UserPages,
    ended,
    failed,
    fetch_costs_and_usage,
    fetch_names,
    is_directory_due,
    names_too_slow,
)
from finora_pipeline.ingest.windows import window_of
from finora_pipeline.openai_admin.client import OrganizationClient
from finora_pipeline.openai_admin.endpoints import EXTRA_ENDPOINTS, Endpoint
from finora_pipeline.openai_admin.errors import AnswerTooLarge, OpenAIAdminError
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.warehouse.machine import release_arrow_memory

# Users fetched at once per request in flight: enough to keep all requests busy at 0.5 s per response.
# `days_at_once` lowers it for long windows.
USERS_A_REQUEST = 0.6
FEWEST_USERS_AT_ONCE = 36
# A longer window is a history, which may take longer.
LONG_WINDOW_DAYS = 31

# Called after each user with the numbers of users done, in total, and failed.
OnUserDone = Callable[[int, int, int], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of what one user may take in a run.

    `user_seconds` and `history_seconds` limit a fetch of the last days and of a history; `user_bytes` limits
    decoded pages. `days_at_once`: days of all users fetched at the same time, since memory holds their pages.
    `quiet_seconds`: when no user finished for this long, landed pages are published without the rest.
    """

    user_seconds: float = 15 * 60.0
    history_seconds: float = 60 * 60.0
    user_bytes: int = 512 * 1024 * 1024
    days_at_once: int = 3_600
    quiet_seconds: float = 30.0

    def seconds_for(self, window: Window) -> float:
        """The time limit for a fetch of this window."""
        return self.history_seconds if window.days > LONG_WINDOW_DAYS else self.user_seconds

    def checked(self, pages: UserPages) -> UserPages:
        """The pages unchanged. Raises `AnswerTooLarge` if they exceed `user_bytes` in total."""
        size = sum(page_set.bytes for page_set in pages.sets)
        if size > self.user_bytes:
            raise AnswerTooLarge(
                f"OpenAI sent {size / 1e6:,.0f} MB for this user; at most {self.user_bytes / 1e6:,.0f} MB "
                "are accepted. None of it was stored."
            )
        return pages


BUDGETS = Budgets()


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What a run fetches: each connection's window, and the endpoints in addition to costs.

    `failures` holds optional parts that recently failed, by user id; `retry_parts` fetches them without
    waiting for their next attempt. `with_directory`: names too, once a day.
    """

    windows: Sequence[tuple[Connection, Window]]
    endpoints: Sequence[Endpoint] = tuple(EXTRA_ENDPOINTS.values())
    with_directory: bool = True
    failures: Mapping[str, Sequence[PartFailure]] = field(default_factory=dict[str, Sequence[PartFailure]])
    retry_parts: bool = False
    budgets: Budgets = BUDGETS

    @classmethod
    def of(cls, connections: Sequence[Connection], asked: Window, today: date, **options: Any) -> "FetchPlan":
        """The plan for these connections, without those whose plans keep none of the days asked for."""
        windows = [(c, window) for c in connections if (window := window_of(c, asked, today)) is not None]
        # Longest last: one long window takes the memory of many short ones.
        return cls(sorted(windows, key=lambda one: one[1].days), **options)


async def fetch(
    organizations: Organizations,
    plan: FetchPlan,
    landing: Landing,
    on_user_done: OnUserDone | None = None,
) -> Fetched:
    """Fetch each connection's window, land complete page sets and record each user's outcome.

    While only slow users are left, landed pages are published. Users whose key was replaced or removed
    during the fetch are skipped. Raises `StorageError`.
    """
    return await _Fetch(organizations, plan, landing, on_user_done).run()


class _Fetch:
    """One call of `fetch`: its workers, and the task that publishes when only slow users are left."""

    def __init__(
        self,
        organizations: Organizations,
        plan: FetchPlan,
        landing: Landing,
        on_user_done: OnUserDone | None,
    ) -> None:
        self._organizations = organizations
        self._plan = plan
        self._landing = landing
        self._on_user_done = on_user_done
        self._waiting = iter(plan.windows)
        self._days = _DayBudget(plan.budgets.days_at_once)
        self._done = 0
        self._clock = asyncio.get_running_loop().time
        self._some_ended, self._last_ended = asyncio.Event(), self._clock()
        self._all_fetched = asyncio.Event()

    async def run(self) -> Fetched:
        fetched = self._landing.fetched
        fetched.users = users = len(self._plan.windows)
        at_once = max(FEWEST_USERS_AT_ONCE, int(self._organizations.client.places * USERS_A_REQUEST))
        # Never cancelled: a landing or publish it began continues in a thread and may fail.
        watch = asyncio.create_task(self._publish_when_quiet())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, users)):
                    group.create_task(self._fetch_users())
        except BaseExceptionGroup as errors:
            # A single error for all workers.
            if found := errors.subgroup(StorageError):
                raise found.exceptions[0] from None
            raise
        finally:
            self._all_fetched.set()
            self._some_ended.set()
            self._landing.end_loading()
            await watch
        await self._landing.finish()
        # Arrow keeps freed memory for later pages; DuckDB needs it now.
        release_arrow_memory()
        outcomes = self._organizations.client.outcomes
        fetched.requests = outcomes.total()
        self._landing.record_requests(outcomes)
        return fetched

    async def _fetch_users(self) -> None:
        for connection, window in self._waiting:
            async with self._days.taken(window.days):
                await self._fetch_user(connection, window)

    async def _fetch_user(self, connection: Connection, window: Window) -> None:
        plan = self._plan
        began = datetime.now(UTC)
        known = plan.failures.get(connection.user_id, ())
        organization, pages = None, None
        try:
            organization = self._organizations.of(connection)
            async with asyncio.timeout(plan.budgets.seconds_for(window)):
                pages = await fetch_costs_and_usage(
                    organization, connection, window, plan.endpoints, known, began, plan.retry_parts
                )
            pages = plan.budgets.checked(pages)
        except KeyReplaced:
            # The new key starts a refresh of its own, perhaps of another window.
            _log.info(
                "User %s was skipped: the key was replaced",
                connection.user_id,
                extra=_log_fields(connection),
            )
        except Exception as error:
            pages = UserPages(_failure(connection, window, began, error, plan.budgets))
        self._done, self._last_ended = self._done + 1, self._clock()
        self._some_ended.set()
        if pages is None:
            return
        await self._landing.add(pages)
        if self._on_user_done:
            self._on_user_done(self._done, len(plan.windows), len(self._landing.fetched.failures))
        if organization and plan.with_directory and pages.outcome.is_complete:
            await self._fetch_directory(organization, connection, known, began)

    async def _fetch_directory(
        self,
        organization: OrganizationClient,
        connection: Connection,
        known: Sequence[PartFailure],
        began: datetime,
    ) -> None:
        # Names are fetched after the costs have landed, so that no list delays publishing costs.
        if not is_directory_due(connection, known, began):
            return
        seconds = self._plan.budgets.user_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._landing.add_names(await fetch_names(organization, connection, known, began))
        except TimeoutError:
            _log.warning(
                "Fetching names of user %s took too long", connection.user_id, extra=_log_fields(connection)
            )
            await self._landing.add_names(names_too_slow(connection, began, seconds))
        except StorageError:
            raise
        except Exception:
            _log.exception(
                "Fetching names of user %s failed", connection.user_id, extra=_log_fields(connection)
            )

    async def _publish_when_quiet(self) -> None:
        quiet = self._plan.budgets.quiet_seconds
        while True:
            await self._some_ended.wait()
            while not self._all_fetched.is_set() and (left := self._last_ended + quiet - self._clock()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._all_fetched.wait(), left)
            if self._all_fetched.is_set():
                return
            self._some_ended.clear()
            _log.info(
                "%d of %d users are published without waiting for the rest",
                self._done,
                len(self._plan.windows),
            )
            try:
                await self._landing.publish()
            except Exception:
                # The run publishes at its end, and fails then if the reason persists.
                _log.exception("Publishing without waiting for slow users failed")
                return


def _failure(
    connection: Connection, window: Window, began: datetime, error: Exception, budgets: Budgets
) -> Refresh:
    """The outcome of a failed fetch: OpenAI's error, the vault's, a timeout, or an unexpected one."""
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
        message = f"OpenAI took longer than {minutes:g} minutes to respond. The next refresh tries again."
    else:
        _log.error(
            "Fetching user %s failed unexpectedly",
            connection.user_id,
            extra=_log_fields(connection),
            exc_info=error,
        )
        reason = "internal_error"
        message = f"The pipeline failed ({type(error).__name__}). The log shows where."
    outcome = ended(connection, window, began, [])
    return replace(outcome, reason=reason, message=message, needs_person=needs_person)


class _DayBudget:
    """Days of pages that fit into memory; one window takes at most half of them."""

    def __init__(self, days: int) -> None:
        self._most = days // 2
        self._free = days
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, days: int) -> AsyncGenerator[None]:
        """Wait until these days fit, and reserve them within the block."""
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


def _log_fields(connection: Connection) -> dict[str, str]:
    return {"user_id": connection.user_id}
