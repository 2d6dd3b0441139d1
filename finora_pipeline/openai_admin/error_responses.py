"""Errors for answers of OpenAI's API other than 200, and for web pages instead of an answer.

The status decides little: 401 and 403 are permanent only with codes and texts that are known to concern the
key. Every other error is transient. Each message has OpenAI's own words and the host.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from finora_pipeline.openai_admin.addresses import OPENAI_HOSTS, BaseAddress
from finora_pipeline.openai_admin.errors import (
    AccessRefused,
    IncorrectHostname,
    InsufficientPermissions,
    InvalidKey,
    IpNotAuthorized,
    NoOrganization,
    NotFound,
    NotTheAPI,
    OpenAIAdminError,
    PageTokenRejected,
    ProxyFailed,
    RateLimited,
    SpendLimitReached,
    Unreachable,
    UnreadableResponse,
    UnsupportedCountry,
    UnsupportedRequest,
    WindowRefused,
    quoted,
)
from finora_pipeline.openai_admin.json_text import Json, clean_text

_FRESH_KEY = "Create a new Admin key in OpenAI and save it here."
_SPEND_CODES = {
    "organization_spend_limit_exceeded": "the organization's spend limit is reached",
    "project_spend_limit_exceeded": "a project's spend limit is reached",
    "organization_usage_limit_exceeded": "the organization's usage limit is reached",
    "credit_balance_exhausted": "the organization's credit balance is used up",
    "insufficient_quota": "the organization's credit balance or quota is used up",
    "billing_hard_limit_reached": "the organization's spend limit is reached",
}
_OPENAI_HOST = re.compile(r"(?<![\w.-])(?:[a-z]{2,}\.)?api\.openai\.com(?![\w.-]*\w)")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
# Texts of a 400 that blames the query; a 400 with another text is repeated.
_ABOUT_THE_WINDOW = re.compile(
    r"start_time|end_time|time range|date range|too (?:old|far)|in the future", re.I
)
_ABOUT_THE_QUERY = re.compile(
    r"group|combin|support|invalid|not allowed|bucket_width|limit|must be|expected|parameter|archived",
    re.I,
)


class ErrorBody(msgspec.Struct, frozen=True):
    """The content of an error's body, whichever of the known shapes it has."""

    words: str = ""
    code: str | None = None
    kind: str | None = None
    param: str | None = None
    is_web_page: bool = False


def parse_error_body(body: bytes, headers: Mapping[str, str]) -> ErrorBody:
    """Parse `{"error": {…}}`, `{"error": "…"}`, `{"message": …}`, plain text or a web page."""
    text = body.decode("utf-8", "replace")
    if "html" in headers.get("content-type", "").lower() or text.lstrip()[:1] == "<":
        title = _TITLE.search(text[:20_000])
        return ErrorBody(title[1] if title else "", is_web_page=True)
    try:
        value: Json = msgspec.json.decode(clean_text(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorBody(text)
    if not isinstance(value, dict):
        return ErrorBody(value if isinstance(value, str) else "")
    error = value.get("error", value)
    if not isinstance(error, dict):
        return ErrorBody(error if isinstance(error, str) else "")
    texts = (error.get(key) for key in ("message", "detail"))
    words = next((text for text in texts if isinstance(text, str)), "")
    return ErrorBody(words, _text(error.get("code")), _text(error.get("type")), _text(error.get("param")))


def error_of(status: int, body: bytes, headers: Mapping[str, str], address: BaseAddress) -> OpenAIAdminError:
    """The error for an answer other than 200."""
    error_body = parse_error_body(body, headers)
    kind, sentence = _meaning(status, error_body, address)
    words = quoted(error_body.words).rstrip(".")
    code = f" ({error_body.code})" if error_body.code and not error_body.code.isdigit() else ""
    answered = f"{address.authority} answered {status}{quoted(code, 60)}"
    message = f"{sentence} {answered}{': ' + words if words else ''}."
    error = kind(message, status=status, code=error_body.code, retry_after=retry_after(headers))
    if isinstance(error, IncorrectHostname):
        error.right_host = _right_host(error_body.words, address)
    return error


def _meaning(status: int, error_body: ErrorBody, address: BaseAddress) -> tuple[type[OpenAIAdminError], str]:
    if status == 407:
        return ProxyFailed, "The proxy requires a user name and password: add them to HTTPS_PROXY."
    if error_body.is_web_page and status >= 400:
        return NotTheAPI, (
            "A web page came instead of data: from a proxy, a firewall or OpenAI's own protection. "
            "This often passes; if it persists, ask your network's administrator."
        )
    if status in (401, 403):
        return _refused(status, error_body, address)
    if status == 400:
        return _refused_query(error_body)
    if status == 429:
        return _too_much(error_body)
    if status == 404:
        return (
            NotFound,
            "OpenAI did not find the requested path; this passes unless the API address is wrong.",
        )
    if status in (408, 409) or status >= 500:
        return Unreachable, "OpenAI answered with an error; this usually passes within minutes."
    if 300 <= status < 400:
        return UnreadableResponse, (
            f"OpenAI answered with an unexpected status ({status}): redirects are not followed."
        )
    if status < 400:
        return UnreadableResponse, f"OpenAI answered with an unexpected status ({status})."
    return AccessRefused, "OpenAI refuses this request."


def _refused(status: int, error_body: ErrorBody, address: BaseAddress) -> tuple[type[OpenAIAdminError], str]:
    match error_body.code:
        case "ip_not_authorized":
            return IpNotAuthorized, (
                "This server's IP address is not on the organization's IP allowlist in OpenAI. "
                "An Owner can add it there; the key is not the cause."
            )
        case "incorrect_hostname":
            right = _right_host(error_body.words, address)
            advice = f"Give the address https://{right}/v1." if right else "Give that host's address."
            return IncorrectHostname, f"OpenAI serves this organization at another host. {advice}"
        case "no_organization":
            return NoOrganization, (
                "The creator of this key belongs to no organization in OpenAI. "
                "Have them added again, or use a key of another Owner or Admin."
            )
        case "unsupported_country_region_territory":
            return UnsupportedCountry, "OpenAI does not serve the country or region of this server's address."
        case "invalid_api_key":
            return InvalidKey, _invalid()
        case _:
            return _refused_in_words(status, error_body.words.lower())


def _refused_in_words(status: int, words: str) -> tuple[type[OpenAIAdminError], str]:
    """The error for a refusal that has no known code."""
    if "incorrect api key" in words and status == 401:
        return InvalidKey, _invalid()
    if "missing scopes" in words or "insufficient permissions" in words:
        return InsufficientPermissions, (
            "The key may not read this organization's cost and usage: it is a project key, or its creator is "
            f"no longer an Owner or Admin. {_FRESH_KEY}"
        )
    if "country, region, or territory not supported" in words:
        return UnsupportedCountry, "OpenAI does not serve the country or region of this server's address."
    return AccessRefused, "OpenAI refuses this request; the key may be fine."


def _invalid() -> str:
    return (
        "OpenAI does not accept this key: it was deleted or revoked. "
        f"{_FRESH_KEY} A ChatGPT workspace's Admin key does not work here."
    )


def _refused_query(error_body: ErrorBody) -> tuple[type[OpenAIAdminError], str]:
    if error_body.code == "ip_not_authorized":
        return (
            IpNotAuthorized,
            "This server's IP address is not on the organization's IP allowlist in OpenAI.",
        )
    if "page token" in error_body.words.lower():
        return PageTokenRejected, "OpenAI refused a page token."
    about = f"{error_body.param or ''} {error_body.words}"
    if _ABOUT_THE_WINDOW.search(about):
        return WindowRefused, "OpenAI refuses these days."
    if error_body.param or _ABOUT_THE_QUERY.search(about):
        return UnsupportedRequest, "OpenAI refuses this query."
    return AccessRefused, "OpenAI refuses this request."


def _too_much(error_body: ErrorBody) -> tuple[type[OpenAIAdminError], str]:
    code = next((code for code in (error_body.code, error_body.kind) if code in _SPEND_CODES), None)
    if code is None:
        return RateLimited, "OpenAI's rate limit for this organization is used up; it usually passes soon."
    return SpendLimitReached, (
        f"OpenAI returns no data because {_SPEND_CODES[code]}. "
        "An Owner can change that under Billing in OpenAI; the key is not the cause."
    )


def _right_host(words: str, address: BaseAddress) -> str | None:
    named = (found[0] for found in _OPENAI_HOST.finditer(words.lower()))
    return next((host for host in named if host in OPENAI_HOSTS and host != address.host), None)


def _text(value: Json) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of the `Retry-After` header, a number or a date; None without a valid one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _until(value)
    return max(0.0, seconds) if seconds < float("inf") else None


def _until(value: str) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    # A date without a zone is UTC (RFC 9110).
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def web_page(body: bytes, headers: Mapping[str, str], address: BaseAddress) -> UnreadableResponse | None:
    """The error for a web page with status 200, which captive portals send; else None."""
    error_body = ErrorBody() if body[:1] in (b"{", b"[") else parse_error_body(body[:20_000], headers)
    if not error_body.is_web_page:
        return None
    title = quoted(error_body.words).rstrip(".")
    return UnreadableResponse(
        "OpenAI's answer is not a page of data but a web page: a proxy or firewall sent it, or the API "
        f"address is wrong. {address.authority} answered 200{': ' + title if title else ''}."
    )
