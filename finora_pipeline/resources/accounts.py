"""The accounts database as a Dagster resource."""

import dagster as dg

from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.settings import Settings


def accounts_resource(settings: Settings) -> dg.ResourceDefinition:
    """The accounts of the installation, opened for each run or tick."""

    @dg.resource(config_schema={}, description="Users, plans and connections.")
    def accounts(_: dg.InitResourceContext) -> Accounts:
        return accounts_of(settings)

    return accounts
