"""Connect and update: a key is checked with OpenAI before anything of it is stored.

Check the form → read costs and usage → tell whose organization it is → encrypt and store. A key of another
organization is refused, since it would mix two companies' data.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from finora_pipeline.accounts.model import (
    AccountsError,
    Connection,
    Organization,
    OtherOrganization,
    Status,
    check_user_id,
)
from finora_pipeline.accounts.store import Accounts, KeyRing
from finora_pipeline.openai_admin.client import Limits, OpenAIAdminClient, OrganizationClient
from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS
from finora_pipeline.openai_admin.errors import OpenAIAdminError, PermanentError
from finora_pipeline.openai_admin.keys import AdminKey, KeyFormError, redact
from finora_pipeline.openai_admin.pages import Window, decode_costs
from finora_pipeline.plans import UnknownPlan, plan_named

# A person waits for the answer: give up sooner than a refresh does.
CHECK_LIMITS = Limits(timeout_seconds=15.0, retry_seconds=12.0)
# The organization's id is known from cost rows only; a month of them fits one request.
IDENTITY_DAYS = 31


@dataclass(frozen=True, slots=True, repr=False)
class Organizations:
    """Clients by connection, for the length of a run: keys as they were when it was made, decrypted one by
    one."""

    client: OpenAIAdminClient
    keys: KeyRing

    def of(self, connection: Connection) -> OrganizationClient:
        """The client of the connection's organization. Raises `AccountsError` without a key, `VaultError`;
        `KeyReplaced` if the connection has another key than it had."""
        return self.client.organization(self.keys.key_of(connection.user_id, connection.key_version))


@dataclass(frozen=True, slots=True, repr=False)
class NewConnection:
    """One line of a bulk connect: the texts as given, not yet checked."""

    user_id: str
    plan: str
    key: str


async def check_key(client: OpenAIAdminClient, key: AdminKey) -> Organization:
    """Asks OpenAI whether the key reads costs and usage, and whose it is. Raises `OpenAIAdminError`."""
    today = datetime.now(UTC).date()
    tomorrow = today + timedelta(days=1)
    month = Window(tomorrow - timedelta(days=IDENTITY_DAYS), tomorrow)
    organization = client.organization(key)
    costs, usage, projects = await asyncio.gather(
        organization.read(COSTS, month, ()),
        organization.read(ENDPOINTS["completions"], Window(today, tomorrow), ()),
        organization.projects(),
        return_exceptions=True,
    )
    if isinstance(costs, BaseException):
        raise costs
    if isinstance(usage, BaseException):
        raise usage
    project_ids: frozenset[str] = frozenset()
    # A key restricted to usage may not list projects; the organization is then known by its costs alone.
    if not isinstance(projects, PermanentError):
        if isinstance(projects, BaseException):
            raise projects
        project_ids = frozenset(projects)
    rows = [row for page in costs for bucket in decode_costs(page.body).data for row in bucket.results]
    named = next((row for row in rows if row.organization_id), None)
    if named is None:
        return Organization(project_ids=project_ids)
    return Organization(named.organization_id, named.organization_name, project_ids)


async def connect(
    accounts: Accounts,
    client: OpenAIAdminClient,
    user_id: str,
    key_text: str,
    *,
    plan: str | None = None,
    email: str | None = None,
    replace_organization: bool = False,
) -> Connection:
    """Connects a user's OpenAI organization, or reconnects the one that was removed.

    Without a plan a new user is on the first of them, and a known one stays on theirs. Another organization
    than the one before is taken only with `replace_organization`: the old one's days before today stay, and
    from today on the new one is read.

    Raises `KeyFormError`, `OpenAIAdminError`, `AccountsError` or `UnknownPlan`; nothing is stored then.
    """
    user_id = check_user_id(user_id)
    plan = None if plan is None else plan_named(plan).name
    known = accounts.connection(user_id)
    if known and known.status is not Status.REMOVED:
        raise AccountsError(
            f"User {user_id} is already connected to OpenAI ({known.key_hint}); "
            "to store a new key use update."
        )
    key = AdminKey(key_text)
    organization = await check_key(client, key)
    replaces = bool(known) and _is_other(known.organization, organization, replace_organization)
    return accounts.save_connection(
        user_id, key, organization, known=known, plan=plan, email=email, replaces_organization=replaces
    )


async def update(
    accounts: Accounts,
    client: OpenAIAdminClient,
    user_id: str,
    key_text: str,
    *,
    replace_organization: bool = False,
) -> Connection:
    """Replaces a user's key by a fresh one of the same organization; the old one serves until then.

    One of another organization is taken only with `replace_organization`, as by `connect`.

    Raises `KeyFormError`, `OpenAIAdminError` or `AccountsError`; the old key stays then.
    """
    user_id = check_user_id(user_id)
    known = accounts.connection(user_id)
    if known is None or known.status is Status.REMOVED:
        raise AccountsError(f"User {user_id} is not connected to OpenAI; use connect.")
    key = AdminKey(key_text)
    organization = await check_key(client, key)
    replaces = _is_other(known.organization, organization, replace_organization)
    return accounts.save_connection(user_id, key, organization, known=known, replaces_organization=replaces)


async def connect_many(
    accounts: Accounts, client: OpenAIAdminClient, lines: Sequence[NewConnection]
) -> AsyncIterator[tuple[int, Connection | str]]:
    """Connects many users at once; yields each line's index and its connection or what is wrong with it.

    Lines come back as they are done, in any order; a bad line leaves the others alone.
    """

    async def one(index: int) -> tuple[int, Connection | str]:
        line = lines[index]
        if first_of[line.user_id.strip()] != index:
            user_id = redact(line.user_id.strip())
            return index, f"User {user_id} is named twice; only the first line counts."
        try:
            return index, await connect(accounts, client, line.user_id, line.key, plan=line.plan)
        except (KeyFormError, OpenAIAdminError, AccountsError, UnknownPlan) as error:
            # A key may stand in any column.
            return index, redact(str(error))

    first_of: dict[str, int] = {}
    for index, line in enumerate(lines):
        first_of.setdefault(line.user_id.strip(), index)
    for done in asyncio.as_completed([one(index) for index in range(len(lines))]):
        yield await done


def _is_other(known: Organization, found: Organization, may_replace: bool) -> bool:
    """Whether the key is taken for another organization's. Raises `OtherOrganization` if it is or may be, and
    that is not wanted."""
    same = known.is_same_as(found)
    if same is False and not may_replace:
        raise OtherOrganization(
            "This key belongs to another OpenAI organization than the one connected; its costs would be "
            "mixed. Use a key of the same organization, or close the old one's history and go on with "
            "this one."
        )
    if same is None and (known.organization_id or known.project_ids) and not may_replace:
        raise OtherOrganization(
            "This key does not show which OpenAI organization it belongs to. Use one that may list the "
            "organization's projects or, if it is another organization's, close the old one's history and go "
            "on with this one."
        )
    return same is False or (same is None and may_replace)
