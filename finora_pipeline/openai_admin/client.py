"""Sends the requests to OpenAI's organization API for many organizations at once.

Contract. No other module imports httpx.
1. Only GET below `/organization/`: no request changes anything or calls a model.
2. A key is bound to one address. A request to another scheme, host or port fails before a byte is sent, and
   redirects are not followed.
3. A failed request is repeated as often as its error's class allows (`OpenAIAdminError.repeats`), after
   growing pauses with jitter or after a longer `Retry-After`, until `Limits.retry_seconds` are spent. A pause
   occupies no place among the requests in flight. A request ends after `Limits.request_seconds`.
4. Keys are redacted from an answer's text before it leaves this module. httpx's errors contain the request
   with its key and are never chained.
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

# An error's message is at its beginning; the rest of a longer body is ignored.
ERROR_BYTES = 256 * 1024
_HEADERS = [
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"User-Agent", b"finora-pipeline"),
]


class OpenAIAdminClient:
    """The client of a run: holds connections and limits for all organizations.

    async with open_client("https://api.openai.com/v1") as client:
        pages = await client.organization(key).fetch(COSTS, Window(start, end))
    """

    def __init__(self, base_url: str, limits: Limits, open_transports: AsyncExitStack) -> None:
        # The default address of `organization`, which checks it: an unusable one fails there.
        self.base_url = base_url.rstrip("/")
        self._limits = limits
        self._in_flight = InFlight(limits.concurrency)
        self._extensions = {"timeout": httpx.Timeout(limits.timeout_seconds).as_dict()}
        self._open_transports = open_transports
        self._transports: dict[tuple[str, str | None], AiohttpTransport] = {}
        self._proxies: dict[BaseAddress, Proxy | None] = {}
        # Requests by outcome: the answer's status, timeout, unreachable or unreadable.
        self.outcomes: Counter[str] = Counter()

    @property
    def places(self) -> int:
        """How many requests may be in flight now; fewer after many 429 answers."""
        return self._in_flight.places

    def organization(self, key: AdminKey, base_url: str | None = None) -> "OrganizationClient":
        """A client for the organization of the key, which sends requests to `base_url` only.

        By default the client's own address. Raises `AddressError`.
        """
        address = parse_address(self.base_url if base_url is None else base_url)
        return OrganizationClient(self, key, address, self._limits)

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
    ) -> T:
        """Send a request and return what `decode` makes of the body and the request's UTC time.

        `decode` raises `UnreadableResponse` for an unexpected body, which is repeated like any transient
        error. A 404 of an optional resource is not repeated. `turns` limits the organization's requests in
        flight; a pause before a repeat holds neither a turn nor a place. Raises `OpenAIAdminError`.
        """
        url = _url(f"{address}{path}", params)
        if _origin(url) != (address.scheme, address.host, address.port):
            raise WrongAddress("The key is bound to another host than the request's, so nothing was sent.")
        limits = self._limits
        patience = limits.retry_seconds if retry_seconds is None else min(retry_seconds, limits.retry_seconds)
        pause = limits.first_pause_seconds
        seconds, spent, repeats = limits.request_seconds, 0.0, 0
        while True:
            async with turns, self._in_flight:
                began = time.monotonic()
                try:
                    body, requested_at = await self._get_once(url, address, key, seconds)
                    answer = self._decoded(decode, body, requested_at, address)
                except TransientError as error:
                    failure = error
                else:
                    return answer
                spent += time.monotonic() - began
            if is_optional and isinstance(failure, NotFound):
                raise failure
            # `Retry-After: 0` must not cancel the pause.
            wait = max(failure.retry_after or 0, pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, limits.longest_pause_seconds)
            is_over = failure.repeats is not None and repeats >= failure.repeats
            if is_over or spent + wait > patience:
                raise failure
            spent += wait
            repeats += 1
            # The last repeat gets one timeout at most, so that retries end in time.
            seconds = min(limits.request_seconds, max(patience - spent, limits.timeout_seconds))
            await asyncio.sleep(wait)

    def _decoded(
        self,
        decode: Callable[[bytes, datetime], T],
        body: bytes,
        requested_at: datetime,
        address: BaseAddress,
    ) -> T:
        try:
            answer = decode(body, requested_at)
        except UnreadableResponse as error:
            self.outcomes["unreadable"] += 1
            # The decoder does not know the host.
            raise type(error)(f"{str(error).rstrip('.')} ({address.authority}).") from None
        self.outcomes["200"] += 1
        return answer

    async def _get_once(
        self, url: httpx.URL, address: BaseAddress, key: AdminKey, seconds: float
    ) -> tuple[bytes, datetime]:
        proxy = self._proxy(address)
        transport = self._transport(address, proxy)
        requested_at = datetime.now(UTC)
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
                # aiohttp's errors that the transport does not translate contain the request's key.
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
                f"The answer contains the key that was sent, so it was discarded ({address.authority})."
            )
        if page := web_page(body, answer.headers, address):
            self.outcomes["unreadable"] += 1
            raise page
        return body, requested_at

    def _proxy(self, address: BaseAddress) -> Proxy | None:
        if address not in self._proxies:
            try:
                self._proxies[address] = proxy_for(address)
            except NetworkError as error:
                raise ProxyFailed(str(error)) from None
        return self._proxies[address]

    def _transport(self, address: BaseAddress, proxy: Proxy | None) -> AiohttpTransport:
        """The connection pool of a route: direct or through a proxy, with TLS or without."""
        way = (address.scheme, proxy and proxy.url)
        if way not in self._transports:
            try:
                # Without TLS the certificate files need not exist.
                tls = trusted_certificates() if address.scheme == "https" else _no_certificates()
            except NetworkError as error:
                raise CertificateRejected(str(error)) from None
            self._transports[way] = transport = _transport(tls, proxy, self._limits.concurrency)
            self._open_transports.push_async_callback(transport.aclose)
        return self._transports[way]


@asynccontextmanager
async def open_client(base_url: str, limits: Limits | None = None) -> AsyncGenerator[OpenAIAdminClient]:
    """Open a client for the length of a run; its connections are closed at the end."""
    async with AsyncExitStack() as transports:
        yield OpenAIAdminClient(base_url, limits or Limits(), transports)


def _transport(tls: ssl.SSLContext, proxy: Proxy | None, most: int) -> AiohttpTransport:
    def session() -> aiohttp.ClientSession:
        # An organization's cookies must not reach another's requests; `trust_env` would also use
        # passwords from .netrc.
        connector = aiohttp.TCPConnector(limit=most, ssl=tls)
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    # Without httpx's client: no redirects, cookies or log lines, and half the time.
    signed = {"Proxy-Authorization": proxy.authorization} if proxy and proxy.authorization else None
    through = httpx.Proxy(proxy.url, headers=signed) if proxy else None
    return AiohttpTransport(verify=tls, client=session, proxy=through)


@lru_cache(maxsize=1)
def _no_certificates() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    # As sent: `host` would decode international names.
    return url.scheme, url.raw_host.decode(), url.port or (443 if url.scheme == "https" else 80)


@lru_cache(maxsize=1024)
def _url(address: str, params: QueryParams) -> httpx.URL:
    """An address with its query; cached, since all users of a run request the same few."""
    return httpx.URL(address, params=list(params))
