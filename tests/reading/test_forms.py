"""read() as pandas, Arrow and polars: the same rows, exact in each."""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pytest

import finora_pipeline
from finora_pipeline.reading import ResultTooLarge
from tests.conftest import Installation
from tests.reading.conftest import DAYS

Form = Literal["pandas", "arrow", "polars"]
FORMS: tuple[Form, ...] = ("pandas", "arrow", "polars")
AMOUNTS = [Decimal("99999999999999999999.999999999999999999"), Decimal("-0.000000000000000001"), None]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """Each form; polars is skipped where it is not installed, but fails with FINORA_TEST_EVERYTHING."""
    if request.param == "polars" and importlib.util.find_spec("polars") is None:
        reason = "polars is missing: install requirements-dev.lock."
        if os.environ.get("FINORA_TEST_EVERYTHING"):
            pytest.fail(reason)
        pytest.skip(reason)
    return request.param


def values(frame: Any, column: str) -> list[Any]:
    """Return a column's values as Python objects, unknown ones as None."""
    if isinstance(frame, pa.Table):
        return frame[column].to_pylist()
    if isinstance(frame, pd.DataFrame):
        return [None if value is None or value is pd.NA else value for value in frame[column].tolist()]
    return frame[column].to_list()


# Amounts and types


def test_amounts_are_exact_up_to_38_digits(form: Form, extremes: Path):
    frame = finora_pipeline.read("daily_costs", as_=form, path=extremes)
    assert values(frame, "amount_usd") == AMOUNTS


def test_lists_of_amounts_are_exact(form: Form, extremes: Path):
    frame = finora_pipeline.read("daily_costs", as_=form, path=extremes, user_id="a")
    (first, unknown) = values(frame, "parts")
    assert list(first) == [Decimal("0.1"), None]
    assert unknown is None


@pytest.mark.usefixtures("installation")
def test_amounts_of_a_refresh_equal_openais(form: Form, installation: Installation):
    frame = finora_pipeline.read("daily_costs", as_=form, columns=["amount_usd"], user_id="acme")
    truth = installation.openai.truth(0, installation.history(DAYS)).total
    assert sum(values(frame, "amount_usd"), Decimal(0)) == truth


def test_amounts_have_a_decimal_type_in_arrow(extremes: Path):
    schema = finora_pipeline.read("daily_costs", as_="arrow", path=extremes).schema
    assert schema.field("amount_usd").type == pa.decimal128(38, 18)
    assert schema.field("parts").type.value_type == pa.decimal128(38, 18)


def test_amounts_have_a_decimal_type_in_polars(extremes: Path):
    pl = pytest.importorskip("polars")
    frame = finora_pipeline.read("daily_costs", as_="polars", path=extremes)
    assert frame.schema["amount_usd"] == pl.Decimal(38, 18)
    assert frame.schema["parts"] == pl.List(pl.Decimal(38, 18))


def test_floats_replace_every_amount(form: Form, extremes: Path):
    frame = finora_pipeline.read("daily_costs", as_=form, amounts="float", path=extremes, until="2026-11-02")
    assert values(frame, "amount_usd") == [1e20, -1e-18]
    assert all(isinstance(amount, float) for amount in values(frame, "amount_usd"))
    assert values(frame, "parts")[0][0] == 0.1


def test_an_unknown_count_makes_no_float(form: Form, extremes: Path):
    frame = finora_pipeline.read("daily_costs", as_=form, path=extremes)
    # A float has no 2⁵³ + 1.
    assert values(frame, "tokens") == [0, 9007199254740993, None]
    assert values(frame, "batch") == [True, False, None]


def test_pandas_types_do_not_depend_on_unknown_values(extremes: Path):
    for user in ("a", "b"):
        frame = finora_pipeline.read("daily_costs", user_id=user, path=extremes)
        assert {name: str(frame[name].dtype) for name in ("tokens", "batch")} == {
            "tokens": "Int64",
            "batch": "boolean",
        }


@pytest.mark.usefixtures("installation")
def test_every_published_table_and_view_has_the_same_rows_in_each_form(form: Form):
    with finora_pipeline.connect() as connection:
        tables = [name for (name,) in connection.execute("SHOW TABLES").fetchall()]
        assert {"daily_costs", "reconciliation", "named_usage"} <= set(tables)
        for table in tables:
            frame: Any = finora_pipeline.read(table, as_=form)
            relation = connection.table(table)
            assert len(frame) == relation.aggregate("count(*)").fetchall()[0][0], table
            names = frame.column_names if isinstance(frame, pa.Table) else list(frame.columns)
            assert names == relation.columns, table


# Rows and columns


def test_the_oldest_day_comes_first(form: Form, extremes: Path):
    every = finora_pipeline.read("daily_costs", as_=form, path=extremes)
    assert values(every, "user_id") == ["a", "b", "a"]
    without_day = finora_pipeline.read("daily_costs", as_=form, path=extremes, columns=["user_id", "tokens"])
    assert values(without_day, "tokens") == [0, 9007199254740993, None]


def test_columns_come_in_the_order_named(extremes: Path):
    frame = finora_pipeline.read("daily_costs", columns=("tokens", "date"), path=extremes)
    assert list(frame.columns) == ["tokens", "date"]


def test_a_filter_needs_no_selected_column(extremes: Path):
    frame = finora_pipeline.read(
        "daily_costs", columns=["tokens"], user_id="b", since="2026-11-02", until="2026-11-02", path=extremes
    )
    assert values(frame, "tokens") == [9007199254740993]


def test_days_of_a_history_are_its_as_of_dates(extremes: Path):
    frame = finora_pipeline.read(
        "daily_user_metrics", since="2026-11-03", until=date(2026, 11, 5), path=extremes
    )
    assert values(frame, "value") == [2, 3, 4]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ["date", "usd", "cost"],
            "daily_costs has no column “usd”, “cost”. Columns: user_id, date, amount_u",
        ),
        (["date", "date"], "columns names “date” twice"),
        ([], "columns must be a list of names"),
        ("date", "columns must be a list of names"),
        (['date" FROM connections --'], "has no column"),
    ],
)
def test_wrong_columns_are_refused_in_one_sentence(columns: Any, message: str, extremes: Path):
    with pytest.raises(ValueError, match=message) as error:
        finora_pipeline.read("daily_costs", columns=columns, path=extremes)
    assert "\n" not in str(error.value)


def test_an_unknown_form_is_refused(extremes: Path):
    with pytest.raises(ValueError, match="as_ must be “pandas”, “arrow” or “polars”, not “spark”"):
        finora_pipeline.read("daily_costs", as_="spark", path=extremes)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_missing_polars_is_one_sentence(extremes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs polars\. Install it: pip install polars\.$"):
        finora_pipeline.read("daily_costs", as_="polars", path=extremes)


def test_reading_without_pandas_does_not_import_it():
    script = "import sys, finora_pipeline.reading; print({'pandas', 'polars'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_duckdb_warns_of_no_deprecated_use(form: Form, extremes: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finora_pipeline.read("daily_costs", as_=form, path=extremes)
        with finora_pipeline.scan("daily_costs", path=extremes) as batches:
            assert batches.read_all().num_rows == 3


# costs_as_of


@pytest.fixture
def changed(installation: Installation) -> tuple[Installation, datetime, Decimal]:
    """The installation, a moment before its newest refresh, and what was known then."""
    before = finora_pipeline.read("daily_costs", user_id="acme")
    moment = datetime.now(UTC)
    simulator = installation.openai.simulator
    simulator.frozen_now = simulator.now + timedelta(hours=1)
    assert installation.refresh().succeeded
    return installation, moment, sum(before["amount_usd"].tolist(), Decimal(0))


def of_zone(moment: datetime) -> datetime:
    return moment.astimezone(timezone(timedelta(hours=-5)))


def without_zone(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


@pytest.mark.parametrize("write", [of_zone, without_zone, str, datetime.isoformat])
def test_costs_as_of_gives_what_was_known_then(changed: Any, write: Callable[[datetime], Any]):
    _, moment, known = changed
    frame = finora_pipeline.read("costs_as_of", as_of=write(moment), user_id="acme")
    assert sum(frame["amount_usd"].tolist(), Decimal(0)) == known
    now = finora_pipeline.read("daily_costs", user_id="acme")
    assert sum(now["amount_usd"].tolist(), Decimal(0)) > known
    assert frame["date"].is_monotonic_increasing


@pytest.mark.usefixtures("installation")
def test_costs_as_of_a_day_means_its_start():
    with finora_pipeline.scan("costs_as_of", as_of=date(2020, 1, 1)) as batches:
        assert batches.read_all().num_rows == 0


@pytest.mark.usefixtures("installation")
def test_as_of_is_required_by_costs_as_of_alone():
    with pytest.raises(ValueError, match="costs_as_of needs as_of, a moment like 2026-11-03 08:00"):
        finora_pipeline.read("costs_as_of")
    with pytest.raises(ValueError, match="daily_costs cannot be read with as_of; costs_as_of can"):
        finora_pipeline.read("daily_costs", as_of="2026-11-03")
    # A macro that returns a value.
    with pytest.raises(ValueError, match="Unknown table “base_model”"):
        finora_pipeline.read("base_model", as_of="2026-11-03")


@pytest.mark.usefixtures("installation")
@pytest.mark.parametrize("value", ["yesterday", "'); DROP TABLE daily_costs --", 20261103])
def test_text_unlike_a_moment_is_refused(value: Any):
    with pytest.raises(ValueError, match="as_of must be a moment like 2026-11-03 08:00"):
        finora_pipeline.read("costs_as_of", as_of=value)


# Large results


def test_a_large_result_is_refused_with_what_helps(form: Form, extremes: Path):
    with pytest.raises(ResultTooLarge) as error:
        finora_pipeline.read("large", as_=form, path=extremes, max_values=7_999_999)
    message = str(error.value)
    assert "large would be 4,000,000 rows of 2 columns; read returns at most 7,999,999 values" in message
    for help_text in ("Aggregate in SQL first", "columns=", "since=", "user_id=", "finora_pipeline.scan"):
        assert help_text in message


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 3),
        ({"max_values": 18}, 3),
        ({"max_values": 3, "columns": ["date"]}, 3),
        ({"max_values": None}, 3),
    ],
)
def test_results_up_to_the_limit_are_read(options: dict[str, Any], rows: int, extremes: Path):
    assert len(finora_pipeline.read("daily_costs", path=extremes, **options)) == rows


def test_the_limit_counts_selected_rows_and_columns(extremes: Path):
    refused: list[dict[str, Any]] = [{"max_values": 17}, {"max_values": 2, "columns": ["date"]}]
    for options in refused:
        with pytest.raises(ResultTooLarge):
            finora_pipeline.read("daily_costs", path=extremes, **options)
    assert len(finora_pipeline.read("daily_costs", path=extremes, max_values=6, user_id="b")) == 1


def test_a_result_beyond_duckdbs_memory_says_what_helps(extremes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FINORA_MEMORY_LIMIT", "128MB")
    with pytest.raises(ResultTooLarge, match=r"large needs more memory .*FINORA_MEMORY_LIMIT.*scan"):
        finora_pipeline.read("large", as_="arrow", path=extremes, max_values=None)
