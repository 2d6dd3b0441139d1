"""What can go wrong at OpenAI, on demand: each fault is one way to answer badly."""

import re
from dataclasses import dataclass
from enum import StrEnum


class KeyState(StrEnum):
    """What OpenAI thinks of an Admin key."""

    ACTIVE = "active"
    REVOKED = "revoked"  # 401 invalid_api_key
    DEMOTED = "demoted"  # 403 missing scopes, the body's error being a bare string
    RESTRICTED = "restricted"  # 403 missing scopes, the body's error being an object


class FaultKind(StrEnum):
    """A bad answer. Those below `SLOW` alter a good answer, the others replace it."""

    RATE_LIMIT = "rate_limit"  # 429; Retry-After unless `seconds` is None
    SERVER_ERROR = "server_error"  # 500
    NOT_FOUND = "not_found"  # 404, as reported for costs during a whole day
    HTML = "html"  # 200 with a web page
    STATUS = "status"  # `status`, `body` and `content_type` as given, with Retry-After if `seconds` is
    NO_HISTORY = "no_history"  # 400 for a window that begins more than `days` days ago
    NO_FUTURE = "no_future"  # 400 for a window that ends after now
    GZIP_BOMB = "gzip_bomb"  # 200 with `mebibytes` of zeros, compressed
    HANG = "hang"  # no answer until the caller gives up
    PAGE_TOKEN = "page_token"  # 400 for any request that carries a page token
    SLOW = "slow"  # the right answer after `seconds`
    DRIP = "drip"  # the right answer, a byte each `seconds`
    EDIT = "edit"  # the right answer with each match of the pattern `edit` replaced by the template `body`
    CUT = "cut"  # 200 with the first half of the right answer
    RESET = "reset"  # the connection closes in the middle of the right answer
    NULL_RESULTS = "null_results"  # `results` is null
    LEFT_OUT = "left_out"  # the page's last day but today has no bucket
    LATE_START = "late_start"  # the page's days before yesterday have no buckets
    NO_AMOUNT = "no_amount"  # rows without `amount`
    FOREIGN_CURRENCY = "foreign_currency"
    NO_CURSOR = "no_cursor"  # has_more without next_page
    SAME_CURSOR = "same_cursor"  # the cursor never moves; the pages after it are empty
    ECHO_KEY = "echo_key"  # the answer repeats the caller's key
    NOT_UTF8 = "not_utf8"  # names in another encoding
    NANOSECONDS = "nanoseconds"  # moments of a list in nanoseconds


@dataclass(slots=True)
class Fault:
    """A fault of an organization: on one endpoint or on all, a number of `times` or for ever (None).

    `endpoint` is the last part of a path; `path` and `query` are patterns, found anywhere in the whole path
    and in the query as sent. So many matching requests as `after` says pass before.
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
        """Whether this request is hit; counts the hit."""
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
