"""What analysts can see in the published file is explained there."""

import duckdb
import pytest

from finora_pipeline.warehouse.schema import create_or_migrate
from finora_pipeline.warehouse.tables import NAMED


@pytest.fixture
def tables(memory: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    create_or_migrate(memory)
    return memory


# Per kind of object its catalog, and the column of its name.
CATALOGS = {
    "duckdb_tables": "table_name",
    "duckdb_views": "view_name",
    "duckdb_columns": "table_name || '.' || column_name",
    "duckdb_functions": "function_name",
}


@pytest.mark.parametrize("catalog", CATALOGS)
def test_nothing_that_is_published_lacks_a_comment(catalog: str, tables: duckdb.DuckDBPyConnection):
    found = tables.execute(
        f"SELECT {CATALOGS[catalog]}, comment FROM {catalog}() WHERE schema_name = 'main' AND NOT internal"
    ).fetchall()
    assert len(found) > 5
    assert [name for name, comment in found if not (comment or "").strip()] == []


def test_columns_that_can_be_null_say_what_null_means(tables: duckdb.DuckDBPyConnection):
    silent = tables.execute(
        "SELECT columns.table_name, column_name, columns.comment FROM duckdb_columns() AS columns "
        "SEMI JOIN (FROM duckdb_tables() WHERE schema_name = 'main') USING (schema_name, table_name) "
        "WHERE is_nullable AND NOT contains(columns.comment, 'NULL')"
    ).fetchall()
    assert silent == []


@pytest.mark.parametrize("view", NAMED)
def test_columns_of_a_view_with_names_have_the_comments_of_its_table(
    view: str, tables: duckdb.DuckDBPyConnection
):
    comments = [
        dict(
            tables.execute(
                "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = ?", [name]
            ).fetchall()
        )
        for name in (NAMED[view], view)
    ]
    of_table, of_view = comments
    assert of_table.keys() < of_view.keys()
    # Those that the view replaces by the newest names.
    own = {"project_name", "organization_name"}
    assert {name: of_view[name] for name in of_table if name not in own} == {
        name: comment for name, comment in of_table.items() if name not in own
    }
