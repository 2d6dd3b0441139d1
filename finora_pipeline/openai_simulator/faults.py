"""Faults on demand: each is a way in which OpenAI's API can answer badly."""

import re
from dataclasses import dataclass
from enum import StrEnum


class KeyState(StrEnum):
    """The state of an Admin key at OpenAI."""

    ACTIVE = "active"
    REVOKED = "revoked"  # 401 invalid_api_key
    DEMOTED = "demoted"  # 403 missing scopes, the body's error being a bare string
    RESTRICTED = "restricted"  # 403 missing scopes, the body's error being an object


class FaultKind(StrEnum):
    """A kind of bad answer: from `SLOW` on it alters a good answer, before it replaces one."""

    RATE_LIMIT = "rate_limit"  # 429; Retry-After unless `seconds` is None
    SERVER_ERROR = "server_error"  # 500
    NOT_FOUND = "not_found"  # 404, as users reported for costs during a whole day
    HTML = "html"  # 200 with a web page
    STATUS = "status"  # the fault's `status`, `body` and `content_type`; Retry-After unless `seconds` is None
    NO_HISTORY = "no_history"  # 400 for a window that begins more than `days` days ago
    NO_FUTURE = "no_future"  # 400 for a window that ends after now
    GZIP_BOMB = "gzip_bomb"  # 200 with `mebibytes` of zeros, compressed
    HANG = "hang"  # no answer until the caller gives up
    PAGE_TOKEN = "page_token"  # 400 for any request that carries a page token
    SLOW = "slow"  # the good answer after `seconds`
    DRIP = "drip"  # the good answer, one byte per `seconds`
    EDIT = "edit"  # the good answer with each match of the pattern `edit` replaced by the template `body`
    CUT = "cut"  # 200 with the first half of the good answer
    RESET = "reset"  # the connection closes in the middle of the good answer
    NULL_RESULTS = "null_results"  # `results` is null
    LEFT_OUT = "left_out"  # the page's second to last day has no bucket
    LATE_START = "late_start"  # only the page's last two days have buckets
    NO_AMOUNT = "no_amount"  # rows without `amount`
    FOREIGN_CURRENCY = "foreign_currency"
    NO_CURSOR = "no_cursor"  # has_more without next_page
    SAME_CURSOR = "same_cursor"  # the cursor never moves; the pages after it are empty
    ECHO_KEY = "echo_key"  # the answer contains the caller's key
    NOT_UTF8 = "not_utf8"  # names in another encoding
    NANOSECONDS = "nanoseconds"  # moments of a list in nanoseconds


@dataclass(slots=True)
class Fault:
    """A fault in the answers about an organization.

    `endpoint`: the last part of a path, None for all; `times`: how often it strikes, None for always;
    `path`, `query`: patterns searched in the whole path and in the query as sent; `after`: how many
    matching requests pass before it strikes. The other fields are parameters of `kind`.
    """

    kind: FaultKind
    endpoint: str | None = None
    times: int | None = None
    seconds: float | None = None
    path: str | None = None
    query: str | None = None
    after: int = 0
    status: int = 500
    body: str = ""
    content_type: str = "application/json"
    edit: str = ""
    days: int = 0
    mebibytes: int = 0

    def strikes(self, endpoint: str, path: str, query: str) -> bool:
        """Whether it strikes this request; counts the strike."""
        if self.endpoint not in (None, endpoint) or self.times == 0:
            return False
        if not re.search(self.path or "", path) or not re.search(self.query or "", query):
            return False
        if self.kind is FaultKind.PAGE_TOKEN and "page=" not in query:
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True
