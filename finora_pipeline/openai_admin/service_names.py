"""What cost lines and usage endpoints call the same service: service_names.csv, one pair a row.

`line_item` is a cost line's first phrase without its tier, as `service_phrase` writes it; `quantity_unit`
limits the row to lines of that unit. `service` is the usage endpoint and `usage_model` its model; without one
the line pays for every model of the endpoint.
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
    """A phrase in the table's spelling: lower case, single blanks, no underscores."""
    return " ".join(text.lower().replace("_", " ").split())
