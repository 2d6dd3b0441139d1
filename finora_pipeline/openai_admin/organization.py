"""Fetches windows of costs and usage of an organization, and its directory of names.

1. A window is fetched in pieces of at most the endpoint's page limit, each with its exact `start_time` and
   `end_time`. A cursor is followed with all parameters of its first request, since OpenAI binds it to them
   (400 `The page token is invalid` otherwise). If OpenAI refuses a cursor, or the pages do not fit together,
   the piece is fetched again from its start.
2. The result is all pages of a window or an `OpenAIAdminError`, never a part of a window. From the first
   bucket on every day has one, also without usage; only today's may be missing. `fetch_newest` returns the
   part of a window that OpenAI does not refuse, and which part that is.
3. Each list of the directory has its own outcome.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Protocol, TypeVar

import msgspec

from finora_pipeline.openai_admin.addresses import BaseAddress
from finora_pipeline.openai_admin.amounts import AmountError
from finora_pipeline.openai_admin.directory import Directory, ListOutcome, Lists, expiry_of, path_part
from finora_pipeline.openai_admin.endpoints import (
    ADMIN_KEYS,
    API_KEYS,
    MEMBERS,
    PROJECTS,
    SERVICE_ACCOUNTS,
    Endpoint,
    Listing,
)
from finora_pipeline.openai_admin.errors import (
    NotFound,
    OpenAIAdminError,
    PageTokenRejected,
    TransientError,
    UnreadableResponse,
)
from finora_pipeline.openai_admin.json_text import ROWS_PER_PAGE
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.lists import ObjectList, check_list
from finora_pipeline.openai_admin.pages import (
    SECONDS_PER_DAY,
    Page,
    PageHead,
    Window,
    check_page,
    unix_seconds,
)

T = TypeVar("T")
QueryParams = tuple[tuple[str, str], ...]

# Directory lists allow 1 to 100 objects a page (OpenAPI document).
LIST_LIMIT = 100
# Per list: there may be thousands of them.
LIST_RETRY_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests to OpenAI and of its answers.

    `concurrency`: requests in flight over all organizations; `per_organization`: of each.
    `timeout_seconds`: silence while connecting or receiving; `request_seconds`: a request with its body;
    `retry_seconds`: a request with its repeats. `first_pause_seconds`: pause before the first repeat,
    doubled each time up to `longest_pause_seconds`. `most_pages`: of a window, against an endless cursor.
    `body_bytes`: of an answer, decompressed; `rows_per_page`: its results.
    """

    concurrency: int = 256
    per_organization: int = 3
    timeout_seconds: float = 30.0
    request_seconds: float = 120.0
    retry_seconds: float = 90.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 20.0
    most_pages: int = 200
    body_bytes: int = 64 * 1024 * 1024
    rows_per_page: int = ROWS_PER_PAGE


class Requests(Protocol):
    """The sender of the requests of all organizations: `client.OpenAIAdminClient`."""

    async def get(
        self,
        address: BaseAddress,
        path: str,
        params: QueryParams,
        key: AdminKey,
        decode: Callable[[bytes, datetime], T],
        *,
        turns: asyncio.Semaphore,
        is_optional: bool = False,
        retry_seconds: float | None = None,
    ) -> T: ...


class _PagesDoNotFit(UnreadableResponse):
    """Each page is valid, but together they are not the requested window."""


class OrganizationClient:
    """Fetches from one organization with its Admin key, at the address the key is bound to."""

    def __init__(self, client: Requests, key: AdminKey, address: BaseAddress, limits: Limits) -> None:
        self._client = client
        self._key = key
        self._limits = limits
        self._turns = asyncio.Semaphore(limits.per_organization)
        self.address = address

    async def fetch(
        self,
        endpoint: Endpoint,
        window: Window,
        group_by: Sequence[str] | None = None,
        known_from: date | None = None,
        *,
        retry_seconds: float | None = None,
    ) -> list[Page]:
        """Fetch all pages of a window, oldest first. Raises `OpenAIAdminError`.

        `group_by` defaults to the endpoint's own. Pieces of a page each are fetched concurrently. Days
        before an answer's first bucket are taken as days before the organization existed, but not from
        `known_from` on, a day on which it is known to have existed. `retry_seconds` can shorten the
        client's limit.
        """
        query = _Query(endpoint, _grouping(endpoint, group_by), known_from, retry_seconds)
        pieces = list(window.split(endpoint.days_per_page))
        if len(pieces) == 1:
            return await self._fetch_piece(query, window)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._fetch_piece(query, piece)) for piece in pieces]
        except ExceptionGroup as failures:
            raise first_failure(failures.exceptions) from None
        pages = [page for task in tasks for page in task.result()]
        try:
            # A piece without buckets is valid only before the first piece with buckets.
            _check_whole(pages, window, datetime.now(UTC).date(), known_from)
        except _PagesDoNotFit as error:
            raise UnreadableResponse(str(error)) from None
        return pages

    async def fetch_newest(
        self,
        endpoint: Endpoint,
        window: Window,
        group_by: Sequence[str] | None = None,
        known_from: date | None = None,
        *,
        retry_seconds: float | None = None,
        today: date | None = None,
    ) -> tuple[list[Page], Window]:
        """Fetch a window, or if OpenAI refuses it (400) what `fetch_accepted` returns.

        Returns the pages and their window. Raises `OpenAIAdminError`.
        """
        try:
            pages = await self.fetch(endpoint, window, group_by, known_from, retry_seconds=retry_seconds)
            return pages, window
        except OpenAIAdminError as error:
            if error.status != 400:
                raise
            refusal = error
        return await self.fetch_accepted(
            endpoint, window, refusal, group_by, known_from, retry_seconds=retry_seconds, today=today
        )

    async def fetch_accepted(
        self,
        endpoint: Endpoint,
        window: Window,
        refusal: OpenAIAdminError,
        group_by: Sequence[str] | None = None,
        known_from: date | None = None,
        *,
        retry_seconds: float | None = None,
        today: date | None = None,
    ) -> tuple[list[Page], Window]:
        """Fetch the newest days that OpenAI does not refuse of a window that it refuses as a whole.

        Returns the pages and their window. A refused end in the future is replaced by now, and today left
        out if that is refused too. Older days are then fetched in pieces; a refused piece is halved until a
        single day is refused. Raises `OpenAIAdminError`: `refusal` if no day is accepted.
        """
        query = _Query(endpoint, _grouping(endpoint, group_by), known_from, retry_seconds)
        today = today or datetime.now(UTC).date()
        newest: list[Page] = []
        start = end = window.end
        if window.start <= today < window.end:
            of_today = Window(today, window.end)
            newest = (
                await self._fetch_unless_refused(query, of_today)
                or await self._fetch_unless_refused(query, of_today, until_now=True)
                or []
            )
            start = today
            end = window.end if newest else today
        # One day first: if it is refused too, the days are not the reason.
        days = endpoint.days_per_page if newest else 1
        while start > window.start:
            piece = Window(max(window.start, start - timedelta(days=days)), start)
            pages = await self._fetch_unless_refused(query, piece)
            if pages is not None:
                newest, start = pages + newest, piece.start
                days = endpoint.days_per_page if days == 1 and start + timedelta(days=1) == end else days
            elif piece.days == 1:
                break
            else:
                days = piece.days // 2
        if start == end:
            raise refusal
        given = Window(start, end)
        try:
            _check_whole(newest, given, today, known_from)
        except _PagesDoNotFit as error:
            raise UnreadableResponse(str(error)) from None
        return newest, given

    async def _fetch_unless_refused(
        self, query: "_Query", piece: Window, until_now: bool = False
    ) -> list[Page] | None:
        """Fetch a piece of a window; None if OpenAI refuses it."""
        try:
            return await self._fetch_piece(query, piece, until_now)
        except OpenAIAdminError as error:
            if error.status == 400:
                return None
            raise

    async def _fetch_piece(self, query: "_Query", window: Window, until_now: bool = False) -> list[Page]:
        attempts = 3
        while True:
            try:
                return await self._follow_cursor(query, window, until_now)
            except (PageTokenRejected, _PagesDoNotFit) as error:
                attempts -= 1
                if not attempts:
                    message = str(error)
                    if isinstance(error, PageTokenRejected):
                        message = "OpenAI kept refusing its own page tokens; this usually passes."
                    raise UnreadableResponse(message) from None

    async def _follow_cursor(self, query: "_Query", window: Window, until_now: bool) -> list[Page]:
        endpoint, limits = query.endpoint, self._limits
        first, end = unix_seconds(window.start), unix_seconds(window.end)
        params = (
            ("start_time", str(first)),
            ("end_time", str(min(end, int(time.time())) if until_now else end)),
            ("bucket_width", "1d"),
            *(("group_by[]", dimension) for dimension in query.grouping),
            ("limit", str(min(endpoint.days_per_page, window.days))),
        )

        def checked(body: bytes, requested_at: datetime) -> tuple[datetime, bytes, PageHead]:
            return requested_at, body, check_page(endpoint, body, limits.rows_per_page)

        pages: list[Page] = []
        cursors: set[str] = set()
        cursor: str | None = None
        last_start = first - 1
        while True:
            requested_at, body, head = await self._client.get(
                self.address,
                endpoint.path,
                (*params, ("page", cursor)) if cursor else params,
                self._key,
                checked,
                turns=self._turns,
                retry_seconds=query.retry_seconds,
            )
            # By the time of the request: a later request has newer data, however slow its answer.
            pages.append(Page(endpoint, window, query.grouping, len(pages) + 1, requested_at, body, head))
            for start in head.starts:
                # A duplicate day would count twice; a day that was not requested would replace another.
                if not last_start < start < end:
                    raise _PagesDoNotFit("OpenAI sent a day that was not requested, or a day twice.")
                last_start = start
            if not head.has_more:
                _check_whole(pages, window, datetime.now(UTC).date(), query.known_from)
                return pages
            if not head.next_page or head.next_page in cursors:
                raise _PagesDoNotFit(
                    "OpenAI said there are more pages but "
                    + ("repeated a page token." if head.next_page else "gave no page token.")
                )
            if len(pages) >= limits.most_pages:
                raise UnreadableResponse(f"OpenAI sent over {limits.most_pages} pages for one window.")
            cursors.add(head.next_page)
            cursor = head.next_page

    async def projects(self) -> list[str]:
        """Fetch the ids of all projects, archived ones included. Raises `OpenAIAdminError`."""
        return [project_id for _, listed in await self._fetch_list(PROJECTS) for project_id in listed.ids]

    async def directory(self, retry_seconds: float | None = None) -> Directory:
        """Fetch projects, members, and each project's API keys and service accounts, with outcomes."""
        projects, members = await asyncio.gather(
            self._fetch_outcome(PROJECTS, "", retry_seconds), self._fetch_outcome(MEMBERS, "", retry_seconds)
        )
        ids = [project_id for page in projects.pages for project_id in check_list(page.body).ids]
        kinds = {listing: Lists(listing, ids) for listing in (API_KEYS, SERVICE_ACCOUNTS)}
        patience = LIST_RETRY_SECONDS if retry_seconds is None else retry_seconds
        await asyncio.gather(
            *(
                self._fetch_lists(lists, patience)
                for lists in kinds.values()
                for _ in range(self._limits.per_organization)
            )
        )
        return Directory([projects, members, *(one for lists in kinds.values() for one in lists.outcomes)])

    async def _fetch_lists(self, lists: Lists, retry_seconds: float) -> None:
        for project_id in lists.waiting:
            if lists.reason_to_stop:
                lists.add(ListOutcome(lists.listing, project_id, [], lists.reason_to_stop))
            else:
                lists.add(await self._fetch_outcome(lists.listing, project_id, retry_seconds))

    async def _fetch_outcome(
        self, listing: Listing, project_id: str, retry_seconds: float | None
    ) -> ListOutcome:
        try:
            pages = await self._fetch_list(listing, project_id, retry_seconds)
        except OpenAIAdminError as error:
            return ListOutcome(listing, project_id, [], error)
        return ListOutcome(listing, project_id, [page for page, _ in pages])

    async def admin_key_expiry(self) -> datetime | None:
        """Fetch the expiry of this Admin key (UTC); None if it never expires or OpenAI does not say.

        Listing Admin keys needs a permission that costs and usage do not need, so any error means None.
        """
        try:
            pages = await self._fetch_list(ADMIN_KEYS, retry_seconds=0)
            return expiry_of(self._key, (page.body for page, _ in pages))
        except (OpenAIAdminError, AmountError, msgspec.DecodeError):
            return None

    async def _fetch_list(
        self, listing: Listing, project_id: str = "", retry_seconds: float | None = None
    ) -> list[tuple[Page, ObjectList]]:
        """Fetch all pages of a list; none for a project that OpenAI deleted."""
        today = datetime.now(UTC).date()
        window = Window(today, today + timedelta(days=1))
        path = listing.path.format(project_id=path_part(project_id)) if project_id else listing.path
        pages: list[tuple[Page, ObjectList]] = []

        def checked(body: bytes, requested_at: datetime) -> tuple[datetime, bytes, ObjectList]:
            return requested_at, body, check_list(body, self._limits.rows_per_page)

        after: str | None = None
        while len(pages) < self._limits.most_pages:
            params = (("limit", str(LIST_LIMIT)), *listing.params)
            if after:
                params = (*params, ("after", after))
            try:
                requested_at, body, listed = await self._client.get(
                    self.address,
                    path,
                    params,
                    self._key,
                    checked,
                    turns=self._turns,
                    is_optional=bool(project_id),
                    retry_seconds=retry_seconds,
                )
            except NotFound:
                if not project_id:
                    raise
                return pages
            grouping = (project_id,) if project_id else ()
            head = PageHead(listed.has_more, None, [], listed.is_canonical)
            pages.append((Page(listing, window, grouping, len(pages) + 1, requested_at, body, head), listed))
            if not listed.has_more or not listed.after or listed.after == after:
                return pages
            after = listed.after
        raise UnreadableResponse(f"OpenAI sent over {self._limits.most_pages} pages of a list.")


@dataclass(frozen=True, slots=True)
class _Query:
    endpoint: Endpoint
    grouping: tuple[str, ...]
    known_from: date | None
    retry_seconds: float | None


def _grouping(endpoint: Endpoint, group_by: Sequence[str] | None) -> tuple[str, ...]:
    return endpoint.group_by if group_by is None else tuple(group_by)


def _check_whole(pages: list[Page], window: Window, today: date, known_from: date | None) -> None:
    """Raise `_PagesDoNotFit` for an answer without some days: they would count as fetched."""
    starts = [start for page in pages for start in page.head.starts]
    past = unix_seconds(min(window.end, today))
    first = unix_seconds(max(window.start, known_from)) if known_from else past
    if starts or first < past:
        first = min([first, *starts[:1]])
        is_whole = sum(start < past for start in starts) >= (past - first) // SECONDS_PER_DAY
    else:
        # Before the organization existed there are no buckets at all.
        is_whole = window.end < today or window.start >= today
    if not is_whole:
        raise _PagesDoNotFit("OpenAI left out days that were requested.")


def first_failure(failures: Sequence[BaseException]) -> BaseException:
    """The failure to report out of several: ours before OpenAI's, permanent before transient."""

    def rank(error: BaseException) -> int:
        return 0 if not isinstance(error, OpenAIAdminError) else 1 + isinstance(error, TransientError)

    return min(failures, key=rank)
