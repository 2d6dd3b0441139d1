"""One organization as its Admin key shows it: windows of costs and usage, and the directory of names.

1. A window is read as page requests of at most the endpoint's page limit, each with its exact `start_time`
   and `end_time`; a cursor is followed with all parameters of its first request, since OpenAI binds it to
   them (400 `The page token is invalid` otherwise). The range is then asked for again from its start, as it
   is when its pages do not fit together.
2. All pages of a window come back, or an `OpenAIAdminError`: half a window is never returned. Every day has a
   bucket, also one without use, from the first bucket on; only today's may be lacking. `read_newest` gives
   the part of a window that OpenAI gives, and says which.
3. Each list of the directory has an outcome of its own.
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
# What is spent on the repeats of each of many thousands of lists of names.
LIST_RETRY_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard and how long OpenAI may be asked, and how much one answer may hold.

    `concurrency`: requests in flight over all organizations; `per_organization`: of each.
    `timeout_seconds`: of silence, while connecting or receiving; `request_seconds`: of a whole request with
    its body. `retry_seconds`: after which a request is not repeated. `first_pause_seconds`: the pause
    before the first repeat, doubled each time up to `longest_pause_seconds`. `most_pages`: of a window,
    against an endless cursor. `body_bytes`: of an answer, decompressed; `rows_per_page`: its results.
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
    """What makes the requests: the client, for all organizations."""

    async def get(
        self,
        address: BaseAddress,
        path: str,
        params: QueryParams,
        key: AdminKey,
        read: Callable[[bytes, datetime], T],
        *,
        turns: asyncio.Semaphore,
        is_optional: bool = False,
        retry_seconds: float | None = None,
    ) -> T: ...


class _PagesDoNotFit(UnreadableResponse):
    """Each page can be read, but together they are not the window that was asked for."""


class OrganizationClient:
    """Reads one organization with its Admin key, at the address the key is bound to."""

    def __init__(self, client: Requests, key: AdminKey, address: BaseAddress, limits: Limits) -> None:
        self._client = client
        self._key = key
        self._limits = limits
        self._turns = asyncio.Semaphore(limits.per_organization)
        self.address = address

    async def read(
        self,
        endpoint: Endpoint,
        window: Window,
        group_by: Sequence[str] | None = None,
        known_from: date | None = None,
        *,
        retry_seconds: float | None = None,
    ) -> list[Page]:
        """All pages of a window, oldest first. Raises `OpenAIAdminError`; nothing half-read comes back.

        `group_by` defaults to what the endpoint's row says. A long window is asked for in pieces that fit
        one page each, at the same time. Days before an answer's first are taken for those before the
        organization, but not from `known_from` on, a day on which it is known to have existed.
        `retry_seconds` shortens the client's limit, for what is not worth as much patience.
        """
        query = _Query(endpoint, _grouping(endpoint, group_by), known_from, retry_seconds)
        pieces = list(window.split(endpoint.days_per_page))
        if len(pieces) == 1:
            return await self._read_piece(query, window)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._read_piece(query, piece)) for piece in pieces]
        except ExceptionGroup as failures:
            raise first_failure(failures.exceptions) from None
        pages = [page for task in tasks for page in task.result()]
        try:
            # A piece without any day is right only before the first piece that has some.
            _check_whole(pages, window, datetime.now(UTC).date(), known_from)
        except _PagesDoNotFit as error:
            raise UnreadableResponse(str(error)) from None
        return pages

    async def read_newest(
        self,
        endpoint: Endpoint,
        window: Window,
        group_by: Sequence[str] | None = None,
        known_from: date | None = None,
        *,
        retry_seconds: float | None = None,
        today: date | None = None,
    ) -> tuple[list[Page], Window]:
        """As `read`, but of a window that OpenAI refuses (400) all newest days that it gives; with the window
        that they are. Raises `OpenAIAdminError`: the refusal itself if not even one day is given.

        A refused end after today's midnight is tried as now, and else left out. Then older days are asked
        for in pieces, each refused one halved, until a single day is refused.
        """
        try:
            pages = await self.read(endpoint, window, group_by, known_from, retry_seconds=retry_seconds)
            return pages, window
        except OpenAIAdminError as error:
            if error.status != 400:
                raise
            refusal = error
        query = _Query(endpoint, _grouping(endpoint, group_by), known_from, retry_seconds)
        today = today or datetime.now(UTC).date()
        newest: list[Page] = []
        start = end = window.end
        if window.start <= today < window.end:
            of_today = Window(today, window.end)
            newest = (
                await self._given(query, of_today) or await self._given(query, of_today, until_now=True) or []
            )
            start = today
            end = window.end if newest else today
        # One day first: if that is refused too, the days are not the reason.
        days = endpoint.days_per_page if newest else 1
        while start > window.start:
            piece = Window(max(window.start, start - timedelta(days=days)), start)
            pages = await self._given(query, piece)
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

    async def _given(self, query: "_Query", piece: Window, until_now: bool = False) -> list[Page] | None:
        """The pages of a piece of a window; None if OpenAI refuses it."""
        try:
            return await self._read_piece(query, piece, until_now)
        except OpenAIAdminError as error:
            if error.status == 400:
                return None
            raise

    async def _read_piece(self, query: "_Query", window: Window, until_now: bool = False) -> list[Page]:
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

        def checked(body: bytes, asked_at: datetime) -> tuple[datetime, bytes, PageHead]:
            return asked_at, body, check_page(endpoint, body, limits.rows_per_page)

        pages: list[Page] = []
        cursors: set[str] = set()
        cursor: str | None = None
        last_start = first - 1
        while True:
            asked_at, body, head = await self._client.get(
                self.address,
                endpoint.path,
                (*params, ("page", cursor)) if cursor else params,
                self._key,
                checked,
                turns=self._turns,
                retry_seconds=query.retry_seconds,
            )
            # What was asked for later is newer, however long each answer took.
            pages.append(Page(endpoint, window, query.grouping, len(pages) + 1, asked_at, body, head))
            for start in head.starts:
                # A day twice would count twice; a day that was not asked for would replace another.
                if not last_start < start < end:
                    raise _PagesDoNotFit("OpenAI sent other days than those asked for, or one twice.")
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
        """The ids of the organization's projects, archived ones included. Raises `OpenAIAdminError`."""
        return [project_id for _, listed in await self._list(PROJECTS) for project_id in listed.ids]

    async def directory(self, retry_seconds: float | None = None) -> Directory:
        """Projects, members, and each project's API keys and service accounts, each list with its outcome."""
        projects, members = await asyncio.gather(
            self._outcome(PROJECTS, "", retry_seconds), self._outcome(MEMBERS, "", retry_seconds)
        )
        ids = [project_id for page in projects.pages for project_id in check_list(page.body).ids]
        kinds = {listing: Lists(listing, iter(ids)) for listing in (API_KEYS, SERVICE_ACCOUNTS)}
        patience = LIST_RETRY_SECONDS if retry_seconds is None else retry_seconds
        await asyncio.gather(
            *(
                self._read_lists(lists, patience)
                for lists in kinds.values()
                for _ in range(self._limits.per_organization)
            )
        )
        return Directory([projects, members, *(one for lists in kinds.values() for one in lists.outcomes)])

    async def _read_lists(self, lists: Lists, retry_seconds: float) -> None:
        for project_id in lists.waiting:
            if lists.reason_to_stop:
                lists.add(ListOutcome(lists.listing, project_id, [], lists.reason_to_stop))
            else:
                lists.add(await self._outcome(lists.listing, project_id, retry_seconds))

    async def _outcome(self, listing: Listing, project_id: str, retry_seconds: float | None) -> ListOutcome:
        try:
            pages = await self._list(listing, project_id, retry_seconds)
        except OpenAIAdminError as error:
            return ListOutcome(listing, project_id, [], error)
        return ListOutcome(listing, project_id, [page for page, _ in pages])

    async def admin_key_expiry(self) -> datetime | None:
        """When this Admin key ends to be valid; None where it never does or OpenAI does not say.

        To list Admin keys takes a permission that costs and usage do not: a refusal is not a failure.
        """
        try:
            pages = await self._list(ADMIN_KEYS, retry_seconds=0)
            return expiry_of(self._key, (page.body for page, _ in pages))
        except (OpenAIAdminError, AmountError, msgspec.DecodeError):
            return None

    async def _list(
        self, listing: Listing, project_id: str = "", retry_seconds: float | None = None
    ) -> list[tuple[Page, ObjectList]]:
        """All pages of a list. A project that OpenAI no longer knows has none."""
        today = datetime.now(UTC).date()
        window = Window(today, today + timedelta(days=1))
        path = listing.path.format(project_id=path_part(project_id)) if project_id else listing.path
        pages: list[tuple[Page, ObjectList]] = []

        def checked(body: bytes, asked_at: datetime) -> tuple[datetime, bytes, ObjectList]:
            return asked_at, body, check_list(body, self._limits.rows_per_page)

        after: str | None = None
        while len(pages) < self._limits.most_pages:
            params = (("limit", str(LIST_LIMIT)), *listing.params)
            if after:
                params = (*params, ("after", after))
            try:
                asked_at, body, listed = await self._client.get(
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
            pages.append((Page(listing, window, grouping, len(pages) + 1, asked_at, body, head), listed))
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
    """Refuses an answer that says it is complete and leaves days out: they would pass for read."""
    starts = [start for page in pages for start in page.head.starts]
    past = unix_seconds(min(window.end, today))
    first = unix_seconds(max(window.start, known_from)) if known_from else past
    if starts or first < past:
        first = min([first, *starts[:1]])
        is_whole = sum(start < past for start in starts) >= (past - first) // SECONDS_PER_DAY
    else:
        # Of long ago there may be nothing at all: the time before the organization.
        is_whole = window.end < today or window.start >= today
    if not is_whole:
        raise _PagesDoNotFit("OpenAI left out days that were asked for.")


def first_failure(failures: Sequence[BaseException]) -> BaseException:
    """The one failure to report of several at once: our own before OpenAI's, a permanent one before a passing
    one."""

    def rank(error: BaseException) -> int:
        return 0 if not isinstance(error, OpenAIAdminError) else 1 + isinstance(error, TransientError)

    return min(failures, key=rank)
