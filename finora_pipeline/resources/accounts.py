"""The accounts database as a Dagster resource."""

from pathlib import Path

import dagster as dg
from pydantic import Field, PrivateAttr

from finora_pipeline.accounts.store import Accounts, open_accounts
from finora_pipeline.settings import ACCOUNTS_URL, Settings


class AccountsResource(dg.ConfigurableResource):
    """Users, plans and connections. The master key and a database's password are named here, never held:
    Dagster shows a resource's configuration and keeps it."""

    url: str = Field(description="SQLAlchemy URL of the accounts database", repr=False)
    master_key_variable: str = Field(description="Environment variable that holds the master key")
    master_key_file: str = Field(description="File that holds the master key if the environment does not")
    _accounts: Accounts | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, settings: Settings) -> "AccountsResource":
        return cls(
            url=dg.EnvVar(ACCOUNTS_URL) if settings.has_own_accounts else settings.accounts_url,
            master_key_variable=settings.master_key_variable,
            master_key_file=str(settings.master_key_file),
        )

    @property
    def accounts(self) -> Accounts:
        """The accounts, opened at the first use."""
        if self._accounts is None:
            self._accounts = open_accounts(self.url, self.master_key_variable, Path(self.master_key_file))
        return self._accounts
