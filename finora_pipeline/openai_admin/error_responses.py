"""What an answer of OpenAI's API means that is not 200, and what a connection that failed means.

The status alone decides little: 401 and 403 end for good only with the codes and texts that are known to be
the key's fault. Anything else is a passing fault, shown with OpenAI's own words and the host that was asked.
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

_FRESH_KEY = "Create a fresh Admin key in OpenAI and save it here."
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
# A 400 that is about the query: other ones may be, too, but are asked again.
_ABOUT_THE_WINDOW = re.compile(
    r"start_time|end_time|time range|date range|too (?:old|far)|in the future", re.I
)
_ABOUT_THE_QUERY = re.compile(
    r"group|combin|support|invalid|not allowed|bucket_width|limit|must be|expected|parameter|archived",
    re.I,
)


class Said(msgspec.Struct, frozen=True):
    """What an error's body says, whichever of the known shapes it has."""

    words: str = ""
    code: str | None = None
    kind: str | None = None
    param: str | None = None
    is_web_page: bool = False


def what_was_said(body: bytes, headers: Mapping[str, str]) -> Said:
    """The words and codes of an error's body: `{"error": {…}}`, `{"error": "…"}`, `{"message": …}`, a text or
    a web page."""
    text = body.decode("utf-8", "replace")
    if "html" in headers.get("content-type", "").lower() or text.lstrip()[:1] == "<":
        title = _TITLE.search(text[:20_000])
        return Said(title[1] if title else "", is_web_page=True)
    try:
        sent: Json = msgspec.json.decode(clean_text(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Said(text)
    if not isinstance(sent, dict):
        return Said(sent if isinstance(sent, str) else "")
    error = sent.get("error", sent)
    if not isinstance(error, dict):
        return Said(error if isinstance(error, str) else "")
    texts = (error.get(key) for key in ("message", "detail"))
    words = next((text for text in texts if isinstance(text, str)), "")
    return Said(words, _text(error.get("code")), _text(error.get("type")), _text(error.get("param")))


def error_of(status: int, body: bytes, headers: Mapping[str, str], address: BaseAddress) -> OpenAIAdminError:
    """What an answer other than 200 means."""
    said = what_was_said(body, headers)
    kind, sentence = _meaning(status, said, address)
    words = quoted(said.words).rstrip(".")
    code = f" ({said.code})" if said.code and not said.code.isdigit() else ""
    answered = f"{address.authority} answered {status}{quoted(code, 60)}"
    message = f"{sentence} {answered}{': ' + words if words else ''}."
    error = kind(message, status=status, code=said.code, retry_after=retry_after(headers))
    if isinstance(error, IncorrectHostname):
        error.right_host = _right_host(said.words, address)
    return error


def _meaning(status: int, said: Said, address: BaseAddress) -> tuple[type[OpenAIAdminError], str]:
    if status == 407:
        return ProxyFailed, "A proxy asks for a name and password: put them into HTTPS_PROXY."
    if said.is_web_page and status >= 400:
        return NotTheAPI, (
            "A web page came instead of data, from a proxy, a firewall or what protects OpenAI's API. "
            "It often passes; if it stays, ask your network's administrator."
        )
    if status in (401, 403):
        return _refused(status, said, address)
    if status == 400:
        return _refused_query(said)
    if status == 429:
        return _too_much(said)
    if status == 404:
        return NotFound, "OpenAI did not find what was asked for; this passes unless the address is wrong."
    if status in (408, 409) or status >= 500:
        return Unreachable, "OpenAI answered with an error; this usually passes within minutes."
    if 300 <= status < 400:
        return UnreadableResponse, (
            f"OpenAI answered with an unexpected status ({status}): redirections are not followed."
        )
    if status < 400:
        return UnreadableResponse, f"OpenAI answered with an unexpected status ({status})."
    return AccessRefused, "OpenAI refuses this request."


def _refused(status: int, said: Said, address: BaseAddress) -> tuple[type[OpenAIAdminError], str]:
    match said.code:
        case "ip_not_authorized":
            return IpNotAuthorized, (
                "This server's IP address is not on the organization's IP allowlist in OpenAI. "
                "An Owner can add it there; the key is not the cause."
            )
        case "incorrect_hostname":
            right = _right_host(said.words, address)
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
            return _refused_in_words(status, said.words.lower())


def _refused_in_words(status: int, words: str) -> tuple[type[OpenAIAdminError], str]:
    """What a refusal without a code of its own means."""
    if "incorrect api key" in words and status == 401:
        return InvalidKey, _invalid()
    if "missing scopes" in words or "insufficient permissions" in words:
        return InsufficientPermissions, (
            "The key may not read this organization's cost and usage: it is a project key, or its creator is "
            f"no longer an Owner or Admin. {_FRESH_KEY}"
        )
    if "country, region, or territory not supported" in words:
        return UnsupportedCountry, "OpenAI does not serve the country or region of this server's address."
    return AccessRefused, "OpenAI refuses this request; the key need not be the cause."


def _invalid() -> str:
    return (
        "OpenAI does not accept this key: it was deleted or revoked. "
        f"{_FRESH_KEY} A ChatGPT workspace's Admin key does not work here."
    )


def _refused_query(said: Said) -> tuple[type[OpenAIAdminError], str]:
    if said.code == "ip_not_authorized":
        return (
            IpNotAuthorized,
            "This server's IP address is not on the organization's IP allowlist in OpenAI.",
        )
    if "page token" in said.words.lower():
        return PageTokenRejected, "OpenAI refused a page token."
    about = f"{said.param or ''} {said.words}"
    if _ABOUT_THE_WINDOW.search(about):
        return WindowRefused, "OpenAI does not give these days."
    if said.param or _ABOUT_THE_QUERY.search(about):
        return UnsupportedRequest, "OpenAI refuses this query."
    return AccessRefused, "OpenAI refuses this request."


def _too_much(said: Said) -> tuple[type[OpenAIAdminError], str]:
    code = next((code for code in (said.code, said.kind) if code in _SPEND_CODES), None)
    if code is None:
        return RateLimited, "OpenAI's rate limit for this organization is used up; it usually passes soon."
    return SpendLimitReached, (
        f"OpenAI gives no figures since {_SPEND_CODES[code]}. "
        "An Owner can change that under Billing in OpenAI; the key is not the cause."
    )


def _right_host(words: str, address: BaseAddress) -> str | None:
    named = (found[0] for found in _OPENAI_HOST.finditer(words.lower()))
    return next((host for host in named if host in OPENAI_HOSTS and host != address.host), None)


def _text(value: Json) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of the `Retry-After` header, which is a number or a date; None without a usable one."""
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
    """The error of a web page that came with status 200, as captive portals and gateways send it."""
    said = Said() if body[:1] in (b"{", b"[") else what_was_said(body[:20_000], headers)
    if not said.is_web_page:
        return None
    title = quoted(said.words).rstrip(".")
    return UnreadableResponse(
        "OpenAI's answer is not a page of data but a web page: a proxy or firewall sent it, or the API "
        f"address is wrong. {address.authority} answered 200{': ' + title if title else ''}."
    )
