"""What can go wrong between us and OpenAI's organization API, by what a person can do about it.

    OpenAIAdminError
    ├── PermanentError              asking again does not help: a person must act
    │   ├── InvalidKey              the key was deleted, revoked or mistyped
    │   ├── InsufficientPermissions the key may not read usage: project key, or its creator lost the role
    │   └── UnsupportedRequest      this organization's API refuses the query
    └── TransientError              the next refresh may well succeed
        ├── RateLimited             429 until the time for retries was spent
        ├── Unreachable             no connection, time-outs, or 5xx answers to valid requests
        │   └── NotFound            404 on a path that exists
        └── UnreadableResponse      an answer that is not the documented page: HTML, cut JSON, wrong types

Messages are sentences for a person. They never hold a key: whatever OpenAI says is redacted first.
"""


class OpenAIAdminError(Exception):
    """Anything that kept an organization's pages from being read. `reason` is a short code for counting."""

    reason = "openai_error"


class PermanentError(OpenAIAdminError):
    """Asking again with the same key does not help."""


class InvalidKey(PermanentError):
    """OpenAI does not know the key (401)."""

    reason = "invalid_key"


class InsufficientPermissions(PermanentError):
    """OpenAI knows the key, but it may not read cost and usage (403, or 401 with missing scopes)."""

    reason = "insufficient_permissions"


class UnsupportedRequest(PermanentError):
    """OpenAI refuses this combination of parameters for this organization (400)."""

    reason = "unsupported_request"


class TransientError(OpenAIAdminError):
    """The next refresh may succeed without anybody's help.

    `retry_after`: the seconds OpenAI asked us to wait, if it did.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(TransientError):
    """OpenAI kept answering 429 for as long as we may retry."""

    reason = "rate_limited"


class Unreachable(TransientError):
    """OpenAI could not be reached, was too slow, or answered with a server error."""

    reason = "unreachable"


class NotFound(Unreachable):
    """404: passing on the paths of costs and usage, final for a project that may have been deleted."""


class UnreadableResponse(TransientError):
    """OpenAI's answer is not the documented page; nothing of it is used."""

    reason = "unreadable_response"
