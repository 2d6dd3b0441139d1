"""The reading API: exact amounts, one snapshot, no waiting, no secrets."""

import csv
import json
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import duckdb
import pandas as pd
import pytest
from click.testing import CliRunner

import finora_pipeline
from finora_pipeline.cli import main
from finora_pipeline.data_folder.disk import DatabaseDamaged
from finora_pipeline.reading import NothingPublished
from tests.conftest import Installation
from tests.reading.conftest import DAYS


def spent(connection: duckdb.DuckDBPyConnection) -> Decimal:
    """Return acme's total cost in USD, as this connection shows it."""
    return connection.execute("SELECT sum(amount_usd) FROM daily_costs WHERE user_id = 'acme'").fetchall()[0][
        0
    ]


def total(frame: pd.DataFrame) -> Decimal:
    """Return the exact sum of a frame's amounts in USD."""
    return sum(frame["amount_usd"].tolist(), Decimal(0))


# read()


@pytest.mark.parametrize("hour", [0, 5, 23])
@pytest.mark.parametrize("zone", [None, UTC])
def test_read_takes_a_moment_for_its_day(hour, zone, installation):
    day = installation.today - timedelta(days=1)
    moment = datetime(day.year, day.month, day.day, hour, tzinfo=zone)
    frame = finora_pipeline.read("daily_costs", since=moment, until=moment)
    assert set(frame["date"].dt.date) == {day}
    assert len(frame) == len(finora_pipeline.read("daily_costs", since=day, until=str(day)))


def test_a_moment_of_another_zone_means_its_utc_day(installation):
    day = installation.today - timedelta(days=1)
    late = datetime(day.year, day.month, day.day, 23, tzinfo=timezone(timedelta(hours=-5)))
    assert finora_pipeline.read("daily_costs", since=late)["date"].dt.date.min() == day + timedelta(days=1)


@pytest.mark.usefixtures("installation")
@pytest.mark.parametrize("value", ["yesterday", "", 20261120])
def test_text_unlike_a_day_is_refused(value):
    with pytest.raises(ValueError, match="since must be a day like 2026-11-01"):
        finora_pipeline.read("daily_costs", since=value)


@pytest.mark.usefixtures("installation")
def test_amounts_accepts_exact_or_float_only():
    with pytest.raises(ValueError, match="decimal"):
        finora_pipeline.read("daily_costs", amounts="floats")  # pyright: ignore[reportArgumentType]


def test_read_gives_a_table_with_exact_amounts(installation):
    frame = finora_pipeline.read("daily_costs")
    assert set(frame["user_id"]) == {"acme", "globex"}
    assert all(isinstance(amount, Decimal) for amount in frame["amount_usd"])
    truth = [installation.openai.truth(number, installation.history(DAYS)).total for number in range(2)]
    assert total(frame) == sum(truth)
    assert frame["date"].is_monotonic_increasing
    assert str(frame["date"].dtype).startswith("datetime64")
    assert str(frame["fetched_at"].dt.tz) == "UTC"


@pytest.mark.usefixtures("installation")
def test_read_makes_floats_only_when_asked():
    exact = finora_pipeline.read("daily_costs", user_id="acme")
    floats = finora_pipeline.read("daily_costs", user_id="acme", amounts="float")
    assert floats["amount_usd"].dtype == "float64"
    assert floats["quantity"].dtype == "float64"
    assert list(floats.columns) == list(exact.columns)
    assert sum(floats["amount_usd"].tolist()) == pytest.approx(float(total(exact)))


@pytest.mark.parametrize(
    "table", ["daily_costs", "daily_usage", "daily_model_costs", "user_metrics", "connections"]
)
@pytest.mark.usefixtures("installation")
def test_every_published_table_can_be_read_for_one_user(table):
    frame = finora_pipeline.read(table, user_id="acme")
    assert len(frame) > 0
    assert set(frame["user_id"]) == {"acme"}
    assert len(finora_pipeline.read(table)) > len(frame)


@pytest.mark.parametrize(
    "table",
    [
        "daily_usage",
        "daily_model_costs",
        pytest.param("user_metrics"),
        "connections",
    ],
)
@pytest.mark.usefixtures("installation")
def test_every_published_table_can_be_read_as_floats(table):
    frame = finora_pipeline.read(table, amounts="float")
    assert not any(isinstance(value, Decimal) for value in frame.iloc[0])


def test_since_and_until_are_days_and_both_included(installation):
    today = installation.today
    first, last = today - timedelta(days=2), today - timedelta(days=1)
    days = {moment.date() for moment in finora_pipeline.read("daily_costs", since=first, until=last)["date"]}
    assert days == {first, last}
    as_text = finora_pipeline.read("daily_costs", since=first.isoformat(), until=last.isoformat())
    assert {moment.date() for moment in as_text["date"]} == days
    since = finora_pipeline.read("daily_costs", since=last)
    assert {moment.date() for moment in since["date"]} == {last, today}
    until = finora_pipeline.read("daily_costs", until=first, user_id="globex")
    assert max(until["date"]).date() == first
    assert set(until["user_id"]) == {"globex"}


@pytest.mark.usefixtures("installation")
def test_a_filter_without_matches_gives_an_empty_table_with_columns():
    nothing = finora_pipeline.read("daily_costs", user_id="missing", since=date(2026, 1, 1))
    assert len(nothing) == 0
    assert list(nothing.columns) == list(finora_pipeline.read("daily_costs").columns)
    # A user id is a value, never SQL.
    assert len(finora_pipeline.read("daily_costs", user_id="' OR true --")) == 0


@pytest.mark.usefixtures("installation")
def test_an_unknown_table_error_lists_the_tables():
    with pytest.raises(ValueError, match=r"Unknown table “costs”. Tables: .*api_keys, .*, reconciliation,"):
        finora_pipeline.read("costs")
    with pytest.raises(ValueError, match="Unknown table"):
        finora_pipeline.read("daily_costs; DROP TABLE daily_costs")
    # The pipeline's bookkeeping tables are not published.
    with pytest.raises(ValueError, match="Unknown table “loaded_files”"):
        finora_pipeline.read("loaded_files")


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.usefixtures("installation")
def test_a_day_filter_on_a_table_without_days_is_refused(name):
    day: dict[str, Any] = {name: date(2026, 11, 1)}
    with pytest.raises(ValueError, match=f"connections has no date, so it cannot be read with {name}"):
        finora_pipeline.read("connections", **day)


def test_read_takes_the_path_of_another_published_file(installation, monkeypatch, tmp_path):
    copy = tmp_path / "a copy's name.duckdb"
    copy.write_bytes(installation.settings.published_database.read_bytes())
    monkeypatch.setenv("FINORA_HOME", str(tmp_path))
    assert len(finora_pipeline.read("connections", path=copy)) == 2
    assert len(finora_pipeline.read("connections", path=str(copy))) == 2


def test_reading_before_the_first_refresh_raises():
    with pytest.raises(NothingPublished, match=r"does not exist\. Connect .* and run finora refresh first"):
        finora_pipeline.read("daily_costs")
    with pytest.raises(FileNotFoundError):
        finora_pipeline.connect()


def test_the_package_exports_only_its_public_names():
    with pytest.raises(AttributeError, match="no attribute 'write'"):
        finora_pipeline.write  # noqa: B018


# connect()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM daily_costs",
        "UPDATE connections SET status = 'active'",
        "INSERT INTO connections SELECT * FROM connections",
        "DROP TABLE daily_costs",
        "CREATE TABLE mine (id INTEGER)",
        "CREATE OR REPLACE MACRO exact_ratio(a, b) AS a / b",
    ],
)
@pytest.mark.usefixtures("installation")
def test_a_connection_reads_only(statement):
    with finora_pipeline.connect() as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute(statement)


@pytest.mark.usefixtures("installation")
def test_a_connection_shows_moments_in_utc():
    with finora_pipeline.connect() as connection:
        (moment,) = connection.execute("SELECT last_refresh_at FROM connections LIMIT 1").fetchall()[0]
        (text,) = connection.execute("SELECT last_refresh_at::VARCHAR FROM connections LIMIT 1").fetchall()[0]
    assert isinstance(moment, datetime)
    assert moment.utcoffset() == timedelta(0)
    assert text.endswith("+00")


@pytest.mark.usefixtures("installation")
def test_analysts_use_the_macros_of_the_metrics():
    with finora_pipeline.connect() as connection:
        row = connection.execute(
            "SELECT exact_ratio(1, 3), exact_ratio(2.5, 4, per := 1000), exact_ratio(1, 0), "
            "base_model('gpt-4o-2024-08-06')"
        ).fetchall()[0]
    assert row == (Decimal("0.333333333333333333"), Decimal("625"), None, "gpt-4o")


def test_a_reader_keeps_its_snapshot_and_blocks_no_refresh(installation):
    simulator = installation.openai.simulator
    with finora_pipeline.connect() as reader:
        before = spent(reader)
        # An hour later OpenAI has charged more for today.
        simulator.frozen_now += timedelta(hours=1)
        refreshed = installation.refresh()
        assert refreshed.succeeded
        assert refreshed.failed_users == []
        assert spent(reader) == before
        with finora_pipeline.connect() as newer:
            after = spent(newer)
            assert after == installation.openai.truth(0, installation.history(DAYS)).total
            assert after > before
            assert spent(reader) == before
    assert total(finora_pipeline.read("daily_costs", user_id="acme")) == after


# Secrets


def test_no_published_file_holds_a_secret(installation):
    with closing(sqlite3.connect(installation.settings.home / "accounts.sqlite")) as accounts:
        rows = accounts.execute("SELECT wrapped_key, ciphertext FROM credentials").fetchall()
    secrets = [secret for row in rows for secret in row]
    secrets += [organization.admin_key.encode() for organization in installation.openai.organizations]
    secrets.append(installation.settings.master_key_file.read_bytes().strip())
    assert len(secrets) == 7
    files = [path for path in installation.settings.home.rglob("*") if path.is_file()]
    outside = [path for path in files if not path.name.startswith(("accounts.sqlite", "master.key"))]
    assert {"finora.duckdb", "daily_costs.parquet"} <= {path.name for path in outside}
    holding = {path.name for path in outside if any(secret in path.read_bytes() for secret in secrets)}
    assert holding == set()


@pytest.mark.usefixtures("installation")
def test_no_published_value_looks_like_a_key():
    # The file's bytes are compressed, so the values are searched as well.
    with finora_pipeline.connect() as connection:
        tables = connection.execute(
            "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE database_name = 'finora'"
        ).fetchall()
        assert ("main.connections",) in tables
        for (table,) in tables:
            query = f"SELECT count(*) FROM {table} AS entry WHERE entry::VARCHAR LIKE '%sk-admin%'"
            assert connection.execute(query).fetchall() == [(0,)], table


# Access of SQL


CLOSED = [
    "FROM read_text('/etc/hostname')",
    "FROM read_blob('/proc/self/environ')",
    "FROM read_csv('/etc/passwd')",
    "FROM glob('/etc/*')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM parquet_metadata('/etc/passwd')",
    "FROM '/etc/passwd'",
    "FROM 'https://example.com/a.parquet'",
    "COPY daily_costs TO '{folder}/costs.csv'",
    "COPY daily_costs TO '{file}'",
    "COPY daily_costs TO '{file}' (FORMAT csv, USE_TMP_FILE false)",
    "COPY daily_costs TO '{file}.wal' (FORMAT csv)",
    "COPY (SELECT 1) TO '/dev/stdout' (FORMAT csv)",
    "EXPORT DATABASE '{folder}/all'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{file}' AS again",
    "ATTACH '{file}' AS again (READ_ONLY)",
    "ATTACH '{folder}/new.duckdb' AS new",
    "INSTALL httpfs",
    "LOAD httpfs",
    "INSTALL h3 FROM community",
    "LOAD '{folder}/evil.duckdb_extension'",
    "CREATE PERSISTENT SECRET mine (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "FROM enable_logging('QueryLog', storage = 'file', storage_path = '{folder}/log')",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET lock_configuration = false",
    "SET disabled_filesystems = ''",
    "SET allowed_directories = ['/']",
    "SET autoload_known_extensions = true",
    "SET temp_directory = '{folder}'",
    "SET log_query_path = '{folder}/queries'",
    "SET profiling_output = '{folder}/profile'",
    "SET memory_limit = '1GB'",
    "SET TimeZone = 'Asia/Tokyo'",
]


@pytest.mark.parametrize("statement", CLOSED)
def test_sql_reaches_the_published_tables_alone(statement, installation, tmp_path):
    file = installation.settings.published_database
    before = (file.read_bytes(), sorted(file.parent.iterdir()))
    with finora_pipeline.connect(file) as connection:
        with pytest.raises(duckdb.Error):
            connection.execute(statement.format(folder=tmp_path / "mine", file=file)).fetchall()
        assert connection.execute("SELECT count(*) > 0 FROM daily_costs").fetchall() == [(True,)]
    assert (file.read_bytes(), sorted(file.parent.iterdir())) == before
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("statement", ["FROM read_text('/etc/hostname')", "SET threads = 1", "LOAD httpfs"])
@pytest.mark.usefixtures("installation")
def test_the_command_refuses_other_than_published_tables(statement):
    result = CliRunner().invoke(main, ["sql", statement])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "\n" not in result.stderr.strip()


def test_full_duckdb_access_is_available_on_request(installation, tmp_path):
    with finora_pipeline.connect(external_access=True) as connection:
        connection.execute(f"COPY daily_costs TO '{tmp_path}/costs.parquet'")
        read = connection.execute(f"SELECT count(*) FROM '{tmp_path}/costs.parquet'").fetchall()
        assert read == connection.execute("SELECT count(*) FROM daily_costs").fetchall()
    assert installation.sql("SELECT 1") == [(1,)]


@pytest.mark.usefixtures("installation")
def test_tables_created_in_memory_belong_to_one_reader():
    with finora_pipeline.connect() as connection:
        connection.execute("CREATE TEMP TABLE mine AS SELECT date, amount_usd FROM daily_costs")
        assert connection.execute("SELECT count(*) > 0 FROM mine").fetchall() == [(True,)]


def test_a_damaged_published_file_raises_one_sentence(installation, tmp_path):
    damaged = tmp_path / "finora.duckdb"
    damaged.write_bytes(installation.settings.published_database.read_bytes()[:100])
    with pytest.raises(DatabaseDamaged, match="cannot be read; it is damaged or another kind of file"):
        finora_pipeline.connect(damaged)


HOSTILE = "chr(27) || ']0;title' || chr(7) || chr(155) || '31m' || chr(8238) || chr(13)"


@pytest.mark.parametrize("options", [[], ["--csv"], ["--json"]])
@pytest.mark.usefixtures("installation")
def test_no_text_in_a_result_controls_the_terminal(options):
    shown = CliRunner().invoke(
        main, ["sql", f'SELECT {HOSTILE} AS "a\x1b[31m", [{HOSTILE}] AS list', *options]
    )
    assert shown.exit_code == 0
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(shown.output)


@pytest.mark.usefixtures("installation")
def test_json_escapes_every_control_character():
    shown = CliRunner().invoke(main, ["sql", f"SELECT {HOSTILE} AS a", "--json"])
    assert json.loads(shown.stdout) == [{"a": "\x1b]0;title\x07\x9b31m\u202e\r"}]


@pytest.mark.usefixtures("installation")
def test_no_error_controls_the_terminal():
    shown = CliRunner().invoke(main, ["sql", 'SELECT * FROM "\x1b[31mred"'])
    assert shown.exit_code == 1
    assert "\x1b" not in shown.output


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "@SUM(1)", "+one@example.com", "-2+3", "\t=1"])
@pytest.mark.usefixtures("installation")
def test_csv_holds_no_formula_unless_requested(text):
    query = f"SELECT '{text}' AS \"=head\", -1.5 AS number, ['=1'] AS list"
    (head, row) = csv.reader(CliRunner().invoke(main, ["sql", query, "--csv"]).stdout.splitlines())
    assert head == ["'=head", "number", "list"]
    assert row == [f"'{text}", "-1.5", '["=1"]']
    raw = CliRunner().invoke(main, ["sql", query, "--csv", "--raw"]).stdout
    assert list(csv.reader(raw.splitlines())) == [["=head", "number", "list"], [text, "-1.5", '["=1"]']]
    assert CliRunner().invoke(main, ["sql", query, "--raw"]).exit_code == 2


@pytest.mark.parametrize("external_access", [False, True])
def test_a_query_takes_no_more_memory_than_the_setting(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, external_access: bool
):
    monkeypatch.setenv("FINORA_MEMORY_LIMIT", "256MiB")
    monkeypatch.setenv("FINORA_THREADS", "1")
    path = installation.settings.published_database
    with finora_pipeline.connect(path, external_access=external_access) as connection:
        query = "SELECT current_setting('memory_limit'), current_setting('threads')"
        assert connection.execute(query).fetchall() == [("256.0 MiB", 1)]


def test_a_query_that_needs_more_memory_names_the_setting(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    assert installation
    monkeypatch.setenv("FINORA_MEMORY_LIMIT", "128MB")
    query = "CREATE TABLE memory.main.big AS SELECT hash(n) AS h FROM range(40_000_000) AS numbers(n)"
    result = CliRunner().invoke(main, ["sql", query])
    assert result.exit_code == 1
    assert "raise FINORA_MEMORY_LIMIT" in " ".join(result.output.split())
