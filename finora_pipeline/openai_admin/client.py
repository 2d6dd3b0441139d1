"""Reads the pages of many OpenAI organizations at once. The only module that imports httpx.

Contract
1. Only GET below `/organization/`; nothing is ever changed and no model is called.
2. A key is bound to one address. A request for any other scheme, host or port ends before a byte is sent, and
   no redirection is followed.
3. A window is read as page requests of at most the endpoint's page limit, each with its exact `start_time`
   and `end_time`; a cursor is followed with all parameters of its first request, since OpenAI binds it to
   them (400 `The page token is invalid` otherwise). The range is then asked for again from its start, as it
   is when its pages do not fit together.
4. All pages of a window come back, or an `OpenAIAdminError`: there is no half-read window. Every day has a
   bucket, also one without use, from the first bucket on; only today's may be lacking. `read_newest` gives
   the part of a window that OpenAI gives, and says which.
5. An error is asked again as often as its class says (`OpenAIAdminError.repeats`), with growing, jittered
   pauses, `Retry-After` first, until `Limits.retry_seconds` are spent. A pause holds no place among the
   requests in flight. One request ends after `Limits.request_seconds`, whatever it still receives.
6. No answer's text leaves this module before keys are redacted, and httpx's own errors, which hold the
   request with its key, are never chained.
"""

import asyncio
import random
import ssl
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TypeVar

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from finora_pipeline.openai_admin.addresses import BaseAddress, parse_address
from finora_pipeline.openai_admin.amounts import AmountError
from finora_pipeline.openai_admin.bodies import read_body
from finora_pipeline.openai_admin.connection_failures import failure_of, timed_out
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
from finora_pipeline.openai_admin.error_responses import error_of, web_page
from finora_pipeline.openai_admin.errors import (
    CertificateRejected,
    NotFound,
    OpenAIAdminError,
    PageTokenRejected,
    ProxyFailed,
    TimedOut,
    TransientError,
    UnreadableResponse,
    WrongAddress,
)
from finora_pipeline.openai_admin.in_flight import InFlight
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.network import NetworkError, Proxy, proxy_for, trusted_certificates
from finora_pipeline.openai_admin.pages import (
    ROWS_PER_PAGE,
    SECONDS_PER_DAY,
    ObjectList,
    Page,
    PageHead,
    Window,
    check_list,
    check_page,
    unix_seconds,
)

T = TypeVar("T")
QueryParams = tuple[tuple[str, str], ...]

# Directory lists allow 1 to 100 objects a page (OpenAPI document).
LIST_LIMIT = 100
# An error's words are in its first characters; a longer body is not read to its end.
ERROR_BYTES = 256 * 1024
# What is spent on the repeats of one of many thousands of lists of names.
LIST_RETRY_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard and how long OpenAI may be asked, and how much one answer may hold.

    `concurrency`: requests in flight over all organizations; `per_organization`: of one of them.
    `timeout_seconds`: of silence, while connecting or receiving; `request_seconds`: of a whole request with
    its body. `retry_seconds`: after which a request is no longer repeated. `first_pause_seconds`: the pause
    before the first repeat, doubled each time up to `longest_pause_seconds`. `most_pages`: of one window,
    against an endless cursor. `body_bytes`: of one answer, decompressed; `rows_per_page`: its results.
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


_HEADERS = [
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"User-Agent", b"finora-pipeline"),
]


class _PagesDoNotFit(UnreadableResponse):
    """Each page can be read, but together they are not the window that was asked for."""


class OpenAIAdminClient:
    """One for a run: holds the connections and the limits for all organizations.

    async with open_client("https://api.openai.com/v1") as client:
        pages = await client.organization(key).read(COSTS, Window(start, end))
    """

    def __init__(self, base_url: str, limits: Limits, open_transports: AsyncExitStack) -> None:
        self.address = parse_address(base_url)
        self._limits = limits
        self._in_flight = InFlight(limits.concurrency)
        self._extensions = {"timeout": httpx.Timeout(limits.timeout_seconds).as_dict()}
        self._open_transports = open_transports
        self._transports: dict[tuple[str, str | None], AiohttpTransport] = {}
        self._proxies: dict[BaseAddress, Proxy | None] = {}
        # Requests made, by how each ended: the answer's status, timeout, unreachable or unreadable.
        self.outcomes: Counter[str] = Counter()

    @property
    def base_url(self) -> str:
        """The address at which organizations are read that have none of their own."""
        return str(self.address)

    @property
    def places(self) -> int:
        """How many requests may be in flight now: fewer after many answers of 429."""
        return self._in_flight.places

    def organization(self, key: AdminKey, base_url: str | None = None) -> "OrganizationClient":
        """A client that reads the one organization the key belongs to, at `base_url` and nowhere else; by
        default at the client's own address. Raises `AddressError`."""
        address = self.address if base_url is None else parse_address(base_url)
        return OrganizationClient(self, key, address, self._limits)

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
    ) -> T:
        """What `read` makes of a successful answer and of the moment when it was asked for; repeated as the
        contract says, but not for a 404 on something optional.

        `read` raises `UnreadableResponse` for a body that is not what was asked for; like any passing
        fault, that is asked for again. `turns` are those of the organization: like the client's places they
        are held while a request is made, and not while it waits for its repeat. Raises `OpenAIAdminError`.
        """
        url = _url(f"{address}{path}", params)
        if _origin(url) != (address.scheme, address.host, address.port):
            raise WrongAddress("The request was for another host than the key's own, so nothing was sent.")
        limits = self._limits
        patience = limits.retry_seconds if retry_seconds is None else retry_seconds
        pause = limits.first_pause_seconds
        seconds, spent, repeats = limits.request_seconds, 0.0, 0
        while True:
            async with turns, self._in_flight:
                began = time.monotonic()
                try:
                    body, asked_at = await self._get_once(url, address, key, seconds)
                    answer = self._read(read, body, asked_at)
                except TransientError as error:
                    failure = error
                else:
                    return answer
                spent += time.monotonic() - began
            if is_optional and isinstance(failure, NotFound):
                raise failure
            # Never without a pause, whatever `Retry-After` says.
            wait = max(failure.retry_after or 0, pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, limits.longest_pause_seconds)
            is_over = failure.repeats is not None and repeats >= failure.repeats
            if is_over or spent + wait > patience:
                raise failure
            spent += wait
            repeats += 1
            # The last repeat may take as long as silence may, and no longer: retries end in time.
            seconds = min(limits.request_seconds, max(patience - spent, limits.timeout_seconds))
            await asyncio.sleep(wait)

    def _read(self, read: Callable[[bytes, datetime], T], body: bytes, asked_at: datetime) -> T:
        try:
            answer = read(body, asked_at)
        except UnreadableResponse:
            self.outcomes["unreadable"] += 1
            raise
        self.outcomes["200"] += 1
        return answer

    async def _get_once(
        self, url: httpx.URL, address: BaseAddress, key: AdminKey, seconds: float
    ) -> tuple[bytes, datetime]:
        proxy = self._proxy(address)
        transport = self._transport(address, proxy)
        asked_at = datetime.now(UTC)
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                answer = await transport.handle_async_request(
                    httpx.Request(
                        "GET",
                        url,
                        headers=[*_HEADERS, (b"Authorization", b"Bearer " + key.reveal().encode())],
                        extensions=self._extensions,
                    )
                )
                try:
                    is_error = answer.status_code != 200
                    body = await read_body(
                        answer.aiter_raw(),
                        answer.headers.get("content-encoding", ""),
                        ERROR_BYTES if is_error else self._limits.body_bytes,
                        may_be_cut=is_error,
                    )
                finally:
                    await answer.aclose()
        except UnreadableResponse:
            self.outcomes["unreadable"] += 1
            raise
        except (TimeoutError, httpx.TransportError, aiohttp.ClientError, OSError, zlib.error) as error:
            if deadline.expired():
                failure: TransientError = timed_out(address, seconds)
            else:
                # aiohttp's own errors, where the transport does not translate them, hold the request's key.
                cause = error.__cause__ or error
                failure = failure_of(cause, address, proxy, self._limits.timeout_seconds)
            self.outcomes["timeout" if isinstance(failure, TimedOut) else "unreachable"] += 1
            raise failure from None
        self._in_flight.answered(answer.status_code == 429)
        if answer.status_code != 200:
            self.outcomes[str(answer.status_code)] += 1
            raise error_of(answer.status_code, body, answer.headers, address)
        if key.reveal().encode() in body:
            self.outcomes["unreadable"] += 1
            raise UnreadableResponse("The answer repeats the key that asked for it, so it is not kept.")
        if page := web_page(body, answer.headers, address):
            self.outcomes["unreadable"] += 1
            raise page
        return body, asked_at

    def _proxy(self, address: BaseAddress) -> Proxy | None:
        if address not in self._proxies:
            try:
                self._proxies[address] = proxy_for(address)
            except NetworkError as error:
                raise ProxyFailed(str(error)) from None
        return self._proxies[address]

    def _transport(self, address: BaseAddress, proxy: Proxy | None) -> AiohttpTransport:
        """The connections of one way out: direct or through one proxy, with TLS or without."""
        way = (address.scheme, proxy and proxy.url)
        if way not in self._transports:
            try:
                # Without TLS no certificates are read: there need not be any.
                tls = trusted_certificates() if address.scheme == "https" else _no_certificates()
            except NetworkError as error:
                raise CertificateRejected(str(error)) from None
            self._transports[way] = transport = _transport(tls, proxy, self._limits.concurrency)
            self._open_transports.push_async_callback(transport.aclose)
        return self._transports[way]


class OrganizationClient:
    """Reads one organization with its Admin key, at the address the key is bound to."""

    def __init__(
        self, client: OpenAIAdminClient, key: AdminKey, address: BaseAddress, limits: Limits
    ) -> None:
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
        `retry_seconds` stands in for the client's limit, for what is not worth as much patience.
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

        To list Admin keys takes a permission that costs and usage do not: a refusal is no failure.
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
        raise UnreadableResponse(f"OpenAI sent over {self._limits.most_pages} pages of one list.")


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


@asynccontextmanager
async def open_client(base_url: str, limits: Limits | None = None) -> AsyncIterator[OpenAIAdminClient]:
    """A client for the length of a run; its connections are closed at the end. Raises `AddressError`."""
    async with AsyncExitStack() as transports:
        yield OpenAIAdminClient(base_url, limits or Limits(), transports)


def _transport(tls: ssl.SSLContext, proxy: Proxy | None, most: int) -> AiohttpTransport:
    def session() -> aiohttp.ClientSession:
        # No organization's cookies go out with another's requests. aiohttp's own way to trust the environment
        # would also take passwords from .netrc.
        connector = aiohttp.TCPConnector(limit=most, ssl=tls)
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    # The transport without httpx's client above it: no redirects, cookies or log lines, half the time.
    signed = {"Proxy-Authorization": proxy.authorization} if proxy and proxy.authorization else None
    through = httpx.Proxy(proxy.url, headers=signed) if proxy else None
    return AiohttpTransport(verify=tls, client=session, proxy=through)


@lru_cache(maxsize=1)
def _no_certificates() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    # As it is sent: `host` would be decoded to the letters of other scripts.
    return url.scheme, url.raw_host.decode(), url.port or (443 if url.scheme == "https" else 80)


@lru_cache(maxsize=1024)
def _url(address: str, params: QueryParams) -> httpx.URL:
    """An address with its query. All users of a run ask for the same few, and httpx parses slowly."""
    return httpx.URL(address, params=list(params))


def first_failure(failures: Sequence[BaseException]) -> BaseException:
    """The one failure to report of several at once: our own before OpenAI's, a permanent one before a passing
    one."""

    def rank(error: BaseException) -> int:
        return 0 if not isinstance(error, OpenAIAdminError) else 1 + isinstance(error, TransientError)

    return min(failures, key=rank)
