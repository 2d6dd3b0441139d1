"""The documented shape of pages of costs and usage; keys that are not named here are not decoded."""

from typing import Annotated

import msgspec

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


class UsageResult(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One row of any usage endpoint; a measure that the endpoint does not have is None."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None
    num_model_requests: Count | None = None
    num_requests: Count | None = None
    input_tokens: Count | None = None
    input_cached_tokens: Count | None = None
    input_uncached_tokens: Count | None = None
    input_cache_write_tokens: Count | None = None
    input_cache_write_30m_tokens: Count | None = None
    input_cache_write_12h_tokens: Count | None = None
    input_text_tokens: Count | None = None
    input_cached_text_tokens: Count | None = None
    output_tokens: Count | None = None
    output_text_tokens: Count | None = None
    input_audio_tokens: Count | None = None
    input_cached_audio_tokens: Count | None = None
    output_audio_tokens: Count | None = None
    input_image_tokens: Count | None = None
    input_cached_image_tokens: Count | None = None
    output_image_tokens: Count | None = None
    images: Count | None = None
    seconds: Count | None = None
    characters: Count | None = None
    usage_bytes: Count | None = None
    num_sessions: Count | None = None


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
