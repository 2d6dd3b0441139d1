"""The CSV file of a view: each day's cost by project and model, in exact USD."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from finora_pipeline.dashboard.figures import formats
from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.snapshots import UserSnapshot

COLUMNS = ("date", "project_id", "project_name", "model", "amount_usd")
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_rows(snapshot: UserSnapshot, view: View) -> list[Mapping[str, str]]:
    """The rows of the file, by date, project and model."""
    rows = snapshot.rows(
        "export", first=view.first, last=view.last, model=view.model, project_id=view.project_id
    )
    return [
        dict(
            zip(COLUMNS, (day.isoformat(), project or "", name or "", model, formats.exact(usd)), strict=True)
        )
        for day, project, name, model, usd in rows
    ]


def csv_text(rows: Sequence[Mapping[str, str]]) -> str:
    """The file's text, with a heading; an apostrophe disarms texts that look like formulas."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(_cells(row) for row in rows)
    return text.getvalue()


def _cells(row: Mapping[str, str]) -> Iterator[str]:
    for name, value in row.items():
        is_formula = name != "amount_usd" and value.startswith(_FORMULA)
        yield f"'{value}" if is_formula else value
