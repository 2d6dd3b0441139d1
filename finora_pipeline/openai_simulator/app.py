"""The ASGI application of the simulator.

`/v1/organization/…` answers like OpenAI, so that the official SDK works unchanged. `/_simulator/…` is the
side door for tests and demos: organizations and their keys, true totals, the clock, key states and faults.
Answers are cached by query and minute of the clock.
"""

import asyncio
import gzip
import json
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import fields
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import parse_qs

import msgspec

from finora_pipeline.openai_admin.endpoints import ENDPOINTS, Endpoint
from finora_pipeline.openai_simulator.answers import BadRequest, page_of
from finora_pipeline.openai_simulator.directory import directory
from finora_pipeline.openai_simulator.faults import Fault, FaultKind, KeyState
from finora_pipeline.openai_simulator.organization import OrganizationSpec, SimulatedOrganization

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

_BY_PATH = {f"/v1{endpoint.path}": endpoint for endpoint in ENDPOINTS.values()}
_JSON = [(b"content-type", b"application/json")]
_HTML = b"<!doctype html><title>502 Bad Gateway</title><h1>Bad Gateway</h1>"
_MISSING_SCOPES = (
    "You have insufficient permissions for this operation. Missing scopes: api.usage.read. Check that you "
    "have the correct role in your organization (Reader, Writer, Owner) and project (Member, Owner), and if "
    "you're using a restricted API key, that it has the necessary scopes."
)
_STUCK = {"has_more": True, "next_page": "page_AAAAAGqD469KskwwAAAAAGqCTwA="}
# Flat values only: a query must be able to carry them too.
_ACTION_PARAMS = msgspec.json.Decoder(dict[str, str | int | float | None])
CACHE_BYTES = 400_000_000


class Simulator:
    """Simulated organizations with their keys, faults and clock, as an ASGI application.

    `now` freezes the clock; without it the clock is the real one, in whole minutes. `latency`: seconds
    before each answer.
    """

    def __init__(
        self,
        specs: Iterable[OrganizationSpec],
        now: datetime | None = None,
        amounts_as_numbers: bool = False,
        latency: float = 0.0,
    ) -> None:
        self.latency = latency
        self.organizations = [SimulatedOrganization(spec) for spec in specs]
        self.frozen_now = now
        self.amounts_as_numbers = amounts_as_numbers
        self.requests: Counter[str] = Counter()
        self._keys = {o.admin_key: (o, KeyState.ACTIVE) for o in self.organizations}
        self._faults: dict[str, list[Fault]] = {}
        self._cache: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._cached_bytes = 0

    @property
    def now(self) -> datetime:
        """The UTC moment of the simulation."""
        return self.frozen_now or datetime.now(UTC).replace(second=0, microsecond=0)

    def add_key(self, organization: SimulatedOrganization, key: str) -> None:
        """Add an Admin key of the organization, as in a rotation."""
        self._keys[key] = (organization, KeyState.ACTIVE)

    def set_key_state(self, key: str, state: KeyState) -> None:
        """Change how the API answers a known key."""
        self._keys[key] = (self._keys[key][0], state)

    def add_fault(self, organization: SimulatedOrganization, fault: Fault) -> None:
        """Add a fault to the answers about an organization."""
        self._faults.setdefault(organization.id, []).append(fault)

    def clear_faults(self) -> None:
        """Remove the faults of all organizations."""
        self._faults.clear()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["path"].startswith("/_simulator/"):
            await self._side_door(scope, receive, send)
        else:
            if self.latency:
                await asyncio.sleep(self.latency)
            await self._answer(scope, receive, send)

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        key = _bearer(scope)
        organization, state = self._keys.get(key, (None, KeyState.REVOKED))
        if organization is None or state is not KeyState.ACTIVE:
            return await _send_json(send, *_refusal(key, state))
        endpoint = _BY_PATH.get(scope["path"])
        name = endpoint.name if endpoint else scope["path"].rpartition("/")[2]
        self.requests[name] += 1
        if scope["method"] != "GET":
            return await _send_json(send, 405, _error("Only GET is simulated.", "invalid_request_error"))
        faults = self._faults.get(organization.id, ())
        query = scope["query_string"].decode("latin-1")
        fault = None
        for one in faults:
            if not one.strikes(name, scope["path"], query):
                continue
            if await _replaced(one, query, self.now, receive, send):
                return None
            # These refuse some windows; others are answered as without the fault.
            if one.kind not in (FaultKind.NO_HISTORY, FaultKind.NO_FUTURE):
                fault = one
                break
        try:
            body = self._body(endpoint, organization, scope)
        except BadRequest as error:
            return await _send_json(send, 400, _error(str(error), "invalid_request_error"))
        if body is None:
            return await _send_json(send, 404, {"code": 404, "message": f"{scope['path']} was not found"})
        if fault:
            return await _send_altered(fault, body, key, send)
        return await _send_body(send, 200, body)

    def _body(
        self, endpoint: Endpoint | None, organization: SimulatedOrganization, scope: dict[str, Any]
    ) -> bytes | None:
        query = (organization.id, scope["path"], scope["query_string"], self.now, self.amounts_as_numbers)
        if query in self._cache:
            self._cache.move_to_end(query)
            return self._cache[query]
        params = parse_qs(scope["query_string"].decode("latin-1"))
        if endpoint:
            answer = page_of(endpoint, organization, params, self.now, self.amounts_as_numbers)
        else:
            answer = directory(organization, tuple(scope["path"].split("/")[3:]), params, self.now)
        if answer is None:
            return None
        body = msgspec.json.encode(answer)
        self._cache[query] = body
        self._cached_bytes += len(body)
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])
        return body

    async def _side_door(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        action = scope["path"].rpartition("/")[2]
        query = parse_qs(scope["query_string"].decode("latin-1"))
        params = {name: values[0] for name, values in query.items()}
        try:
            if scope["method"] == "POST":
                sent = _ACTION_PARAMS.decode(await _read_body(receive) or b"{}")
                params |= {name: str(value) for name, value in sent.items() if value is not None}
            answer = self._act(action, params)
        except (KeyError, ValueError, IndexError, OverflowError, msgspec.DecodeError) as error:
            return await _send_json(send, 400, {"error": f"{type(error).__name__}: {error}"})
        return await _send_json(send, 200, answer)

    def _act(self, action: str, params: dict[str, str]) -> Any:
        """Carry out an action of the side door; `organization`: its number in the list, from 0."""
        match action:
            case "organizations":
                return [
                    {"id": o.id, "name": o.name, "admin_key": o.admin_key, "since": o.spec.since.isoformat()}
                    for o in self.organizations
                ]
            case "requests":
                return dict(self.requests)
            case "clock":
                if "now" in params:
                    self.frozen_now = datetime.fromisoformat(params["now"]).astimezone(UTC)
                return {"now": self.now.isoformat()}
            case "calm":
                self.clear_faults()
                return {"ok": True}
        organization = self.organizations[int(params.pop("organization"))]
        match action:
            case "truth":
                start, end = (date.fromisoformat(params[name]) for name in ("start", "end"))
                truth = organization.truth(start, end, self.now)
                return {field.name: _plain(getattr(truth, field.name)) for field in fields(truth)}
            case "keys":
                self.set_key_state(params.get("key", organization.admin_key), KeyState(params["state"]))
            case "faults":
                if unknown := params.keys() - {field.name for field in fields(Fault)}:
                    raise ValueError(f"a fault has no {sorted(unknown)}")
                self.add_fault(organization, msgspec.convert(params, Fault, strict=False))
            case _:
                raise ValueError(f"unknown action {action!r}")
        return {"ok": True}


def _plain(value: Any) -> Any:
    """JSON without floats: amounts as text, keys of several parts joined by `|`."""
    if isinstance(value, dict):
        return {_plain_key(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, (tuple, list, int)) else str(value)


def _plain_key(key: Any) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    return "|".join("" if part is None else str(part) for part in parts)


def _bearer(scope: dict[str, Any]) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return value.decode("latin-1").removeprefix("Bearer ").strip()
    return ""


def _error(message: str, code: str | None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _refusal(key: str, state: KeyState) -> tuple[int, Any]:
    """OpenAI's answer to a refused key: status and body in the shapes seen live."""
    if state is KeyState.DEMOTED:
        return 403, {"error": _MISSING_SCOPES}
    if state is KeyState.RESTRICTED or (key.startswith("sk-") and not key.startswith("sk-admin-")):
        return 403, _error(_MISSING_SCOPES, None)
    masked = f"{key[:8]}*{key[-4:]}"
    text = f"Incorrect API key provided: {masked}. You can find your API key at https://platform.openai.com."
    return 401, _error(text, "invalid_api_key")


async def _replaced(fault: Fault, query: str, now: datetime, receive: Receive, send: Send) -> bool:
    """Send the bad answer that replaces the good one; False if the fault only alters it."""
    has_page_token = "page=" in query
    times = {name: int(values[0]) for name, values in parse_qs(query).items() if name.endswith("_time")}
    match fault.kind:
        case FaultKind.RATE_LIMIT:
            headers = [] if fault.seconds is None else [(b"retry-after", f"{fault.seconds:g}".encode())]
            body = _error("Rate limit reached for requests", "rate_limit_exceeded", "requests")
            await _send_json(send, 429, body, headers)
        case FaultKind.SERVER_ERROR:
            await _send_json(send, 500, _error("The server had an error.", None, "server_error"))
        case FaultKind.NOT_FOUND:
            await _send_json(send, 404, _error("Not found", None))
        case FaultKind.HTML:
            await _send_body(send, 200, _HTML, [(b"content-type", b"text/html")])
        case FaultKind.STATUS:
            headers = [(b"content-type", fault.content_type.encode())]
            if fault.seconds is not None:
                headers.append((b"retry-after", f"{fault.seconds:g}".encode()))
            await _send_body(send, fault.status, fault.body.encode("utf-8", "surrogatepass"), headers)
        case FaultKind.NO_HISTORY if times.get("start_time", 0) < now.timestamp() - fault.days * 86_400:
            message = f"Invalid 'start_time': it is more than {fault.days} days ago."
            await _send_json(send, 400, _error(message, None))
        case FaultKind.NO_FUTURE if times.get("end_time", 0) > now.timestamp():
            await _send_json(send, 400, _error("Invalid 'end_time': it must not be in the future.", None))
        case FaultKind.GZIP_BOMB:
            encoding = [*_JSON, (b"content-encoding", b"gzip")]
            await _send_body(send, 200, gzip.compress(bytes(fault.mebibytes * 1_048_576), 1), encoding)
        case FaultKind.HANG:
            while (await receive())["type"] != "http.disconnect":
                pass
        case FaultKind.PAGE_TOKEN:
            message = "The page token is invalid, have you modified the query parameters?"
            await _send_json(send, 400, _error(message, "invalid_request_error"))
        case FaultKind.SAME_CURSOR if has_page_token:
            # Repeating the days would be a second fault and hide this one.
            await _send_json(send, 200, {"object": "page", "data": [], **_STUCK})
        case _:
            return False
    return True


async def _send_altered(fault: Fault, body: bytes, key: str, send: Send) -> None:
    """Send the good answer, altered as the fault says."""
    if fault.kind is FaultKind.RESET:
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": _JSON + length})
        # A body shorter than announced makes the server close the connection.
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": False})
        return None
    if fault.kind is FaultKind.DRIP:
        return await _drip(body, fault.seconds or 0, send)
    if fault.kind is FaultKind.SLOW:
        await asyncio.sleep(fault.seconds or 0)
    elif fault.kind is FaultKind.EDIT:
        body = re.sub(fault.edit.encode(), fault.body.encode(), body)
    elif fault.kind is FaultKind.CUT:
        body = body[: len(body) // 2]
    elif fault.kind is FaultKind.NOT_UTF8:
        body = body.replace(b'name":"', b'name":"\xe9')
    else:
        page = json.loads(body)
        _alter(page, fault.kind, key)
        body = msgspec.json.encode(page)
    await _send_body(send, 200, body)
    return None


def _alter(page: dict[str, Any], kind: FaultKind, key: str) -> None:
    rows = [row for bucket in page.get("data", ()) for row in bucket.get("results", ())]
    match kind:
        case FaultKind.NULL_RESULTS:
            for bucket in page.get("data", [])[:1]:
                bucket["results"] = None
        case FaultKind.LEFT_OUT:
            del page.get("data", [])[-2:-1]
        case FaultKind.LATE_START:
            del page.get("data", [])[:-2]
        case FaultKind.NO_AMOUNT:
            for row in rows:
                row.pop("amount", None)
        case FaultKind.FOREIGN_CURRENCY:
            for row in rows:
                if "amount" in row:
                    row["amount"]["currency"] = "eur"
        case FaultKind.NO_CURSOR:
            page |= {"has_more": True, "next_page": None}
        case FaultKind.SAME_CURSOR:
            page |= _STUCK
        case FaultKind.ECHO_KEY:
            page["debug"] = key
        case FaultKind.NANOSECONDS:
            for listed in page.get("data", ()):
                moments = {name: at for name, at in listed.items() if name.endswith("_at") and at}
                listed |= {name: at * 1_000_000_000 for name, at in moments.items()}


async def _drip(body: bytes, seconds: float, send: Send) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*_JSON, length]})
    for number in range(len(body)):
        await send({"type": "http.response.body", "body": body[number : number + 1], "more_body": True})
        await asyncio.sleep(seconds)
    await send({"type": "http.response.body", "body": b""})


async def _send_json(
    send: Send, status: int, value: Any, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    await _send_body(send, status, msgspec.json.encode(value), _JSON + (headers or []))


async def _send_body(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*(headers or _JSON), length]})
    await send({"type": "http.response.body", "body": body})


async def _read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        phase = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{phase}.complete"})
        if phase == "shutdown":
            return
