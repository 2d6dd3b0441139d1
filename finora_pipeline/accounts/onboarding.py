"""Connect and update: OpenAI checks a key before it is stored.

Check the key's form → fetch costs → identify the organization → encrypt and store. A key of another
organization is refused, since its costs would mix with those of the connected one.
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
from finora_pipeline.openai_admin.client import Limits, OpenAIAdminClient, OrganizationClient, open_client
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.errors import OpenAIAdminError
from finora_pipeline.openai_admin.keys import AdminKey, KeyFormError, redact
from finora_pipeline.openai_admin.pages import Window, decode_costs
from finora_pipeline.plans import UnknownPlan, plan_named

# A person waits for the result, so a check gives up sooner than a refresh.
CHECK_LIMITS = Limits(timeout_seconds=15.0, retry_seconds=12.0)
# Only cost rows hold the organization's id; a month of them fits one request.
IDENTITY_DAYS = 31


@dataclass(frozen=True, slots=True, repr=False)
class Organizations:
    """Clients by connection for one run, with the keys as of its start, decrypted one at a time.

    `base_url` is the configured address of OpenAI; for a server on this machine it has the current port.
    """

    client: OpenAIAdminClient
    keys: KeyRing
    base_url: str

    def of(self, connection: Connection) -> OrganizationClient:
        """The client of the connection's organization, at the address its key is bound to.

        Raises `AccountsError` if no key is stored, `KeyReplaced` if the key changed since the connection was
        read, `AddressUnconfirmed`, and `VaultError`.
        """
        key = self.keys.key_of(connection.user_id, connection.key_version)
        return self.client.organization(key, address_of_key(connection, self.keys, self.base_url))


def address_of_key(connection: Connection, keys: KeyRing, base_url: str) -> str:
    """The base URL the connection's key is sent to. Raises `AddressUnconfirmed`."""
    bound = keys.bound_to(connection.user_id)
    if bound is None:
        raise AddressUnconfirmed(
            f"OPENAI_BASE_URL names {_host(base_url)}, which is not confirmed for this key. Unset the "
            f"variable, or confirm it with finora update --user {connection.user_id} --keep-key --base-url "
            "ADDRESS."
        )
    if not is_loopback(bound):
        return bound
    # A server on this machine may have another port after each start.
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
    """The address to check a new key at.

    The one asked for, else the connection's, else the configured one if it is OpenAI's or this machine's.
    Raises `AddressError`, and `AddressUnconfirmed` for any other configured address.
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
            "it, or pass the address with --base-url."
        ) from None
    if not (address.is_openai or address.is_loopback):
        raise AddressUnconfirmed(
            f"OPENAI_BASE_URL names {_host(configured)}, which is neither OpenAI nor this machine, so no key "
            "is sent there. Unset the variable, or pass the address with --base-url."
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
    """One line of a bulk connect: the texts of the input, not yet checked."""

    user_id: str
    plan: str
    key: str


async def check_key(client: OpenAIAdminClient, key: AdminKey) -> Organization:
    """Check with OpenAI that the key may fetch costs; return its organization. Raises `OpenAIAdminError`.

    All other parts of a refresh are optional; the first refresh reports those that OpenAI refuses.
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
    # If projects cannot be listed, the organization is identified by its costs alone.
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
    """Connect a user's OpenAI organization, or reconnect a removed one.

    Without `plan` a new user gets the first plan and a known user's stays. Another organization than before
    needs `replace_organization`: the old one's days before today stay, the new one is fetched from today on.
    The key is bound to the client's base URL. Raises `KeyFormError`, `OpenAIAdminError`, `AccountsError` or
    `UnknownPlan`, and stores nothing then.
    """
    user_id = check_user_id(user_id)
    plan = None if plan is None else plan_named(plan).name
    known = accounts.connections.get(user_id)
    if known and known.status is not Status.REMOVED:
        raise AccountsError(
            f"User {user_id} is already connected to OpenAI ({known.key_hint}). Use update for a new key."
        )
    key = AdminKey(key_text)
    organization = await check_key(client, key)
    replaces = bool(known) and _replaces(known.organization, organization, replace_organization)
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
    """Replace a user's key with another one of the same organization; the old key is used until then.

    A key of another organization needs `replace_organization`, as in `connect`. The key is bound to the
    client's base URL. Raises `KeyFormError`, `OpenAIAdminError` or `AccountsError`, and keeps the old key
    then.
    """
    user_id = check_user_id(user_id)
    known = accounts.connections.get(user_id)
    if known is None or known.status is Status.REMOVED:
        raise AccountsError(f"User {user_id} is not connected to OpenAI. Use connect.")
    key = AdminKey(key_text)
    organization = await check_key(client, key)
    replaces = _replaces(known.organization, organization, replace_organization)
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
    """Connect many users at once; yield each line's index with its connection or an error sentence.

    Lines are yielded as they finish, in any order; a bad line does not affect the others.
    """

    async def one(index: int) -> tuple[int, Connection | str]:
        line = lines[index]
        if first_of[line.user_id.strip()] != index:
            user_id = redact(line.user_id.strip())
            return index, f"User {user_id} appears twice; only the first line counts."
        try:
            return index, await connect(accounts, client, line.user_id, line.key, plan=line.plan)
        except (KeyFormError, OpenAIAdminError, AccountsError, UnknownPlan) as error:
            # A key may be in any column.
            return index, redact(str(error))

    first_of: dict[str, int] = {}
    for index, line in enumerate(lines):
        first_of.setdefault(line.user_id.strip(), index)
    for done in asyncio.as_completed([one(index) for index in range(len(lines))]):
        yield await done


def _replaces(known: Organization, found: Organization, may_replace: bool) -> bool:
    """Whether the key switches the connection to another organization.

    Raises `OtherOrganization` if it would, or might, and `may_replace` is false.
    """
    same = known.is_same_as(found)
    if same is False and not may_replace:
        another = f"another organization ({found.name})" if found.name else "another OpenAI organization"
        raise OtherOrganization(
            f"This key belongs to {another}. Paste a key of {known.name or 'the connected organization'}, or "
            "switch organizations."
        )
    if same is None and (known.organization_id or known.project_ids) and not may_replace:
        raise OtherOrganization(
            "This key does not show which OpenAI organization it belongs to. Paste one that may list the "
            "organization's projects, or switch organizations."
        )
    return same is False or (same is None and may_replace)


async def save_key(
    accounts: Accounts,
    user_id: str,
    key_text: str,
    *,
    base_url: str | None,
    configured: str,
    replace_organization: bool = False,
) -> tuple[Connection | None, Connection]:
    """Connect a user, or replace the stored key of a connected one; the connection before and after.

    `base_url` is the address that the user chose, None for the connection's own or the `configured` one.
    Raises what `address_to_check`, `connect` and `update` raise.
    """
    known = await asyncio.to_thread(accounts.connections.get, user_id)
    address = address_to_check(base_url, known, configured)
    is_connected = known is not None and known.status is not Status.REMOVED
    save = update if is_connected else connect
    async with open_client(str(address), CHECK_LIMITS) as client:
        saved = await save(accounts, client, user_id, key_text, replace_organization=replace_organization)
    return known, saved
