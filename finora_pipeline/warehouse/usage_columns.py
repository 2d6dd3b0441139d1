"""The columns of usage in SQL, made from the table of measures (`openai_admin/measures.py`).

`SQL_LISTS` holds the texts that stand for `{name}` in the `.sql` files. A measure that a warehouse has no
column for yet is added at the end of its table, without a schema number of its own.
"""

import json
from typing import Any

import duckdb
import msgspec

from finora_pipeline.openai_admin.endpoints import USAGE
from finora_pipeline.openai_admin.measures import MEASURES, REQUESTS, TOKENS, Measure
from finora_pipeline.openai_admin.results import UsageResult

# How many of MEASURES the first schema has: later columns come after the table's other ones.
_FIRST_MEASURES = 23
# The columns of the dimensions that OpenAI may refuse to group by (`endpoints.OPTIONAL_DIMENSIONS`).
OPTIONAL_COLUMNS = ("image_size", "image_source", "context_level", "vector_store_id")
# Restated measures that usage_revisions does not keep one by one.
_OTHER_MEASURES = tuple(measure for measure in MEASURES if measure.unit not in (REQUESTS, TOKENS))
_SQL_TYPES: dict[type[msgspec.inspect.Type], str] = {
    msgspec.inspect.StrType: "VARCHAR",
    msgspec.inspect.BoolType: "BOOLEAN",
    msgspec.inspect.IntType: "BIGINT",
}


def _definition(measure: Measure) -> str:
    return f"{measure.column} BIGINT"


def _comment(measure: Measure) -> str:
    text = f"{measure.comment}; NULL if the service does not count it".replace("'", "''")
    return f"COMMENT ON COLUMN daily_usage.{measure.column} IS '{text}';"


def _structure(kind: msgspec.inspect.Type) -> Any:
    """The structure of a decoded value, in the form that DuckDB's `from_json` takes."""
    match kind:
        case msgspec.inspect.UnionType(types=types):
            (known,) = (one for one in types if not isinstance(one, msgspec.inspect.NoneType))
            return _structure(known)
        case msgspec.inspect.StructType(fields=fields):
            return {field.encode_name: _structure(field.type) for field in fields}
        case msgspec.inspect.ListType(item_type=item):
            return [_structure(item)]
        case _:
            return _SQL_TYPES[type(kind)]


SQL_LISTS = {
    "usage_result": json.dumps(_structure(msgspec.inspect.type_info(UsageResult))),
    "measures_of_result": ",\n    ".join(f"result.{one.field} AS {one.column}" for one in MEASURES),
    "first_measures": ",\n    ".join(map(_definition, MEASURES[:_FIRST_MEASURES])),
    "later_measures": "".join(f",\n    {_definition(one)}" for one in MEASURES[_FIRST_MEASURES:]),
    "measure_comments": "\n".join(map(_comment, MEASURES)),
    "measure_sums": ",\n    ".join(f"sum({one.column})::BIGINT AS {one.column}" for one in MEASURES),
    "other_measures": " + ".join(f"coalesce({one.column}, 0)" for one in _OTHER_MEASURES),
    "optional_columns": ", ".join(OPTIONAL_COLUMNS),
    "split_services": ", ".join(f"'{one.name}'" for one in USAGE if one.optional_group_by),
    "other_units": ", ".join(dict.fromkeys(one.unit for one in _OTHER_MEASURES)),
}


def add_measures(connection: duckdb.DuckDBPyConnection) -> None:
    """Add the columns of measures that an earlier version did not know.

    Runs within the caller's transaction. The columns are NULL on days loaded before. The Parquet files of the
    table are all written again, so that they have the same columns.
    """
    columns = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE database_name = current_database() "
        "AND schema_name = 'main' AND table_name = 'daily_usage'"
    ).fetchall()
    missing = [measure for measure in MEASURES if (measure.column,) not in columns]
    for measure in missing:
        connection.execute(f"ALTER TABLE daily_usage ADD COLUMN {_definition(measure)}")
    if missing:
        connection.execute(
            "INSERT INTO pipeline.unpublished_months "
            "SELECT DISTINCT 'daily_usage', date_trunc('month', date)::DATE FROM daily_usage "
            "EXCEPT FROM pipeline.unpublished_months"
        )
