"""The models and services of simulated organizations, with OpenAI's list prices in USD."""

from dataclasses import dataclass
from decimal import Decimal

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Model:
    """A text model.

    `name`: in line items; `usage_name`: in usage (the two differ in the live API); prices: USD per token;
    `weight`: its relative share of an organization's requests.
    """

    name: str
    usage_name: str
    input_price: Decimal
    cached_price: Decimal
    output_price: Decimal
    weight: float


def _model(name: str, prices: str, weight: float, usage_name: str | None = None) -> Model:
    """A model; `prices`: input, cached input and output in USD per million tokens."""
    asked, cached, written = (Decimal(price) / _MILLION for price in prices.split())
    return Model(name, usage_name or name, asked, cached, written, weight)


MODELS = (
    _model("gpt-4o-mini-2024-07-18", "0.15 0.075 0.60", 1.0),
    _model("gpt-4o-2024-08-06", "2.50 1.25 10.00", 0.5, usage_name="gpt-4o"),
    _model("gpt-4.1-2025-04-14", "2.00 0.50 8.00", 0.4),
    _model("gpt-5-mini-2025-08-07", "0.25 0.025 2.00", 0.8),
    _model("gpt-5-2025-08-07", "1.25 0.125 10.00", 0.4),
    _model("gpt-5.5-2026-04-23", "5.00 0.50 30.00", 0.2),
)


@dataclass(frozen=True, slots=True)
class Line:
    """How a measure is billed: the line item, the unit of its quantity and USD per unit."""

    text: str
    measure: str
    unit: str | None
    price: Decimal


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a service's usage: its weight among the parts, and its optional dimensions."""

    weight: int
    dimensions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Service:
    """An endpoint other than completions: its model, typical daily measures and billed lines.

    A measure that starts with `_` is billed but not part of the usage answer. `parts`: how its usage divides
    by the optional dimensions.
    """

    endpoint: str
    model: str | None
    typical: dict[str, int]
    lines: tuple[Line, ...] = ()
    parts: tuple[Part, ...] = ()


SERVICES = (
    Service(
        "embeddings",
        "text-embedding-3-small",
        {"input_tokens": 240_000, "num_model_requests": 120},
        (Line("text-embedding-3-small, input", "input_tokens", "tokens", Decimal("0.02") / _MILLION),),
    ),
    Service("moderations", "omni-moderation-2024-09-26", {"input_tokens": 30_000, "num_model_requests": 90}),
    Service(
        "images",
        "gpt-image-1-2025-04-23",
        {"images": 12, "num_model_requests": 9, "_image_tokens": 12_672},
        (Line("gpt-image-1 image, output", "_image_tokens", "tokens", Decimal("40") / _MILLION),),
        (
            Part(5, {"size": "1024x1024", "source": "image.generation"}),
            Part(3, {"size": "1792x1024", "source": "image.generation"}),
            Part(2, {"size": "1024x1024", "source": "image.edit"}),
        ),
    ),
    Service(
        "audio_speeches",
        "tts-1",
        {"characters": 18_000, "num_model_requests": 20},
        # A form that the grammar of line items does not know.
        (Line("tts-1 speech synthesis", "characters", "characters", Decimal("15") / _MILLION),),
    ),
    Service(
        "audio_transcriptions",
        "whisper-1",
        {"seconds": 2_400, "num_model_requests": 15},
        (Line("whisper-1, audio", "seconds", "duration_seconds", Decimal("0.0001")),),
    ),
    Service(
        "vector_stores",
        None,
        {"usage_bytes": 3_221_225_472, "_gibibyte_hours": 72},
        (Line("assistants api | file search", "_gibibyte_hours", "gibibyte_hours", Decimal("0.0041")),),
    ),
    Service(
        "code_interpreter_sessions",
        None,
        {"num_sessions": 8},
        (Line("code interpreter", "num_sessions", None, Decimal("0.03")),),
    ),
    Service(
        "file_search_calls",
        None,
        {"num_requests": 40},
        parts=(Part(3, {"vector_store_id": "vs_handbook"}), Part(1, {"vector_store_id": "vs_tickets"})),
    ),
    Service(
        "web_search_calls",
        "gpt-5-2025-08-07",
        {"num_requests": 25, "num_model_requests": 25},
        (Line("web search tool calls", "num_requests", None, Decimal("0.01")),),
        (Part(3, {"context_level": "medium"}), Part(2, {"context_level": "high"})),
    ),
    Service(
        "decisions",
        "gpt-6-astra",
        {"input_tokens": 9_000, "output_tokens": 700, "num_model_requests": 30},
        (
            Line("gpt-6-astra, input_tokens", "input_tokens", "tokens", Decimal("4") / _MILLION),
            Line("gpt-6-astra, output_tokens", "output_tokens", "tokens", Decimal("24") / _MILLION),
        ),
    ),
)
