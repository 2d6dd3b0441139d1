"""The dbt example: its source is true, its model right. dbt's `source` and `ref` are rendered here."""

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import jinja2
import pytest
import yaml

import finora_pipeline
from finora_pipeline.reading.dbt_sources import sources
from tests.conftest import Installation
from tests.reading.conftest import DAYS

PROJECT = Path(__file__).parents[2] / "docs" / "dbt"
MODEL = "monthly_project_costs"
DECLARED: dict[str, dict[str, str]] = {
    table["name"]: {column["name"]: column["data_type"] for column in table["columns"]}
    for table in yaml.safe_load((PROJECT / "models" / "sources.yml").read_text())["sources"][0]["tables"]
}


def render(file: str) -> str:
    """Return a model's or test's SQL as dbt compiles it; an undeclared table or model is an error."""

    def source(name: str, table: str) -> str:
        assert name == "finora"
        assert table in DECLARED
        return f"finora.main.{table}"

    def ref(model: str) -> str:
        assert (PROJECT / "models" / f"{model}.sql").exists()
        return f"memory.main.{model}"

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    return environment.from_string((PROJECT / file).read_text()).render(source=source, ref=ref)


def build(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(f"CREATE TABLE memory.main.{MODEL} AS {render(f'models/{MODEL}.sql')}")


# The source


def test_the_source_is_the_one_that_this_version_publishes():
    assert (PROJECT / "models" / "sources.yml").read_text() == sources(), "run make docs"


@pytest.mark.usefixtures("installation")
def test_the_source_has_the_tables_and_types_of_the_published_file():
    with finora_pipeline.connect() as connection:
        tables = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
        assert set(DECLARED) == tables
        for table, columns in DECLARED.items():
            relation = connection.table(table)
            assert columns == dict(zip(relation.columns, map(str, relation.types), strict=True)), table


def test_comments_are_descriptions():
    document = yaml.safe_load(sources())["sources"][0]
    tables = {table["name"]: table for table in document["tables"]}
    assert "The financial source" in tables["daily_costs"]["description"]
    amount = next(column for column in tables["daily_costs"]["columns"] if column["name"] == "amount_usd")
    assert amount == {
        "name": "amount_usd",
        "data_type": "DECIMAL(38,18)",
        "description": "USD, exact; NULL if OpenAI gave no amount",
    }


# The model


def test_the_model_adds_up_to_openais_total(installation: Installation):
    with finora_pipeline.connect() as connection:
        build(connection)
        for number, user in enumerate(("acme", "globex")):
            truth = installation.openai.truth(number, installation.history(DAYS))
            query = f"SELECT sum(net_usd), count(*) > 0 FROM memory.main.{MODEL} WHERE user_id = ?"
            assert connection.execute(query, [user]).fetchall() == [(truth.total, True)]
        assert connection.execute(render("tests/months_add_up.sql")).fetchall() == []


@pytest.mark.usefixtures("installation")
def test_the_add_up_test_finds_a_difference():
    with finora_pipeline.connect() as connection:
        build(connection)
        connection.execute(f"UPDATE memory.main.{MODEL} SET net_usd = net_usd + 1e-18::DECIMAL(38, 18)")
        found = connection.execute(render("tests/months_add_up.sql")).fetchall()
    assert {user for user, *_ in found} == {"acme", "globex"}


@pytest.mark.usefixtures("installation")
def test_the_models_columns_are_those_described():
    described = yaml.safe_load((PROJECT / "models" / f"{MODEL}.yml").read_text())["models"][0]
    with finora_pipeline.connect() as connection:
        build(connection)
        columns = connection.table(f"memory.main.{MODEL}").columns
        for column in described["columns"]:
            assert column["name"] in columns
            if "not_null" in column.get("data_tests", []):
                query = f"SELECT count(*) FROM memory.main.{MODEL} WHERE {column['name']} IS NULL"
                assert connection.execute(query).fetchall() == [(0,)]


@pytest.fixture
def year() -> Any:
    """Days of 2026 of the user acme, all read but June 3; the project `proj` and charges without one."""
    with duckdb.connect(":memory:") as connection:
        connection.execute(
            """
            ATTACH ':memory:' AS finora;
            CREATE TABLE finora.main.reconciliation AS
            SELECT 'acme' AS user_id, 'openai' AS provider, DATE '2026-01-10' + n::INTEGER AS date,
                CASE WHEN date >= '2026-09-01' THEN 'open' ELSE 'closed' END AS month_state
            FROM range(264) AS days(n)
            WHERE date <> '2026-06-03';
            CREATE TABLE finora.main.daily_costs (
                user_id VARCHAR, provider VARCHAR, date DATE, project_id VARCHAR, amount_usd DECIMAL(38, 18)
            );
            CREATE TABLE finora.main.projects AS
            SELECT 'acme' AS user_id, 'openai' AS provider, 'proj' AS project_id, 'Search' AS name;
            """
        )
        for month, project, amount in (
            (1, "proj", "10"),
            (2, "proj", "20"),
            (3, "proj", "50"),
            (3, None, "-0.000000000000000001"),
            (4, None, "3"),
            (5, "proj", "4"),
            (9, "proj", "1"),
        ):
            connection.execute(
                "INSERT INTO finora.main.daily_costs VALUES ('acme', 'openai', ?, ?, ?::DECIMAL(38, 18))",
                [date(2026, month, 15), project, amount],
            )
        build(connection)
        yield connection


def changes(year: duckdb.DuckDBPyConnection, project: str | None) -> dict[int, tuple[Any, ...]]:
    """Return net cost, cost of the month before and change of a project, by month."""
    rows = year.execute(
        f"SELECT month(month), net_usd, previous_usd, change FROM memory.main.{MODEL} "
        "WHERE project_id IS NOT DISTINCT FROM ?",
        [project],
    ).fetchall()
    assert len({month for month, *_ in rows}) == len(rows) == 9
    return {month: tuple(values) for month, *values in rows}


def test_a_change_compares_two_whole_months(year: duckdb.DuckDBPyConnection):
    months = changes(year, "proj")
    # January is known from the 10th on, June without a day, September still open.
    assert {month for month, (_, previous, _) in months.items() if previous is not None} == {3, 4, 5, 8}
    assert months[3] == (Decimal(50), Decimal(20), 1.5)


def test_a_month_without_charges_costs_zero(year: duckdb.DuckDBPyConnection):
    months = changes(year, "proj")
    assert months[4] == (Decimal(0), Decimal(50), -1)
    # From zero there is a previous amount, but no ratio.
    assert months[5] == (Decimal(4), Decimal(0), None)


def test_a_change_from_credits_has_the_sign_of_the_difference(year: duckdb.DuckDBPyConnection):
    (_, previous, change) = changes(year, None)[4]
    assert previous == Decimal("-0.000000000000000001")
    assert change > 0


def test_projects_have_their_names(year: duckdb.DuckDBPyConnection):
    found = year.execute(f"SELECT DISTINCT project_id, project_name FROM memory.main.{MODEL}").fetchall()
    assert set(found) == {("proj", "Search"), (None, None)}
