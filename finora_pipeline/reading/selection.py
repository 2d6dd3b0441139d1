"""Which rows and columns of a published table a reader asked for, as a DuckDB relation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

import duckdb

from finora_pipeline.warehouse.snapshot import DATABASE

Amounts = Literal["decimal", "float"]
# The first of them that a table has is its day.
DAY_COLUMNS = ("date", "as_of_date")
_DECIMAL = re.compile(r"DECIMAL\(\d+,\d+\)")


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows and columns of a published table; the fields are arguments of `read` and `scan`."""

    table: str
    user_id: str | None = None
    since: date | str | None = None
    until: date | str | None = None
    as_of: datetime | date | str | None = None
    columns: Sequence[str] | None = None
    amounts: Amounts = "decimal"

    def rows(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """All columns of the selected rows; nothing is computed yet. Raises `ValueError`."""
        relation = connection.sql(f"SELECT * FROM {self._source(connection)}")
        days = [column for column in DAY_COLUMNS if column in relation.columns]
        day = days[0] if days else "date"
        since, until = _utc_day("since", self.since), _utc_day("until", self.until)
        if self.user_id is not None:
            self._require(relation, "user_id", "user_id")
            relation = relation.filter(_column("user_id") == duckdb.ConstantExpression(self.user_id))
        if since is not None:
            self._require(relation, day, "since")
            relation = relation.filter(_column(day) >= duckdb.ConstantExpression(since))
        if until is not None:
            self._require(relation, day, "until")
            relation = relation.filter(_column(day) <= duckdb.ConstantExpression(until))
        return relation

    def shown(self, rows: duckdb.DuckDBPyRelation, *, is_sorted: bool) -> duckdb.DuckDBPyRelation:
        """The selected columns of these rows; sorted, the oldest day comes first. Raises `ValueError`."""
        if self.amounts not in ("decimal", "float"):
            raise ValueError(f"amounts must be “decimal” or “float”, not “{self.amounts}”.")
        types = dict(zip(rows.columns, map(str, rows.types), strict=True))
        selected = [self._expression(name, types[name]) for name in self._names(rows.columns)]
        days = [column for column in DAY_COLUMNS if column in types]
        if is_sorted and days:
            rows = rows.sort(_column(days[0]))
        return rows.select(*selected)

    def _expression(self, name: str, kind: str) -> duckdb.Expression:
        if self.amounts == "float" and _DECIMAL.search(kind):
            return _column(name).cast(duckdb.sqltype(_DECIMAL.sub("DOUBLE", kind))).alias(name)
        return _column(name)

    def _names(self, existing: list[str]) -> list[str]:
        if self.columns is None:
            return existing
        names = [self.columns] if isinstance(self.columns, str) else list(self.columns)
        if isinstance(self.columns, str) or not names:
            raise ValueError('columns must be a list of names, such as ["date", "amount_usd"].')
        if unknown := [name for name in names if name not in existing]:
            raise ValueError(
                f"{self.table} has no column {', '.join(f'“{name}”' for name in unknown)}. "
                f"Columns: {', '.join(existing)}."
            )
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"columns names “{min(twice)}” twice. Name each column once.")
        return names

    def _require(self, relation: duckdb.DuckDBPyRelation, column: str, argument: str) -> None:
        if column not in relation.columns:
            raise ValueError(f"{self.table} has no {column}, so it cannot be read with {argument}.")

    def _source(self, connection: duckdb.DuckDBPyConnection) -> str:
        """What follows FROM: a published table or view, or a table macro at the moment `as_of`."""
        needs_moment = _published(connection)
        if self.table not in needs_moment:
            raise ValueError(f"Unknown table “{self.table}”. Tables: {', '.join(needs_moment)}.")
        moment = _utc_moment(self.as_of)
        if not needs_moment[self.table]:
            if moment is not None:
                raise ValueError(f"{self.table} cannot be read with as_of; costs_as_of can.")
            return self.table
        if moment is None:
            raise ValueError(f"{self.table} needs as_of, a moment like 2026-11-03 08:00 (UTC).")
        return f"{self.table}('{moment.isoformat()}')"


def _published(connection: duckdb.DuckDBPyConnection) -> dict[str, bool]:
    """The published tables, views and table macros by name; true for those that need a moment."""
    return dict(
        connection.execute(
            "SELECT table_name, false FROM duckdb_tables() "
            "WHERE database_name = $database AND schema_name = 'main' "
            "UNION SELECT view_name, false FROM duckdb_views() "
            "WHERE database_name = $database AND schema_name = 'main' "
            "UNION SELECT function_name, true FROM duckdb_functions() "
            "WHERE database_name = $database AND schema_name = 'main' "
            "AND function_type = 'table_macro' AND parameters = ['moment'] ORDER BY ALL",
            {"database": DATABASE},
        ).fetchall()
    )


def _column(name: str) -> duckdb.Expression:
    return duckdb.ColumnExpression(name)


def _utc_day(name: str, value: date | str | None) -> date | None:
    """The UTC day of a filter; a moment without a zone counts as UTC. Raises `ValueError`."""
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).date()
    if value is None or isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a day like 2026-11-01, not {value!r}.") from None


def _utc_moment(value: datetime | date | str | None) -> datetime | None:
    """A moment in UTC; one without a zone counts as UTC, a day as its start. Raises `ValueError`."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else value.isoformat())
    except (AttributeError, ValueError):
        raise ValueError(f"as_of must be a moment like 2026-11-03 08:00, not {value!r}.") from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
