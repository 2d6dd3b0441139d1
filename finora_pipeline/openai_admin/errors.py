"""The errors of OpenAI's organization API, grouped by what a person can do about them.

    OpenAIAdminError
    ├── PermanentError              a repeat cannot succeed: a person must act
    │   ├── InvalidKey              the key was deleted, revoked or mistyped
    │   ├── InsufficientPermissions the key may not read usage: project key, or its creator lost the role
    │   ├── UnsupportedRequest      400: this organization's API refuses the query
    │   │   └── WindowRefused       its days are the reason
    │   └── WrongAddress            the key is bound to another address; nothing was sent
    └── TransientError              a later refresh may succeed
        ├── AccessRefused           4xx for a reason that is not the key
        │   ├── IpNotAuthorized     the organization's IP allowlist lacks this server
        │   ├── IncorrectHostname   another host serves the organization
        │   ├── NoOrganization      the key's creator belongs to no organization
        │   └── UnsupportedCountry  OpenAI does not serve this server's country
        ├── PageTokenRejected       400 for a cursor: the window is fetched again from its start
        ├── RateLimited             429 until the retry time was spent
        ├── SpendLimitReached       429 for money: a spend limit or an empty balance
        ├── Unreachable             a connection that breaks, or 5xx answers to valid requests
        │   ├── NotFound            404 on a path that exists
        │   ├── NotTheAPI           a web page of a proxy, a firewall or OpenAI's own protection
        │   ├── TimedOut            no complete answer in time
        │   ├── NameNotFound        the host's name could not be resolved
        │   ├── ConnectionRefused   the network or the host refuses the connection
        │   ├── ProxyFailed         the proxy is unreachable or refuses
        │   └── CertificateRejected the host's certificate is not trusted here
        └── UnreadableResponse      an answer that is not the documented page: HTML, cut JSON, missing days
            ├── UnexpectedShape     complete JSON in which a value has another type than documented
            ├── LossyValue          an amount that cannot be stored to the last digit
            └── AnswerTooLarge      more bytes or rows than an answer may have

A message is one line of sentences for a person. It never contains a key: OpenAI's words are redacted.
"""

import unicodedata
from typing import ClassVar

from finora_pipeline.openai_admin.keys import redact

# Characters of an answer's own words in a message.
LONGEST_QUOTE = 160


class OpenAIAdminError(Exception):
    """A page of an organization could not be fetched.

    `reason`: a short code for counting; `status` and `code`: those of OpenAI's answer, if there was one;
    `retry_after`: the seconds OpenAI asked us to wait; `repeats`: how often the request is repeated (None:
    until the retry time is spent); `needs_person`: whether a person must change something first.
    """

    reason: ClassVar[str] = "openai_error"
    repeats: ClassVar[int | None] = None
    needs_person: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def is_permanent(self) -> bool:
        """Whether a repeat with the same key and query cannot succeed."""
        return isinstance(self, PermanentError)

    @property
    def is_refusal(self) -> bool:
        """Whether OpenAI refused this request as such: any 4xx but 408, 409 and 429."""
        return self.status is not None and 400 <= self.status < 500 and self.status not in (408, 409, 429)


class PermanentError(OpenAIAdminError):
    """A repeat with the same key cannot succeed."""

    repeats = 0
    needs_person = True


class InvalidKey(PermanentError):
    """OpenAI does not know the key (401)."""

    reason = "invalid_key"


class InsufficientPermissions(PermanentError):
    """OpenAI knows the key, but it may not read cost and usage (401 or 403 with missing scopes)."""

    reason = "insufficient_permissions"


class UnsupportedRequest(PermanentError):
    """OpenAI refuses this combination of parameters for this organization (400)."""

    reason = "unsupported_request"


class WindowRefused(UnsupportedRequest):
    """OpenAI refuses the requested days (400); it may return others."""

    reason = "window_refused"


class WrongAddress(PermanentError):
    """The key is bound to another address than the request's; nothing was sent."""

    reason = "wrong_address"


class TransientError(OpenAIAdminError):
    """A later refresh may succeed."""


class PageTokenRejected(TransientError):
    """OpenAI refuses a page token (400); the window must be fetched again from its start."""

    reason = "page_token_rejected"
    repeats = 0


class AccessRefused(TransientError):
    """OpenAI refuses the request (4xx) for a reason that is not known to be the key's fault."""

    reason = "access_refused"
    # An unknown reason may pass quickly; a reason that OpenAI explains rarely does.
    repeats = 2


class IpNotAuthorized(AccessRefused):
    """The organization's IP allowlist does not contain this server's address."""

    reason = "ip_not_authorized"
    repeats = 0
    needs_person = True


class IncorrectHostname(AccessRefused):
    """Another host serves the organization: `right_host`, if OpenAI's answer names it."""

    reason = "incorrect_hostname"
    repeats = 0
    needs_person = True
    right_host: str | None = None


class NoOrganization(AccessRefused):
    """The key's creator belongs to no organization."""

    reason = "no_organization"
    repeats = 0
    needs_person = True


class UnsupportedCountry(AccessRefused):
    """OpenAI does not serve the country of this server's address."""

    reason = "unsupported_country"
    repeats = 0
    needs_person = True


class RateLimited(TransientError):
    """OpenAI answered 429 until the retry time was spent."""

    reason = "rate_limited"


class SpendLimitReached(TransientError):
    """The organization reached a spend limit or has no balance left (429)."""

    reason = "spend_limit"
    repeats = 0
    needs_person = True


class Unreachable(TransientError):
    """OpenAI could not be reached, or answered with a server error."""

    reason = "unreachable"


class NotFound(Unreachable):
    """404: transient on the paths of costs and usage, final for a deleted project."""


class NotTheAPI(Unreachable):
    """A web page instead of an answer: from a proxy, a firewall or OpenAI's own protection."""

    reason = "not_the_api"


class TimedOut(Unreachable):
    """No complete answer came in time."""

    reason = "timed_out"


class NameNotFound(Unreachable):
    """The host's name could not be resolved."""

    reason = "name_not_found"


class ConnectionRefused(Unreachable):
    """The host or the network refused the connection."""

    reason = "connection_refused"


class ProxyFailed(Unreachable):
    """The environment's proxy is unreachable or refuses to connect to the host."""

    reason = "proxy_failed"
    repeats = 2
    needs_person = True


class CertificateRejected(Unreachable):
    """The host's certificate is invalid, or this server does not trust its authority."""

    reason = "certificate_rejected"
    repeats = 0
    needs_person = True


class UnreadableResponse(TransientError):
    """OpenAI's answer is not the documented page; no part of it is used."""

    reason = "unreadable_response"


class UnexpectedShape(UnreadableResponse):
    """Complete JSON in which a required value has another type than documented."""

    repeats = 1


class LossyValue(UnreadableResponse):
    """A value that cannot be stored as sent; a repeat would return the same."""

    reason = "lossy_value"
    repeats = 0


class AnswerTooLarge(UnreadableResponse):
    """An answer with more bytes or rows than allowed; a repeat would return the same."""

    reason = "answer_too_large"
    repeats = 0


def quoted(text: str, longest: int = LONGEST_QUOTE) -> str:
    """Foreign text made safe for a message: one line without keys or invisible characters.

    At most `longest` characters; a longer text ends with an ellipsis.
    """
    text = redact(" ".join(text[: 20 * longest].split()))
    text = "".join(character if _is_shown(character) else _escape(character) for character in text)
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _is_shown(character: str) -> bool:
    # Controls, invisible formats (bidirectional overrides included), lone surrogates.
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}"
