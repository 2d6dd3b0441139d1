"""The organization's directory: lists of projects, members and keys, each with an outcome."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

from finora_pipeline.openai_admin.amounts import parse_count
from finora_pipeline.openai_admin.endpoints import Listing
from finora_pipeline.openai_admin.errors import (
    InsufficientPermissions,
    InvalidKey,
    OpenAIAdminError,
    UnexpectedShape,
    quoted,
)
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import Page

# After so many failed lists of a kind the other projects' lists are not fetched.
LISTS_THAT_MAY_FAIL = 5
# A kind of list that so many projects refused and none returned is closed to the key.
LISTS_THAT_MAY_BE_REFUSED = 20
_LONGEST_ID = 200
_LATEST = 253_402_300_799
# The part of a key after its mask.
_LAST_SHOWN = re.compile(r"(?<=[^A-Za-z0-9_-])[A-Za-z0-9_-]+$")


@dataclass(frozen=True, slots=True)
class ListOutcome:
    """A list of the directory: its pages, or the error for which it could not be fetched.

    `project_id` is empty for the lists of the organization itself.
    """

    listing: Listing
    project_id: str
    pages: list[Page]
    error: OpenAIAdminError | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """All lists of a directory with their outcomes; a deleted project has empty lists."""

    lists: list[ListOutcome]

    @property
    def pages(self) -> list[Page]:
        """The pages of all lists that were fetched."""
        return [page for outcome in self.lists for page in outcome.pages]

    @property
    def failed(self) -> list[ListOutcome]:
        """The lists that could not be fetched."""
        return [outcome for outcome in self.lists if outcome.error]


class Lists:
    """The lists of a kind, one per project, while they are being fetched.

    After a refusal that concerns the key, or after too many failures, `reason_to_stop` is the error of all
    lists of this kind that were not fetched yet.
    """

    def __init__(self, listing: Listing, project_ids: Iterable[str]) -> None:
        self.listing = listing
        self._project_ids = list(dict.fromkeys(project_ids))
        self.waiting = iter(self._project_ids)
        self._outcomes: dict[str, ListOutcome] = {}
        self.reason_to_stop: OpenAIAdminError | None = None
        self._given = self._refused = self._failed = 0

    def add(self, outcome: ListOutcome) -> None:
        """Record the outcome of a list."""
        self._outcomes[outcome.project_id] = outcome
        error = outcome.error
        if error is None:
            self._given += 1
        elif error.is_refusal:
            self._refused += 1
        else:
            self._failed += 1
        is_closed = not self._given and self._refused >= LISTS_THAT_MAY_BE_REFUSED
        is_key = isinstance(error, (InvalidKey, InsufficientPermissions))
        if error and (is_key or is_closed or self._failed >= LISTS_THAT_MAY_FAIL):
            self.reason_to_stop = error

    @property
    def outcomes(self) -> list[ListOutcome]:
        """The outcomes in the order of the projects, so that equal lists make equal page sets."""
        return [self._outcomes[project_id] for project_id in self._project_ids]


def path_part(project_id: str) -> str:
    """An id as one segment of a path. Raises `UnexpectedShape` if it cannot be one."""
    if project_id in (".", "..") or len(project_id) > _LONGEST_ID:
        raise UnexpectedShape(f"OpenAI names a project {quoted(project_id, 40)!r}, which cannot be an id.")
    return quote(project_id, safe="")


class _AdminKey(msgspec.Struct):
    redacted_value: str = ""
    expires_at: msgspec.Raw = msgspec.Raw()


class _AdminKeys(msgspec.Struct):
    data: list[_AdminKey]


def expiry_of(key: AdminKey, pages: Iterable[bytes]) -> datetime | None:
    """The expiry (UTC) of a key in a list of Admin keys; None if it has none or is ambiguous.

    Raises `msgspec.DecodeError` or `AmountError` for a list of another shape.
    """
    found = {
        parse_count(bytes(item.expires_at), _LATEST)
        for body in pages
        for item in msgspec.json.decode(body, type=_AdminKeys).data
        if _is_shown_as(key, item.redacted_value)
    }
    seconds = found.pop() if len(found) == 1 else None
    return None if seconds is None or seconds < 0 else datetime.fromtimestamp(seconds, UTC)


def _is_shown_as(key: AdminKey, redacted: str) -> bool:
    """Whether OpenAI's redacted form, such as `sk-admin...abcd`, can be this key's."""
    shown = _LAST_SHOWN.search(redacted)
    return shown is not None and len(shown[0]) >= 3 and key.reveal().endswith(shown[0])
