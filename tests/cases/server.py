"""Plays one organization of OpenAI's API from a JSON file, number for number and letter for letter.

A file is one object. All of its parts may be missing:

    about, source         what is played, and where that kind was met
    rows                  by the endpoint's name, `costs` or one of usage: result objects. `day` counts from
                          today's UTC date (0 today, -1 yesterday) and is not sent
    lists                 `projects` and `users`; `api_keys` and `service_accounts` by project id
    groupings             which of `user_id` and `api_key_id` costs may be grouped by; without it neither
    bucket_extra          fields that replace those of every bucket
    faults                in order, the first that strikes answers. `path` and `query`: regular expressions;
                          `after`: so many matching requests pass first; `times`: strikes so often, then no
                          more; `status` (500), `body` (an object, or a text that is sent as it is), `headers`
    _refuse_before_days   an older `start_time` is a 400; `_refuse_before_days_of` limits that to endpoints
    _refuse_future_end    an `end_time` after this moment is a 400

Rows are sent with the spelling of the file: `10.0` stays `10.0`, `\\ud83d` stays an escape, a field given
twice is sent twice. Only rows of a request's same group are added up, exactly.
"""

import json
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import uvicorn

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Members = list[tuple[str, str]]

DAY = 86_400
HOST = "127.0.0.1"
_KEYED = ("project_id", "user_id", "api_key_id", "model")
# The dimensions that each endpoint accepts in `group_by`.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "costs": ("project_id", "line_item", "user_id", "api_key_id"),
    "completions": (*_KEYED, "batch", "service_tier", "api_source"),
    "embeddings": _KEYED,
    "moderations": _KEYED,
    "images": (*_KEYED, "size", "source"),
    "audio_speeches": _KEYED,
    "audio_transcriptions": _KEYED,
    "vector_stores": ("project_id",),
    "code_interpreter_sessions": ("project_id",),
    "file_search_calls": ("project_id", "user_id", "api_key_id", "vector_store_id"),
    "web_search_calls": (*_KEYED, "context_level", "api_source"),
    "decisions": (*_KEYED, "batch", "service_tier", "api_source"),
}
_SERVER_ERROR = (
    '{"error":{"message":"The server had an error while processing your request.",'
    '"type":"server_error","param":null,"code":null}}'
)
_NUMBER = re.compile(r'"?(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"?')
_SPACE = re.compile(r"[ \t\r\n,:]*")
_decoder = json.JSONDecoder()
# decimal128 goes down to 1E-6176.
_WIDE = Context(prec=7_000)


def members(text: str) -> Members:
    """Return all fields of an object: names decoded, values as written."""
    found: Members = []
    at = _after(text, text.index("{") + 1)
    while text[at] != "}":
        name, end = _decoder.raw_decode(text, at)
        start = _after(text, end)
        _, end = _decoder.raw_decode(text, start)
        found.append((name, text[start:end]))
        at = _after(text, end)
    return found


def elements(text: str) -> list[str]:
    """Return the values of a list as written."""
    found = []
    at = _after(text, text.index("[") + 1)
    while text[at] != "]":
        _, end = _decoder.raw_decode(text, at)
        found.append(text[at:end])
        at = _after(text, end)
    return found


def _after(text: str, at: int) -> int:
    """Return where the next value begins, after white space, a comma or a colon."""
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


@dataclass
class Fault:
    """A wrong response, and the number of requests that met it."""

    path: str
    query: str = ""
    after: int = 0
    times: int | None = None
    status: int = 500
    body: str = _SERVER_ERROR
    headers: Mapping[str, str] = field(default_factory=dict)
    matches: int = 0

    def strikes(self, path: str, query: str) -> bool:
        """Return whether it answers this request; each match is counted."""
        if not (re.search(self.path, path) and re.search(self.query, query)):
            return False
        self.matches += 1
        number = self.matches - self.after
        return number > 0 and (self.times is None or number <= self.times)


class Organization:
    """One file's content, and the decoded path and query of every request."""

    def __init__(self, text: str) -> None:
        parts = dict(members(text))
        self.faults = [_fault(one) for one in elements(parts.get("faults", "[]"))]
        self.requests: list[tuple[str, str]] = []
        self._rows = {name: elements(rows) for name, rows in members(parts.get("rows", "{}"))}
        assert self._rows.keys() <= DIMENSIONS.keys(), f"unknown endpoints: {sorted(self._rows)}"
        lists = dict(members(parts.get("lists", "{}")))
        self._lists = {name: elements(lists.get(name, "[]")) for name in ("projects", "users")}
        self._of_project = {
            name: {project: elements(listed) for project, listed in members(lists.get(name, "{}"))}
            for name in ("api_keys", "service_accounts")
        }
        self._groupings = json.loads(parts.get("groupings", "[]"))
        self._bucket_extra = members(parts.get("bucket_extra", "{}"))
        self._first_day = json.loads(parts.get("_refuse_before_days", "null"))
        self._first_day_of = json.loads(parts.get("_refuse_before_days_of", "null"))
        self._refuses_future_end = json.loads(parts.get("_refuse_future_end", "false"))

    def asked(self, path: str, query: str = "") -> int:
        """Count requests that match both expressions."""
        return sum(bool(re.search(path, p) and re.search(query, q)) for p, q in self.requests)

    def answer(self, path: str, query: str) -> tuple[int, str, Mapping[str, str]]:
        """Return status, body and headers of the response to a GET."""
        self.requests.append((path, query))
        for fault in self.faults:
            if fault.strikes(path, query):
                return fault.status, fault.body, fault.headers
        try:
            return 200, self._right_answer(path, parse_qs(query)), {}
        except _Refused as refused:
            return refused.status, str(refused), {}

    def _right_answer(self, path: str, params: Mapping[str, list[str]]) -> str:
        parts = path.removeprefix("/v1/organization/").split("/")
        match parts:
            case ["costs"]:
                return self._page("costs", params)
            case ["usage", name] if name in DIMENSIONS and name != "costs":
                return self._page(name, params)
            case ["projects"] if params.get("include_archived", [""])[0].lower() != "true":
                shown = [one for one in self._lists["projects"] if _value(one, "status") != "archived"]
                return _listed(shown, params)
            case ["projects"] | ["users"]:
                return _listed(self._lists[parts[0]], params)
            case ["projects", project, ("api_keys" | "service_accounts") as name] if self._has(project):
                return _listed(self._of_project[name].get(project, []), params)
        raise _Refused(404, json.dumps({"code": 404, "message": f"{path} was not found"}))

    def _has(self, project: str) -> bool:
        return any(_value(one, "id") == project for one in self._lists["projects"])

    def _page(self, name: str, params: Mapping[str, list[str]]) -> str:
        """Return a page of daily buckets from the token's day on."""
        now = datetime.now(UTC)
        today = int(now.timestamp()) // DAY
        most = 180 if name == "costs" else 31
        limit = _number(params, "limit", 7)
        if not 1 <= limit <= most:
            raise _bad(f"Invalid 'limit': expected a value from 1 to {most}.")
        grouping = params.get("group_by[]", []) + params.get("group_by", [])
        for dimension in grouping:
            if dimension not in DIMENSIONS[name]:
                raise _bad(f"Invalid 'group_by': {dimension} is not supported by this endpoint.")
            if (
                name == "costs"
                and dimension in ("user_id", "api_key_id")
                and dimension not in self._groupings
            ):
                raise _bad(f"Invalid 'group_by': {dimension} cannot be combined with the other values.")
        start_time = _number(params, "start_time")
        end_time = _number(params, "end_time", int(now.timestamp()))
        start = start_time // DAY
        limited = self._first_day_of is None or name in self._first_day_of
        if self._first_day is not None and limited and start < today - self._first_day:
            oldest = datetime.fromtimestamp((today - self._first_day) * DAY, UTC).date()
            raise _bad(f"Invalid 'start_time': data before {oldest} is not available.")
        if self._refuses_future_end and end_time > now.timestamp():
            raise _bad("Invalid 'end_time': it must not be in the future.")
        # The day of an end other than midnight is part of the response.
        end = min(-(-end_time // DAY), today + 1)
        first = int(params["page"][0].removeprefix("page_")) if "page" in params else start
        last = min(first + limit, end)
        buckets = [self._bucket(name, day, day - today, grouping) for day in range(first, last)]
        next_page = f'"page_{last}"' if last < end else "null"
        more = "true" if last < end else "false"
        return f'{{"object":"page","data":[{",".join(buckets)}],"has_more":{more},"next_page":{next_page}}}'

    def _bucket(self, name: str, day: int, offset: int, grouping: Sequence[str]) -> str:
        rows = [row for row in self._rows.get(name, []) if _value(row, "day") == offset]
        groups: dict[tuple[str, ...], list[Members]] = {}
        for row in rows:
            fields = [(key, text) for key, text in members(row) if key != "day"]
            of = dict(fields)
            groups.setdefault(tuple(of.get(key, "null") for key in grouping), []).append(fields)
        results = [_written(_sent(name, group, grouping)) for group in groups.values()]
        bucket = {
            "object": '"bucket"',
            "start_time": str(day * DAY),
            "end_time": str((day + 1) * DAY),
            "results": f"[{','.join(results)}]",
        }
        return _written((bucket | dict(self._bucket_extra)).items())


class _Refused(Exception):
    """A response other than 200; its text is the body."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(body)
        self.status = status


def _bad(message: str) -> _Refused:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return _Refused(400, json.dumps({"error": error}))


def fault_of(parts: Mapping[str, Any]) -> Fault:
    """Build a fault from the fields of a file."""
    return _fault(json.dumps(parts))


def _fault(text: str) -> Fault:
    parts = dict(members(text))
    values = {name: json.loads(value) for name, value in parts.items() if name != "body"}
    body = parts.get("body", _SERVER_ERROR)
    return Fault(**values, body=json.loads(body) if body.startswith('"') else body)


def _value(text: str, name: str) -> Any:
    value = dict(members(text)).get(name)
    return None if value is None else json.loads(value, parse_float=Decimal)


def _number(params: Mapping[str, list[str]], name: str, default: int | None = None) -> int:
    if name not in params and default is not None:
        return default
    try:
        return int(params[name][0])
    except (KeyError, ValueError):
        raise _bad(f"Invalid '{name}': expected an integer.") from None


def _sent(name: str, group: list[Members], grouping: Sequence[str]) -> Members:
    """Return a group's row: as written if single, else added up."""
    hidden = {dimension for dimension in DIMENSIONS[name] if dimension not in grouping}
    if "project_id" in hidden:
        hidden.add("project_name")
    if name == "costs" and "line_item" in hidden:
        hidden |= {"quantity", "quantity_unit"}
    sent = [(key, "null" if key in hidden else text) for key, text in group[0]]
    if len(group) > 1:
        sums = _sums(group)
        sent = [(key, sums.get(key, text) if key not in hidden else "null") for key, text in sent]
    known = {key for key, _ in sent}
    sent += [(dimension, "null") for dimension in DIMENSIONS[name] if dimension not in known]
    if "object" not in known:
        kind = "costs" if name == "costs" else f"usage.{name}"
        sent.insert(0, ("object", f'"organization.{kind}.result"'))
    return sent


def _sums(group: list[Members]) -> dict[str, str]:
    """Return the exact sums of amounts and counts."""
    sums: dict[str, str] = {}
    rows = [dict(row) for row in group]
    for key in rows[0]:
        texts = [row.get(key, "null") for row in rows]
        if key == "amount":
            values = [_value(text, "value") for text in texts if text != "null"]
            total = _exact(str(value) for value in values if value is not None)
            sums[key] = f'{{"value":"{total}","currency":"usd"}}'
        elif key.startswith(("input_", "output_", "num_")) or key in _OTHER_MEASURES:
            numbers = [_NUMBER.fullmatch(text) for text in texts if text != "null"]
            if all(numbers) and numbers:
                sums[key] = format(_exact(found[1] for found in numbers if found), "f")
    return sums


def _exact(texts: Iterable[str]) -> Decimal:
    """Add without losing a digit: the default context keeps 28."""
    return reduce(_WIDE.add, map(Decimal, texts), Decimal(0))


_OTHER_MEASURES = ("quantity", "images", "seconds", "characters", "usage_bytes")


def _written(fields: Any) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in fields) + "}"


def _listed(shown: list[str], params: Mapping[str, list[str]]) -> str:
    """Return one page of a list, after the object named by `after`."""
    limit = _number(params, "limit", 20)
    ids = [_value(one, "id") for one in shown]
    after = params.get("after", [None])[0]
    first = ids.index(after) + 1 if after in ids else 0
    part, part_ids = shown[first : first + limit], ids[first : first + limit]
    ends = [json.dumps(part_ids[n]) if part_ids else "null" for n in (0, -1)]
    more = "true" if first + limit < len(shown) else "false"
    return (
        f'{{"object":"list","data":[{",".join(part)}],'
        f'"first_id":{ends[0]},"last_id":{ends[1]},"has_more":{more}}}'
    )


class CaseServer:
    """An ASGI application: each Admin key reads its organization; others are refused."""

    def __init__(self, organizations: Mapping[str, Organization]) -> None:
        self.organizations = dict(organizations)
        self.base_url = ""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                phase = (await receive())["type"].removeprefix("lifespan.")
                await send({"type": f"lifespan.{phase}.complete"})
                if phase == "shutdown":
                    return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        key = headers.get("authorization", "").removeprefix("Bearer ")
        organization = self.organizations.get(key) or self.organizations.get("*")
        if organization is None:
            error = {"message": "Incorrect API key provided.", "code": "invalid_api_key"}
            return await _send(send, 401, json.dumps({"error": error}), {})
        query = unquote(scope["query_string"].decode("latin-1"))
        return await _send(send, *organization.answer(scope["path"], query))


async def _send(send: Send, status: int, body: str, headers: Mapping[str, str]) -> None:
    kind = "application/json" if body.startswith(("{", "[")) else "text/html"
    # A lone surrogate can only be sent as the escape it was written as.
    content = body.encode()
    sent = {"content-type": kind} | dict(headers) | {"content-length": str(len(content))}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})


def case_text(name: str) -> str:
    """Return the text of a file in this folder, named without its suffix."""
    return (Path(__file__).parent / f"{name}.json").read_text()


def day(offset: int) -> str:
    """Return a day counted from today's UTC date, in ISO 8601."""
    return (datetime.now(UTC).date() + timedelta(days=offset)).isoformat()


def listen(port: int = 0) -> socket.socket:
    """Return a listening socket on loopback; port 0 takes a free one."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    bound.listen(256)
    return bound


@contextmanager
def playing(server: CaseServer, port: int = 0) -> Iterator[CaseServer]:
    """Serve on loopback in a thread for the length of the block; `base_url` is its address."""
    with listen(port) as bound:
        server.base_url = f"http://{HOST}:{bound.getsockname()[1]}/v1"
        config = uvicorn.Config(
            server,  # type: ignore[arg-type]
            log_level="critical",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        serving = uvicorn.Server(config)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            serving.should_exit = True
            thread.join(timeout=10)
