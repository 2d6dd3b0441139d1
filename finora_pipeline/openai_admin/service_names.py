"""The names of a service in line items and in usage: service_names.csv, one pair per row.

`line_item`: a line item's first phrase without its tier, as `service_phrase` writes it; `quantity_unit`
limits the row to charges in that unit. `service`: the usage endpoint; `usage_model`: its model, without which
the charge covers every model of the endpoint.
"""

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServiceName:
    """One pair of names. Empty texts are None."""

    line_item: str
    quantity_unit: str | None
    service: str
    usage_model: str | None


def _read() -> tuple[ServiceName, ...]:
    with (Path(__file__).parent / "service_names.csv").open(newline="", encoding="utf-8") as file:
        return tuple(
            ServiceName(
                row["line_item"], row["quantity_unit"] or None, row["service"], row["usage_model"] or None
            )
            for row in csv.DictReader(file)
        )


SERVICE_NAMES = _read()


def service_phrase(text: str) -> str:
    """A phrase in the spelling of the table: lower case, single blanks, no underscores."""
    return " ".join(text.lower().replace("_", " ").split())
