"""Makes the requests to OpenAI's organization API, of many organizations at once. The only module that
imports httpx.

Contract
1. Only GET below `/organization/`; nothing is ever changed and no model is called.
2. A key is bound to one address. A request for any other scheme, host or port ends before a byte is sent, and
   no redirection is followed.
3. An error is asked again as often as its class says (`OpenAIAdminError.repeats`), with growing, jittered
   pauses, `Retry-After` first, until `Limits.retry_seconds` are spent. A pause holds no place among the
   requests in flight. One request ends after `Limits.request_seconds`, whatever it still receives.
4. No answer's text leaves this module before keys are redacted, and httpx's own errors, which hold the
   request with its key, are never chained.
"""

import asyncio
import random
import ssl
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from finora_pipeline.openai_admin.addresses import BaseAddress, parse_address
from finora_pipeline.openai_admin.bodies import read_body
from finora_pipeline.openai_admin.connection_failures import failure_of, timed_out
from finora_pipeline.openai_admin.error_responses import error_of, web_page
from finora_pipeline.openai_admin.errors import (
    CertificateRejected,
    NotFound,
    ProxyFailed,
    TimedOut,
    TransientError,
    UnreadableResponse,
    WrongAddress,
)
from finora_pipeline.openai_admin.in_flight import InFlight
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.network import NetworkError, Proxy, proxy_for, trusted_certificates
from finora_pipeline.openai_admin.organization import (
    Limits,
    OrganizationClient,
    QueryParams,
    first_failure,
)

__all__ = ["Limits", "OpenAIAdminClient", "OrganizationClient", "first_failure", "open_client"]
T = TypeVar("T")

# An error's words are in its first characters; a longer body is not read to its end.
ERROR_BYTES = 256 * 1024
_HEADERS = [
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"User-Agent", b"finora-pipeline"),
]


class OpenAIAdminClient:
    """One for a run: holds the connections and the limits for all organizations.

    async with open_client("https://api.openai.com/v1") as client:
        pages = await client.organization(key).read(COSTS, Window(start, end))
    """

    def __init__(self, base_url: str, limits: Limits, open_transports: AsyncExitStack) -> None:
        # Where organizations are read that are bound to no other address; also one that cannot be used.
        self.base_url = base_url.rstrip("/")
        self._limits = limits
        self._in_flight = InFlight(limits.concurrency)
        self._extensions = {"timeout": httpx.Timeout(limits.timeout_seconds).as_dict()}
        self._open_transports = open_transports
        self._transports: dict[tuple[str, str | None], AiohttpTransport] = {}
        self._proxies: dict[BaseAddress, Proxy | None] = {}
        # Requests made, by how each ended: the answer's status, timeout, unreachable or unreadable.
        self.outcomes: Counter[str] = Counter()

    @property
    def places(self) -> int:
        """How many requests may be in flight now: fewer after many answers of 429."""
        return self._in_flight.places

    def organization(self, key: AdminKey, base_url: str | None = None) -> "OrganizationClient":
        """A client that reads the one organization the key belongs to, at `base_url` and nowhere else; by
        default at the client's own. Raises `AddressError`."""
        address = parse_address(self.base_url if base_url is None else base_url)
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
        patience = limits.retry_seconds if retry_seconds is None else min(retry_seconds, limits.retry_seconds)
        pause = limits.first_pause_seconds
        seconds, spent, repeats = limits.request_seconds, 0.0, 0
        while True:
            async with turns, self._in_flight:
                began = time.monotonic()
                try:
                    body, asked_at = await self._get_once(url, address, key, seconds)
                    answer = self._read(read, body, asked_at, address)
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

    def _read(
        self, read: Callable[[bytes, datetime], T], body: bytes, asked_at: datetime, address: BaseAddress
    ) -> T:
        try:
            answer = read(body, asked_at)
        except UnreadableResponse as error:
            self.outcomes["unreadable"] += 1
            # What reads a page does not know from where it came.
            raise type(error)(f"{str(error).rstrip('.')} ({address.authority}).") from None
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
            raise UnreadableResponse(
                f"The answer repeats the key that asked for it, so it is not kept ({address.authority})."
            )
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
        """The connections for a way out: direct or through one proxy, with TLS or without."""
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


@asynccontextmanager
async def open_client(base_url: str, limits: Limits | None = None) -> AsyncGenerator[OpenAIAdminClient]:
    """A client for the length of a run; its connections are closed at the end."""
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
