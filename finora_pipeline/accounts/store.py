"""The accounts of an installation: one object with the repositories of its database.

Nothing here talks to OpenAI; `onboarding` checks a key before it is stored.
"""

from contextlib import suppress
from pathlib import Path

from sqlalchemy import delete
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from finora_pipeline.accounts.audit import AuditTrail, note, now_utc
from finora_pipeline.accounts.connections import Connections
from finora_pipeline.accounts.database import AccountsDatabase, alarms, open_database
from finora_pipeline.accounts.logins import Logins
from finora_pipeline.accounts.migrations import NewerAccounts
from finora_pipeline.accounts.model import AccountsError, attention_alert
from finora_pipeline.accounts.refresh_log import RefreshLog
from finora_pipeline.accounts.sealed import check_master_keys, has_secrets
from finora_pipeline.accounts.second_factor import SecondFactor
from finora_pipeline.accounts.users import Users
from finora_pipeline.accounts.vault import Vault, load_vault
from finora_pipeline.data_folder.private_files import secure_home
from finora_pipeline.openai_admin.addresses import OPENAI_BASE_URL, AddressError, bound_form
from finora_pipeline.settings import Settings


class Accounts:
    """Users, connections, the record of refreshes, logins and the audit trail of an installation."""

    def __init__(self, database: AccountsDatabase, vault: Vault) -> None:
        self.database = database
        self.vault = vault
        self.users = Users(database)
        self.connections = Connections(database, vault)
        self.refreshes = RefreshLog(database)
        self.audit = AuditTrail(database)
        self.logins = Logins(database)
        self.second_factor = SecondFactor(database, vault)

    def purge(self, user_id: str) -> dict[str, int]:
        """Delete all rows of a user except the audit row of the purge; return the number deleted by table.

        Raises `AccountsError` for an unknown user.
        """
        deleted: dict[str, int] = {}
        with self.database.write() as transaction:
            # Written before the deletion, so that its number stays above those of all deleted rows.
            noted = note(transaction, now_utc(), user_id, "purge", None)
            for repository in (self.connections, self.refreshes, self.users, self.logins):
                deleted |= repository.purge(transaction, user_id)
            deleted |= self.audit.purge(transaction, user_id, noted)
            open_alert = alarms.c.key == attention_alert(user_id)
            deleted[alarms.name] = transaction.execute(delete(alarms).where(open_alert)).rowcount
            if not any(deleted.values()):
                raise AccountsError(f"Unknown user {user_id}.")
        self.database.truncate_log(f"The encrypted key of {user_id}")
        return deleted


def accounts_of(settings: Settings) -> Accounts:
    """Open the accounts of an installation and make its files private.

    Keys stored by versions without bound addresses are bound to the address in the data folder's file, else
    to OpenAI's own; if the environment names another, they wait until an operator confirms it. Raises what
    `open_accounts` and `secure_home` raise.
    """
    secure_home(settings)
    accounts = open_accounts(settings.accounts_url, settings.master_key_variable, settings.master_key_file)
    configured = settings.folder_base_url or OPENAI_BASE_URL
    if settings.openai_base_url == configured.rstrip("/"):
        # Keys stay unbound if no key may be sent to that address; each user's refresh then reports it.
        with suppress(AddressError):
            accounts.connections.bind_keys(bound_form(configured))
    return accounts


def open_accounts(
    url: str, master_key_variable: str, master_key_file: Path, *, accepts_lost_keys: bool = False
) -> Accounts:
    """Open the accounts database at a SQLAlchemy URL, with the vault that the master key opens.

    Raises `AccountsError` if the database cannot be opened, and `VaultError`: also if stored keys need a
    master key that was not provided, unless `accepts_lost_keys`.
    """
    try:
        database_url = make_url(url)
    except ArgumentError:
        raise AccountsError(
            "FINORA_ACCOUNTS_URL must be a SQLAlchemy URL, "
            "such as postgresql+psycopg://finora@db.example/finora."
        ) from None
    is_file = database_url.get_backend_name() == "sqlite"
    if is_file and database_url.database:
        Path(database_url.database).parent.mkdir(parents=True, exist_ok=True)
    try:
        database = AccountsDatabase(open_database(url))
    except DBAPIError as error:
        place = database_url.database if is_file else f"on {database_url.host}"
        raise AccountsError(
            f"The accounts database {place} cannot be opened. Check FINORA_ACCOUNTS_URL."
        ) from error
    except NewerAccounts as error:
        raise AccountsError(str(error)) from None
    is_new = accepts_lost_keys or not has_secrets(database)
    vault = load_vault(master_key_variable, master_key_file, is_new=is_new)
    if not is_new:
        check_master_keys(database, vault, master_key_variable, master_key_file)
    return Accounts(database, vault)
