"""OpenAI's organization API as a Dagster resource; users' Admin keys are resolved inside the run."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dagster as dg

from finora_pipeline.accounts.onboarding import Organizations
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.openai_admin.addresses import OPENAI_BASE_URL, AddressError, parse_address
from finora_pipeline.openai_admin.client import Limits, open_client
from finora_pipeline.openai_admin.endpoints import EXTRA_ENDPOINTS, Endpoint
from finora_pipeline.settings import Settings


@dataclass(frozen=True)
class OpenAIAdmin:
    """Opens clients of users' organizations; a key is in memory only while it is used.

    `endpoints` are fetched in addition to costs; with `directory`, names too, once a day.
    """

    base_url: str
    limits: Limits = field(default_factory=Limits)
    endpoints: Sequence[Endpoint] = tuple(EXTRA_ENDPOINTS.values())
    directory: bool = True

    @classmethod
    def of(cls, settings: Settings) -> "OpenAIAdmin":
        """The resource of an installation."""
        limits = Limits()
        if settings.requests_at_once:
            limits = Limits(concurrency=settings.requests_at_once)
        return cls(settings.openai_base_url, limits)

    @asynccontextmanager
    async def organizations(
        self, accounts: Accounts, user_ids: Sequence[str]
    ) -> AsyncIterator[Organizations]:
        """Clients of these users' organizations, closed at the end of the block."""
        async with open_client(_default_address(self.base_url), self.limits) as client:
            yield Organizations(client, accounts.connections.key_ring(user_ids), self.base_url)


def _default_address(base_url: str) -> str:
    """The configured address, or OpenAI's if it is unusable: most keys are bound to their own address."""
    try:
        return str(parse_address(base_url))
    except AddressError:
        return OPENAI_BASE_URL


def openai_admin_resource(openai_admin: OpenAIAdmin) -> dg.ResourceDefinition:
    """The resource for one installation."""

    @dg.resource(config_schema={}, description="Clients of the users' organizations at OpenAI.")
    def clients(_: dg.InitResourceContext) -> OpenAIAdmin:
        return openai_admin

    return clients
