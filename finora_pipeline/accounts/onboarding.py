"""Connect and update: a key is checked with OpenAI before anything of it is stored.

Check the form → read costs and usage → tell whose organization it is → encrypt and store. A key of another
organization is refused, since it would mix two companies' data.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from finora_pipeline.accounts.key_ring import KeyRing
from finora_pipeline.accounts.model import (
    AccountsError,
    AddressUnconfirmed,
    Connection,
    Organization,
    OtherOrganization,
    Status,
    check_user_id,
)
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.openai_admin.addresses import (
    AddressError,
    BaseAddress,
    bound_form,
    is_loopback,
    parse_address,
)
from finora_pipeline.openai_admin.client import Limits, OpenAIAdminClient, OrganizationClient
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.errors import OpenAIAdminError
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
    one. `base_url` is where the installation has OpenAI: of a server on this machine, its port."""

    client: OpenAIAdminClient
    keys: KeyRing
    base_url: str

    def of(self, connection: Connection) -> OrganizationClient:
        """The client of the connection's organization, at the address that its key is bound to. Raises
        `AccountsError` without a key, `VaultError`; `KeyReplaced` if the connection has another key than it
        had, `AddressUnconfirmed`."""
        key = self.keys.key_of(connection.user_id, connection.key_version)
        return self.client.organization(key, address_of_key(connection, self.keys, self.base_url))


def address_of_key(connection: Connection, keys: KeyRing, base_url: str) -> str:
    """The base URL that the connection's key is sent to. Raises `AddressUnconfirmed`."""
    bound = keys.bound_to(connection.user_id)
    if bound is None:
        raise AddressUnconfirmed(
            f"The key waits for an address: OPENAI_BASE_URL names {_host(base_url)}, which is not confirmed "
            f"for it. Unset the variable, or confirm it with finora update --user {connection.user_id} "
            "--keep-key --base-url ADDRESS."
        )
    if not is_loopback(bound):
        return bound
    # A server of this machine may have another port at each start.
    try:
        if bound_form(base_url) == bound:
            return base_url
    except AddressError:
        pass
    raise AddressUnconfirmed(
        f"The key was checked against a server on this machine, but OPENAI_BASE_URL names {_host(base_url)}. "
        "Set it to that server, or save a key of OpenAI."
    )


def address_to_check(asked: str | None, known: Connection | None, configured: str) -> BaseAddress:
    """Where a key that is to be saved is checked: the address asked for, else the connection's, else the
    configured one if it is OpenAI's or this machine's.

    Raises `AddressError`, and `AddressUnconfirmed` for another that is merely configured.
    """
    if asked:
        return parse_address(asked)
    if known and known.base_url and not is_loopback(known.base_url):
        return parse_address(known.base_url)
    try:
        address = parse_address(configured)
    except AddressError as error:
        raise AddressUnconfirmed(
            f"OPENAI_BASE_URL names {_host(configured)}, where no key may be sent. {error} Correct or unset "
            "it, or give the address with --base-url."
        ) from None
    if not (address.is_openai or address.is_loopback):
        raise AddressUnconfirmed(
            f"OPENAI_BASE_URL names {_host(configured)}, which is neither OpenAI nor this machine: no key is "
            "sent there unasked. Unset the variable, or give the address with --base-url."
        )
    return address


def _host(base_url: str) -> str:
    try:
        return parse_address(base_url).authority
    except AddressError:
        pass
    try:
        return urlsplit(base_url).hostname or "no host"
    except ValueError:
        return "no host"


@dataclass(frozen=True, slots=True, repr=False)
class NewConnection:
    """One line of a bulk connect: the texts as given, not yet checked."""

    user_id: str
    plan: str
    key: str


async def check_key(client: OpenAIAdminClient, key: AdminKey) -> Organization:
    """Asks OpenAI whether the key reads costs, and whose it is. Raises `OpenAIAdminError`.

    All else that a refresh reads is optional: what of it OpenAI refuses is reported by the first refresh.
    """
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    month = Window(tomorrow - timedelta(days=IDENTITY_DAYS), tomorrow)
    organization = client.organization(key)
    costs, projects = await asyncio.gather(
        organization.fetch_newest(COSTS, month, ()), organization.projects(), return_exceptions=True
    )
    if isinstance(costs, BaseException):
        raise costs
    project_ids: frozenset[str] = frozenset()
    # Without a list of projects the organization is known by its costs alone.
    if not isinstance(projects, OpenAIAdminError):
        if isinstance(projects, BaseException):
            raise projects
        project_ids = frozenset(projects)
    pages, _ = costs
    rows = [row for page in pages for bucket in decode_costs(page.body).data for row in bucket.results]
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

    The key is checked at the client's base URL and bound to it.

    Raises `KeyFormError`, `OpenAIAdminError`, `AccountsError` or `UnknownPlan`; nothing is stored then.
    """
    user_id = check_user_id(user_id)
    plan = None if plan is None else plan_named(plan).name
    known = accounts.connections.get(user_id)
    if known and known.status is not Status.REMOVED:
        raise AccountsError(
            f"User {user_id} is already connected to OpenAI ({known.key_hint}); "
            "to store a new key use update."
        )
    key = AdminKey(key_text)
    organization = await check_key(client, key)
    replaces = bool(known) and _is_other(known.organization, organization, replace_organization)
    return accounts.connections.save(
        user_id,
        key,
        organization,
        address=bound_form(client.base_url),
        known=known,
        plan=plan,
        email=email,
        replaces_organization=replaces,
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

    One of another organization is taken only with `replace_organization`, as by `connect`. The key is bound
    to the client's base URL.

    Raises `KeyFormError`, `OpenAIAdminError` or `AccountsError`; the old key stays then.
    """
    user_id = check_user_id(user_id)
    known = accounts.connections.get(user_id)
    if known is None or known.status is Status.REMOVED:
        raise AccountsError(f"User {user_id} is not connected to OpenAI; use connect.")
    key = AdminKey(key_text)
    organization = await check_key(client, key)
    replaces = _is_other(known.organization, organization, replace_organization)
    return accounts.connections.save(
        user_id,
        key,
        organization,
        address=bound_form(client.base_url),
        known=known,
        replaces_organization=replaces,
    )


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
