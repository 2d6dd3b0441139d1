"""The documented shape of pages of costs and usage; keys that are not named here are not decoded."""

from typing import TYPE_CHECKING, Annotated

import msgspec

from finora_pipeline.openai_admin.measures import MEASURES

CURRENCY = "usd"


class Amount(msgspec.Struct, frozen=True, gc=False):
    """Money as OpenAI writes it: JSON string or number, USD. Both fields are optional in the schema."""

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


# So large that no row of a day has it (a quadrillion tokens, a petabyte), so small that thousands of them add
# up within the 64 bits of our columns.
MOST_COUNTED = 10**15
Count = Annotated[int, msgspec.Meta(ge=-MOST_COUNTED, le=MOST_COUNTED)]


class UsageDimensions(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a usage row is grouped by; a dimension that the endpoint does not have is None."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None


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
    """One UTC day of costs; an empty `results` is a day without spend."""

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
