"""Reads the pages of many OpenAI organizations at once. The only module that imports httpx.

Contract
1. Only GET below `/organization/`; nothing is ever changed and no model is called.
2. A window is read as page requests of at most the endpoint's page limit, each with its exact `start_time`
   and `end_time`; a cursor is followed with all parameters of its first request, since OpenAI binds it to
   them (400 `The page token is invalid` otherwise). The range is then asked for again from its start, as it
   is when its pages do not fit together.
3. All pages of a window come back, or an `OpenAIAdminError`: there is no half-read window. Every day has a
   bucket, also one without use, from the first bucket on; only today's may be lacking.
4. 408, 409, 429, 5xx, 404 on a valid path, time-outs, broken connections and unreadable bodies are asked
   again with growing, jittered pauses, `Retry-After` first, until `Limits.retry_seconds` are spent.
   401 and 403 end at once.
5. No answer's text leaves this module before keys are redacted, and httpx's own errors, which hold the
   request with its key, are never chained.
"""

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TypeVar

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from finora_pipeline.openai_admin.endpoints import API_KEYS, MEMBERS, PROJECTS, Endpoint, Listing
from finora_pipeline.openai_admin.errors import (
    InsufficientPermissions,
    InvalidKey,
    NotFound,
    OpenAIAdminError,
    RateLimited,
    TransientError,
    Unreachable,
    UnreadableResponse,
    UnsupportedRequest,
)
from finora_pipeline.openai_admin.keys import AdminKey, redact
from finora_pipeline.openai_admin.pages import (
    SECONDS_PER_DAY,
    Page,
    PageHead,
    Window,
    check_page,
    check_text,
    unix_seconds,
)

T = TypeVar("T")
QueryParams = tuple[tuple[str, str], ...]

# Directory lists allow 1 to 100 objects a page (OpenAPI document).
LIST_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard and how long OpenAI may be asked.

    `concurrency`: requests in flight over all organizations; `per_organization`: of one of them.
    `timeout_seconds`: of one request. `retry_seconds`: after which a request is no longer repeated.
    `first_pause_seconds`: the pause before the first repeat, doubled each time up to
    `longest_pause_seconds`. `most_pages`: of one window, against an endless cursor.
    """

    concurrency: int = 32
    per_organization: int = 3
    timeout_seconds: float = 30.0
    retry_seconds: float = 90.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 20.0
    most_pages: int = 200


_HEADERS = [
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"User-Agent", b"finora-pipeline"),
]


class _PageTokenRejected(TransientError):
    """The cursor is no longer good; the window must be asked for again from its start."""

    reason = "page_token_rejected"


class _PagesDoNotFit(UnreadableResponse):
    """Each page can be read, but together they are not the window that was asked for."""


class _ListedObject(msgspec.Struct, frozen=True):
    id: str


class _ObjectList(msgspec.Struct, frozen=True):
    data: list[_ListedObject]
    has_more: bool = False
    last_id: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    """The three shapes of an error: `{"error": {"message": …}}`, `{"error": "…"}`, `{"message": …}`."""

    error: str | dict[str, object] | None = None
    message: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.error, dict):
            return str(self.error.get("message") or "")
        return self.error or self.message or ""


class OpenAIAdminClient:
    """One for a run: holds the connections and the limits for all organizations.

    async with open_client("https://api.openai.com/v1") as client:
        pages = await client.organization(key).read(COSTS, Window(start, end))
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, base_url: str, limits: Limits) -> None:
        self._transport = transport
        self._base_url = base_url.rstrip("/")
        self._limits = limits
        self._in_flight = asyncio.Semaphore(limits.concurrency)
        self._extensions = {"timeout": httpx.Timeout(limits.timeout_seconds).as_dict()}
        # Requests made, by how each ended: the answer's status, timeout, unreachable or unreadable.
        self.outcomes: Counter[str] = Counter()

    @property
    def base_url(self) -> str:
        """The address that organizations are read at unless they have one of their own."""
        return self._base_url

    def organization(self, key: AdminKey, base_url: str | None = None) -> "OrganizationClient":
        """A client that reads the one organization the key belongs to, at the address it is bound to."""
        return OrganizationClient(self, key, self._limits, base_url or self._base_url)

    async def get(
        self,
        path: str,
        params: QueryParams,
        key: AdminKey,
        base_url: str,
        read: Callable[[bytes, datetime], T],
        is_optional: bool = False,
    ) -> T:
        """What `read` makes of a successful answer and of the moment when it was asked for; repeated as the
        contract says, but not for a 404 on something optional.

        `read` raises `UnreadableResponse` for a body that is not what was asked for; like any passing
        fault, that is asked for again. Raises `OpenAIAdminError`.
        """
        started = time.monotonic()
        pause = self._limits.first_pause_seconds
        while True:
            try:
                body, asked_at = await self._get_once(base_url + path, params, key)
                try:
                    answer = read(body, asked_at)
                except UnreadableResponse:
                    self.outcomes["unreadable"] += 1
                    raise
                self.outcomes["200"] += 1
                return answer
            except (RateLimited, Unreachable, UnreadableResponse) as error:
                if is_optional and isinstance(error, NotFound):
                    raise
                # Never without a pause, whatever `Retry-After` says.
                wait = max(error.retry_after or 0, pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, self._limits.longest_pause_seconds)
                if time.monotonic() - started + wait > self._limits.retry_seconds:
                    raise
            await asyncio.sleep(wait)

    async def _get_once(self, address: str, params: QueryParams, key: AdminKey) -> tuple[bytes, datetime]:
        async with self._in_flight:
            asked_at = datetime.now(UTC)
            try:
                answer = await self._transport.handle_async_request(
                    httpx.Request(
                        "GET",
                        _url(address, params),
                        headers=[*_HEADERS, (b"Authorization", b"Bearer " + key.reveal().encode())],
                        extensions=self._extensions,
                    )
                )
                try:
                    body = await answer.aread()
                finally:
                    await answer.aclose()
            except httpx.ConnectTimeout:
                self.outcomes["unreachable"] += 1
                # The transport says so of refused connections and unknown hosts, too.
                raise Unreachable("OpenAI could not be reached; try again later.") from None
            except httpx.TimeoutException:
                self.outcomes["timeout"] += 1
                raise Unreachable(
                    f"OpenAI did not answer within {self._limits.timeout_seconds:g} s; try again later."
                ) from None
            except (httpx.TransportError, httpx.DecodingError, aiohttp.ClientError) as error:
                # aiohttp's own errors, where the transport does not translate them, hold the request's key.
                self.outcomes["unreachable"] += 1
                raise Unreachable(
                    f"OpenAI could not be reached ({type(error).__name__}); try again later."
                ) from None
        if answer.status_code != 200:
            self.outcomes[str(answer.status_code)] += 1
            raise _error_of(answer.status_code, body, answer.headers)
        if key.reveal().encode() in body:
            self.outcomes["unreadable"] += 1
            raise UnreadableResponse("The answer repeats the key that asked for it, so it is not kept.")
        return body, asked_at


class OrganizationClient:
    """Reads one organization with its Admin key."""

    def __init__(self, client: OpenAIAdminClient, key: AdminKey, limits: Limits, base_url: str) -> None:
        self._client = client
        self._key = key
        self._base_url = base_url.rstrip("/")
        self._limits = limits
        self._in_flight = asyncio.Semaphore(limits.per_organization)

    async def read(
        self,
        endpoint: Endpoint,
        window: Window,
        group_by: Sequence[str] | None = None,
        known_from: date | None = None,
    ) -> list[Page]:
        """All pages of a window, oldest first. Raises `OpenAIAdminError`; nothing half-read comes back.

        `group_by` defaults to what the endpoint's row says. A long window is asked for in pieces that fit
        one page each, at the same time. Days before an answer's first are taken for those before the
        organization, but not from `known_from` on, a day on which it is known to have existed.
        """
        grouping = endpoint.group_by if group_by is None else tuple(group_by)
        pieces = list(window.split(endpoint.days_per_page))
        if len(pieces) == 1:
            return await self._read_piece(endpoint, window, grouping, known_from)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._read_piece(endpoint, p, grouping, known_from)) for p in pieces
                ]
        except ExceptionGroup as failures:
            raise first_failure(failures.exceptions) from None
        pages = [page for task in tasks for page in task.result()]
        try:
            # A piece without any day is right only before the first piece that has some.
            _check_whole(pages, window, datetime.now(UTC).date(), known_from)
        except _PagesDoNotFit as error:
            raise UnreadableResponse(str(error)) from None
        return pages

    async def _read_piece(
        self, endpoint: Endpoint, window: Window, grouping: tuple[str, ...], known_from: date | None
    ) -> list[Page]:
        attempts = 3
        while True:
            try:
                return await self._follow_cursor(endpoint, window, grouping, known_from)
            except (_PageTokenRejected, _PagesDoNotFit) as error:
                attempts -= 1
                if not attempts:
                    told = str(error)
                    if isinstance(error, _PageTokenRejected):
                        told = "OpenAI kept refusing its own page tokens; the next refresh tries again."
                    raise UnreadableResponse(told) from None

    async def _follow_cursor(
        self, endpoint: Endpoint, window: Window, grouping: tuple[str, ...], known_from: date | None
    ) -> list[Page]:
        params = (
            ("start_time", str(unix_seconds(window.start))),
            ("end_time", str(unix_seconds(window.end))),
            ("bucket_width", "1d"),
            *(("group_by[]", dimension) for dimension in grouping),
            ("limit", str(min(endpoint.days_per_page, window.days))),
        )
        first, end = unix_seconds(window.start), unix_seconds(window.end)
        pages: list[Page] = []
        cursors: set[str] = set()
        cursor: str | None = None
        last_start = first - 1
        while True:
            async with self._in_flight:
                asked_at, body, head = await self._client.get(
                    endpoint.path,
                    (*params, ("page", cursor)) if cursor else params,
                    self._key,
                    self._base_url,
                    lambda body, asked_at: (asked_at, body, check_page(endpoint, body)),
                )
            # What was asked for later is newer, however long each answer took.
            pages.append(Page(endpoint, window, grouping, len(pages) + 1, asked_at, body, head))
            for start in head.starts:
                # A day twice would count twice; a day that was not asked for would replace another.
                if not last_start < start < end:
                    raise _PagesDoNotFit("OpenAI sent other days than those asked for, or one twice.")
                last_start = start
            if not head.has_more:
                _check_whole(pages, window, datetime.now(UTC).date(), known_from)
                return pages
            if not head.next_page or head.next_page in cursors:
                raise _PagesDoNotFit(
                    "OpenAI said there are more pages but "
                    + ("repeated a page token." if head.next_page else "gave no page token.")
                )
            if len(pages) >= self._limits.most_pages:
                raise UnreadableResponse(f"OpenAI sent over {self._limits.most_pages} pages for one window.")
            cursors.add(head.next_page)
            cursor = head.next_page

    async def projects(self) -> list[str]:
        """The ids of the organization's projects, archived ones included. Raises `OpenAIAdminError`."""
        return [item.id for _, listed in await self._list(PROJECTS) for item in listed.data]

    async def directory(self) -> list[Page]:
        """Projects, members and each project's API keys, as pages. Raises `OpenAIAdminError`."""
        projects, members = await asyncio.gather(self._list(PROJECTS), self._list(MEMBERS))
        project_ids = [item.id for _, listed in projects for item in listed.data]
        keys = await asyncio.gather(*(self._list(API_KEYS, project_id) for project_id in project_ids))
        return [page for lists in (projects, members, *keys) for page, _ in lists]

    async def _list(self, listing: Listing, project_id: str = "") -> list[tuple[Page, _ObjectList]]:
        """All pages of a list. A project that OpenAI no longer knows has none."""
        today = datetime.now(UTC).date()
        window = Window(today, today + timedelta(days=1))
        path = listing.path.format(project_id=project_id)
        pages: list[tuple[Page, _ObjectList]] = []
        after: str | None = None
        while len(pages) < self._limits.most_pages:
            params = (("limit", str(LIST_LIMIT)), *listing.params)
            if after:
                params = (*params, ("after", after))
            try:
                async with self._in_flight:
                    asked_at, body, listed = await self._client.get(
                        path,
                        params,
                        self._key,
                        self._base_url,
                        lambda body, asked_at: (asked_at, body, _read_list(body)),
                        is_optional=bool(project_id),
                    )
            except NotFound:
                if not project_id:
                    raise
                return pages
            grouping = (project_id,) if project_id else ()
            head = PageHead(listed.has_more, None, [])
            pages.append((Page(listing, window, grouping, len(pages) + 1, asked_at, body, head), listed))
            if not listed.has_more or not listed.data:
                return pages
            after = listed.data[-1].id
        raise UnreadableResponse(f"OpenAI sent over {self._limits.most_pages} pages of one list.")


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


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Whom connections trust, read once in a process: some 18 ms, which each client would take again."""
    return httpx.create_ssl_context()


@asynccontextmanager
async def open_client(base_url: str, limits: Limits | None = None) -> AsyncIterator[OpenAIAdminClient]:
    """A client for the length of a run; its connections are closed at the end."""
    limits = limits or Limits()

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=limits.concurrency, ssl=transport.ssl_context)
        # No organization's cookies go out with another's requests.
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    # The transport without httpx's client above it: no redirects, cookies or log lines, half the time.
    async with AiohttpTransport(verify=_certificates(), client=session) as transport:
        yield OpenAIAdminClient(transport, base_url, limits)


@lru_cache(maxsize=1024)
def _url(address: str, params: QueryParams) -> httpx.URL:
    """An address with its query. All users of a run ask for the same few, and httpx parses slowly."""
    return httpx.URL(address, params=list(params))


def _read_list(body: bytes) -> _ObjectList:
    check_text(body)
    try:
        return msgspec.json.decode(body, type=_ObjectList)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnreadableResponse(f"OpenAI's answer is not a list of projects: {error}.") from None


def _error_of(status: int, body: bytes, headers: Mapping[str, str]) -> OpenAIAdminError:
    """What an answer other than 200 means (API facts: both body shapes of 401 and 403 occur live)."""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody).text
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = ""
    said = redact(said)[:300]
    if status in (401, 403):
        if "missing scopes" in said.lower() or "insufficient permissions" in said.lower() or status == 403:
            return InsufficientPermissions(
                "The key may not read this organization's cost and usage: it is a project key, or its "
                "creator is no longer an Owner or Admin. Create a fresh Admin key in OpenAI and save it here."
            )
        return InvalidKey(
            "OpenAI does not accept this key: it was deleted or revoked. "
            "Create a fresh Admin key in OpenAI and save it here."
        )
    if status == 400:
        if "page token" in said.lower():
            return _PageTokenRejected("OpenAI refused a page token.")
        return UnsupportedRequest(f"OpenAI refuses this query: {said.rstrip('.') or 'it gave no reason'}.")
    if status == 429:
        return RateLimited(
            "OpenAI's rate limit for this organization is used up; the next refresh tries again.",
            _retry_after(headers),
        )
    if status == 404 or status in (408, 409) or status >= 500:
        kind = NotFound if status == 404 else Unreachable
        said = f"OpenAI answered with an error ({status}); the next refresh tries again."
        return kind(said, _retry_after(headers))
    return UnreadableResponse(f"OpenAI answered with an unexpected status ({status}).")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of the `Retry-After` header, which is a number or a date; None without a usable one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    # A date without a zone is UTC (RFC 9110).
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def first_failure(failures: Sequence[BaseException]) -> BaseException:
    """The one failure to tell of several at once: our own before OpenAI's, a permanent one before a passing
    one."""

    def rank(error: BaseException) -> int:
        return 0 if not isinstance(error, OpenAIAdminError) else 1 + isinstance(error, TransientError)

    return min(failures, key=rank)
