"""What can go wrong between us and OpenAI's organization API, by what a person can do about it.

    OpenAIAdminError
    ├── PermanentError              asking again does not help: a person must act
    │   ├── InvalidKey              the key was deleted, revoked or mistyped
    │   ├── InsufficientPermissions the key may not read usage: project key, or its creator lost the role
    │   ├── UnsupportedRequest      400: this organization's API refuses the query
    │   │   └── WindowRefused       its days are the reason
    │   └── WrongAddress            the key is bound to another address; nothing was sent
    └── TransientError              a later refresh may well succeed
        ├── AccessRefused           4xx for a reason that is not the key
        │   ├── IpNotAuthorized     the organization's IP allowlist lacks this server
        │   ├── IncorrectHostname   the organization is served by another host
        │   ├── NoOrganization      the key's creator belongs to no organization
        │   └── UnsupportedCountry  OpenAI does not serve this server's country
        ├── PageTokenRejected       400 for a cursor: the window is asked for again from its start
        ├── RateLimited             429 until the time for retries was spent
        ├── SpendLimitReached       429 for money: a spend limit or an empty balance
        ├── Unreachable             a connection that breaks, or 5xx answers to valid requests
        │   ├── NotFound            404 on a path that exists
        │   ├── NotTheAPI           the web page of a proxy, a firewall or the protection before the API
        │   ├── TimedOut            no whole answer in time
        │   ├── NameNotFound        the host's name has no address
        │   ├── ConnectionRefused   the network or the host refuses the connection
        │   ├── ProxyFailed         the proxy cannot be reached or refuses
        │   └── CertificateRejected the host's certificate is not trusted here
        └── UnreadableResponse      an answer that is not the documented page: HTML, cut JSON, days left out
            ├── UnexpectedShape     whole JSON, but a part has another type than documented
            ├── LossyValue          a number of money that cannot be kept to the last digit
            └── AnswerTooLarge      more bytes or rows than one answer may have

Messages are sentences for a person, in one line. They never hold a key: OpenAI's words are redacted first.
"""

import unicodedata
from typing import ClassVar

from finora_pipeline.openai_admin.keys import redact

# What is repeated of an answer's own words; the rest of a message is ours.
LONGEST_QUOTE = 160


class OpenAIAdminError(Exception):
    """Anything that kept an organization's pages from being read.

    `reason` is a short code for counting. `status` and `code` are those of OpenAI's answer, where there was
    one. `repeats` is how often the request is made again (None: until the time for retries is spent), and
    `needs_person` whether someone must change something before it can succeed.
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
        """Whether asking again with the same key and query is known to be useless."""
        return isinstance(self, PermanentError)

    @property
    def is_refusal(self) -> bool:
        """Whether OpenAI answered that this request is not allowed or possible: 4xx but 408, 409 and 429."""
        return self.status is not None and 400 <= self.status < 500 and self.status not in (408, 409, 429)


class PermanentError(OpenAIAdminError):
    """Asking again with the same key does not help."""

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
    """OpenAI refuses the days that were asked for (400); it may give others."""

    reason = "window_refused"


class WrongAddress(PermanentError):
    """The key is bound to another address than the request's; nothing was sent."""

    reason = "wrong_address"


class TransientError(OpenAIAdminError):
    """A later refresh may succeed. `retry_after`: the seconds OpenAI asked us to wait, if it did."""


class PageTokenRejected(TransientError):
    """OpenAI refuses a page token (400); the window must be asked for again from its start."""

    reason = "page_token_rejected"
    repeats = 0


class AccessRefused(TransientError):
    """OpenAI refuses the request (4xx) for a reason that is not known to be the key's fault."""

    reason = "access_refused"
    # A reason that we do not know may pass at once; one that OpenAI explains rarely does.
    repeats = 2


class IpNotAuthorized(AccessRefused):
    """The organization's IP allowlist does not hold this server's address."""

    reason = "ip_not_authorized"
    repeats = 0
    needs_person = True


class IncorrectHostname(AccessRefused):
    """The organization is served by another host: `right_host`, where OpenAI's answer names it."""

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
    """OpenAI kept answering 429 for as long as we may retry."""

    reason = "rate_limited"


class SpendLimitReached(TransientError):
    """The organization has reached a spend limit or used up its balance (429); waiting does not help soon."""

    reason = "spend_limit"
    repeats = 0
    needs_person = True


class Unreachable(TransientError):
    """OpenAI could not be reached, or answered with a server error."""

    reason = "unreachable"


class NotFound(Unreachable):
    """404: passing on the paths of costs and usage, final for a project that may have been deleted."""


class NotTheAPI(Unreachable):
    """A web page where the API's answer was expected: a proxy, a firewall, or the protection before it."""

    reason = "not_the_api"


class TimedOut(Unreachable):
    """No whole answer came in time."""

    reason = "timed_out"


class NameNotFound(Unreachable):
    """The host's name could not be resolved."""

    reason = "name_not_found"


class ConnectionRefused(Unreachable):
    """The host or the network refused the connection."""

    reason = "connection_refused"


class ProxyFailed(Unreachable):
    """The proxy of the environment cannot be reached or refuses to lead on."""

    reason = "proxy_failed"
    repeats = 2
    needs_person = True


class CertificateRejected(Unreachable):
    """The host's certificate is not signed by an authority that is trusted here."""

    reason = "certificate_rejected"
    repeats = 0
    needs_person = True


class UnreadableResponse(TransientError):
    """OpenAI's answer is not the documented page; nothing of it is used."""

    reason = "unreadable_response"


class UnexpectedShape(UnreadableResponse):
    """Whole JSON of which a part that is needed has another type than documented; rarely by chance."""

    repeats = 1


class LossyValue(UnreadableResponse):
    """A value that cannot be kept as sent; asking again would bring the same."""

    reason = "lossy_value"
    repeats = 0


class AnswerTooLarge(UnreadableResponse):
    """One answer with more bytes or rows than one may have; asking again would bring the same."""

    reason = "answer_too_large"
    repeats = 0


def quoted(text: str, longest: int = LONGEST_QUOTE) -> str:
    """Foreign text fit for a message: no key, one line, nothing invisible, no longer than `longest`."""
    text = redact(" ".join(text[: 20 * longest].split()))
    text = "".join(character if _is_shown(character) else _escape(character) for character in text)
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _is_shown(character: str) -> bool:
    # Controls, invisible formats (also those that turn the direction of writing), lone surrogates.
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}"
