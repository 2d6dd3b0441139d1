"""Landing: fetched page sets go to raw storage in batches, together with the outcomes of their users."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Event

from finora_pipeline.accounts.model import PartOutcomes, Refresh
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.data_folder.disk import translate_disk_full
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.ingest.run_log import USERS_LOG
from finora_pipeline.ingest.user_pages import UserPages
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import (
    KINDS,
    UnchangedSet,
    check_days,
    load_ahead,
    load_pending,
    newest_sets,
)
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.raw import PageSet, RawPages

# Bytes of pages gathered in memory before landing; about the size of a raw file before compression.
BATCH_BYTES = 6_000_000
# Failed fetches bring no pages; their outcomes are recorded before they are too many.
BATCH_OUTCOMES = 500
# One line per user and run, written only to the log of runs.
_users_log = logging.getLogger(USERS_LOG)


@dataclass(slots=True)
class Fetched:
    """Counts of a fetch: users, pages and bytes received, requests, and the failed users.

    `unchanged_pages` are those equal to the loaded ones, which do not land again.
    """

    users: int = 0
    pages: int = 0
    unchanged_pages: int = 0
    bytes: int = 0
    requests: int = 0
    failures: list[Refresh] = field(default_factory=list[Refresh])

    @property
    def reasons(self) -> Counter[str]:
        """The number of failed users by reason."""
        return Counter(failure.reason for failure in self.failures if failure.reason)


class Landing:
    """Gathers the pages that workers fetch and lands them in batches, off the event loop.

    `user_ids` are the users the run fetches; their page sets that are loaded already do not land again.
    `fetched` holds the counts so far.
    """

    def __init__(
        self, accounts: Accounts, warehouse: Warehouse, run_id: str, user_ids: Sequence[str]
    ) -> None:
        self.fetched = Fetched()
        self._accounts = accounts
        self._warehouse = warehouse
        self._raw = RawPages(warehouse.raw)
        self._writer = self._raw.writer(run_id)
        self._run_id = run_id
        self._outcomes: list[Refresh] = []
        self._sets: list[PageSet] = []
        self._unchanged: list[UnchangedSet] = []
        self._parts: list[PartOutcomes] = []
        # The key version used for each user's pages.
        self._versions: dict[str, int | None] = {}
        self._bytes = 0
        self._one_at_a_time = asyncio.Lock()
        self._all_fetched = Event()
        self._newest_sets = newest_sets(warehouse, user_ids)
        self._loading: asyncio.Task[None] | None = None

    async def add(self, pages: UserPages) -> None:
        """Add the pages of a single user's costs and usage."""
        self._outcomes.append(pages.outcome)
        if not pages.outcome.is_complete:
            self.fetched.failures.append(pages.outcome)
        await self._take(pages)

    async def add_names(self, pages: UserPages) -> None:
        """Add the pages of a single user's directory."""
        await self._take(pages)

    async def _take(self, pages: UserPages) -> None:
        if pages.parts:
            self._parts.append(pages.parts)
        self.fetched.bytes += sum(page_set.bytes for page_set in pages.sets)
        for page_set in pages.sets:
            if self._is_unchanged(page_set):
                self.fetched.unchanged_pages += len(page_set.pages)
                self._unchanged.append(_without_pages(page_set))
            else:
                self._sets.append(page_set)
                self._bytes += page_set.bytes
            self._versions[page_set.user_id] = pages.outcome.key_version
        self.fetched.pages += pages.outcome.pages
        if self._is_full:
            async with self._one_at_a_time:
                # Another worker may have landed everything during the wait.
                if self._is_full:
                    await self._flush()

    async def publish(self) -> None:
        """Land, load and publish the gathered pages during the run. Raises `StorageError`."""
        async with self._one_at_a_time:
            await self.finish()
        await asyncio.to_thread(self.load_and_publish)

    def load_and_publish(self) -> None:
        """Load all landed pages, refresh metrics and publish."""
        load_pending(self._warehouse, KINDS, self._run_id)
        refresh_metrics(self._warehouse, datetime.now(UTC).date())
        publish_refreshes(self._accounts, self._warehouse)

    def record_requests(self, outcomes: Mapping[str, int]) -> None:
        """Store the run's number of requests by outcome."""
        self._accounts.refreshes.record_requests(self._run_id, outcomes)

    def _is_unchanged(self, page_set: PageSet) -> bool:
        # If another run loads other pages of the user now, the next refresh lands these again.
        known = self._newest_sets.get((page_set.user_id, page_set.pages[0].endpoint.name))
        return known is not None and known == page_set.sha256

    @property
    def _is_full(self) -> bool:
        return self._bytes >= BATCH_BYTES or len(self._outcomes) + len(self._parts) >= BATCH_OUTCOMES

    async def _flush(self) -> None:
        """Land the gathered pages; the caller holds the lock."""
        sets, outcomes, parts = self._sets, self._outcomes, self._parts
        self._sets, self._outcomes, self._parts, self._bytes = [], [], [], 0
        landed = await asyncio.to_thread(self._land, sets, outcomes, parts)
        left_out = {outcome.user_id for outcome in outcomes} - landed
        failures = self.fetched.failures
        failures[:] = [failure for failure in failures if failure.user_id not in left_out]
        if self._loading is None or self._loading.done():
            await self._loaded()
            self._loading = asyncio.create_task(asyncio.to_thread(self.load_ahead, self._all_fetched))

    def load_ahead(self, all_fetched: Event) -> None:
        """Load landed pages while others still arrive, until soon after the event is set."""
        load_ahead(self._warehouse, all_fetched)

    def end_loading(self) -> None:
        """Stop loading ahead soon: the rest loads faster with all cores."""
        self._all_fetched.set()

    async def finish(self) -> None:
        """Land the rest, wait until nothing is being loaded, and record the unchanged sets."""
        await self._flush()
        await self._loaded()
        unchanged, self._unchanged = self._unchanged, []
        await asyncio.to_thread(self._check_days, unchanged)

    async def _loaded(self) -> None:
        if self._loading:
            await self._loading

    def _check_days(self, unchanged: Sequence[UnchangedSet]) -> None:
        """Record the fetch of unchanged sets, except those of keys replaced or removed since."""
        current = self._accounts.connections.key_versions(sorted({one.user_id for one in unchanged}))
        kept = [one for one in unchanged if self._versions[one.user_id] == current.get(one.user_id)]
        check_days(self._warehouse, kept)

    def _land(
        self, sets: Sequence[PageSet], outcomes: Sequence[Refresh], parts: Sequence[PartOutcomes]
    ) -> set[str]:
        """Land the page sets and record the outcomes; return the users whose keys are current."""
        with translate_disk_full(self._raw.folder), self._raw.landing():
            # Pages fetched with a key that has been replaced or removed may be another organization's.
            users = {*(outcome.user_id for outcome in outcomes), *(one.user_id for one in sets)}
            current = self._accounts.connections.key_versions(sorted(users))
            outcomes = [o for o in outcomes if o.key_version == current.get(o.user_id)]
            # Landed before recorded: a recorded refresh without pending pages counts as loaded.
            self._writer.land(one for one in sets if self._versions[one.user_id] == current.get(one.user_id))
            with translate_disk_full("the accounts database"):
                self._accounts.refreshes.record(self._run_id, outcomes)
                self._accounts.refreshes.record_parts(parts)
        for outcome in outcomes:
            _users_log.info("user fetched", extra=_log_fields(outcome))
        return {outcome.user_id for outcome in outcomes}


def _without_pages(page_set: PageSet) -> UnchangedSet:
    starts = sorted({start for page in page_set.pages for start in page.head.starts})
    return UnchangedSet(
        user_id=page_set.user_id,
        endpoint=page_set.pages[0].endpoint.name,
        days=[datetime.fromtimestamp(start, UTC).date() for start in starts],
        fetched_at=page_set.fetched_at,
        sha256=page_set.sha256,
    )


def _log_fields(outcome: Refresh) -> dict[str, object]:
    """The fields of a log line about a user, without secrets."""
    return {
        "user_id": outcome.user_id,
        "plan": outcome.plan,
        "first_day": outcome.window_start.isoformat(),
        "last_day": (outcome.window_end - timedelta(days=1)).isoformat(),
        "outcome": outcome.reason or "complete",
        "pages": outcome.pages,
        "seconds": round((outcome.finished_at - outcome.started_at).total_seconds(), 3),
    }
