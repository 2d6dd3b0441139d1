"""OpenAI's organization API as a Dagster resource: users' Admin keys are resolved inside the run."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import dagster as dg
from pydantic import Field

from finora_pipeline.accounts.connections import Organizations
from finora_pipeline.openai_admin.client import Limits, open_client
from finora_pipeline.openai_admin.endpoints import BESIDES_COSTS, Endpoint
from finora_pipeline.resources.accounts import AccountsResource
from finora_pipeline.settings import Settings

_DEFAULTS = Limits()


class OpenAIAdminResource(dg.ConfigurableResource):
    """Hands out clients of users' organizations by user id.

    Configuration holds the base address and the limits; a key exists in memory only, while it is used.
    """

    accounts: dg.ResourceDependency[AccountsResource]
    base_url: str = Field(description="As the official SDK's OPENAI_BASE_URL, with its /v1")
    concurrency: int = Field(default=_DEFAULTS.concurrency, description="Requests in flight")
    per_organization: int = Field(
        default=_DEFAULTS.per_organization, description="Requests in flight of one user"
    )
    timeout_seconds: float = Field(default=_DEFAULTS.timeout_seconds, description="Of one request")
    retry_seconds: float = Field(
        default=_DEFAULTS.retry_seconds, description="After which a request is given up"
    )
    first_pause_seconds: float = Field(
        default=_DEFAULTS.first_pause_seconds, description="Before the first repeat"
    )

    besides_costs: list[str] = Field(
        default=list(BESIDES_COSTS),
        description="What is read besides the costs: usage of services, cost splits",
    )

    directory: bool = Field(default=True, description="Read names of projects, members and keys once a day")

    @property
    def readings(self) -> list[Endpoint]:
        """What is read besides the costs."""
        return [BESIDES_COSTS[name] for name in self.besides_costs]

    @classmethod
    def of(cls, settings: Settings, accounts: AccountsResource) -> "OpenAIAdminResource":
        return cls(accounts=accounts, base_url=settings.openai_base_url)

    @asynccontextmanager
    async def organizations(self, user_ids: Sequence[str]) -> AsyncIterator[Organizations]:
        """Clients of these users' organizations; their connections to OpenAI are closed at the end."""
        limits = Limits(
            concurrency=self.concurrency,
            per_organization=self.per_organization,
            timeout_seconds=self.timeout_seconds,
            retry_seconds=self.retry_seconds,
            first_pause_seconds=self.first_pause_seconds,
        )
        async with open_client(self.base_url, limits) as client:
            yield Organizations(client, self.accounts.accounts.key_ring(user_ids))
