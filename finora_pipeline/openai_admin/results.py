"""The documented shape of pages of costs and usage; other keys are not decoded."""

from typing import TYPE_CHECKING, Annotated

import msgspec

from finora_pipeline.openai_admin.measures import MEASURES

CURRENCY = "usd"


class Amount(msgspec.Struct, frozen=True, gc=False):
    """An amount in USD as a JSON string or number. OpenAI's schema makes both fields optional."""

    value: msgspec.Raw = msgspec.Raw()
    currency: str | None = CURRENCY


class CostResult(msgspec.Struct, frozen=True, gc=False):
    """One row of the costs endpoint (`organization.costs.result`)."""

    amount: Amount | None = None
    line_item: str | None = None
    project_id: str | None = None
    project_name: str | None = None
    organization_id: str | None = None
    organization_name: str | None = None
    user_id: str | None = None
    user_email: str | None = None
    api_key_id: str | None = None
    quantity: msgspec.Raw = msgspec.Raw()
    quantity_unit: str | None = None


# More than any row of a day has (a petabyte, a quadrillion tokens); thousands of them still fit into 64 bits.
MOST_COUNTED = 10**15
Count = Annotated[int, msgspec.Meta(ge=-MOST_COUNTED, le=MOST_COUNTED)]


class UsageDimensions(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The dimensions of a usage row; one that the endpoint does not have is None."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None
    size: str | None = None
    source: str | None = None
    context_level: str | None = None
    vector_store_id: str | None = None


if TYPE_CHECKING:

    class UsageResult(UsageDimensions, frozen=True):
        """One row of any usage endpoint; a measure that the endpoint does not have is None."""

        def __getattr__(self, measure: str) -> int | None: ...

else:
    UsageResult = msgspec.defstruct(
        "UsageResult",
        [(measure.field, Count | None, None) for measure in MEASURES],
        bases=(UsageDimensions,),
        module=__name__,
        frozen=True,
        gc=False,
        omit_defaults=True,
    )


class CostBucket(msgspec.Struct, frozen=True, gc=False):
    """One UTC day of costs; `results` is empty on a day without spend."""

    start_time: int
    results: list[CostResult]


class UsageBucket(msgspec.Struct, frozen=True, gc=False):
    """One UTC day of usage."""

    start_time: int
    results: list[UsageResult]


class CostPage(msgspec.Struct, frozen=True, gc=False):
    """A page of the costs endpoint."""

    object: str
    data: list[CostBucket]
    has_more: bool
    next_page: str | None = None


class UsagePage(msgspec.Struct, frozen=True, gc=False):
    """A page of any usage endpoint."""

    object: str
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None = None
