"""A refreshed installation to read from, and a small published file with the extremes of each type."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tests.conftest import Installation
from tests.small_openai import small_openai

DAYS = 5


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with two refreshed users."""
    with small_openai(organizations=2, days=DAYS) as openai, pytest.MonkeyPatch.context() as environment:
        home = tmp_path_factory.mktemp("reading") / "home"
        # A refresh sets the process's Dagster instance; the next module has its own.
        environment.setenv("DAGSTER_HOME", str(home / "dagster"))
        installation = Installation(home, openai)
        installation.connect(plan="trial", users=["acme", "globex"])
        assert installation.refresh().succeeded
        yield installation


@pytest.fixture
def installation(refreshed: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """The same installation, with `FINORA_HOME` set to it."""
    monkeypatch.setenv("FINORA_HOME", str(refreshed.settings.home))
    monkeypatch.setenv("DAGSTER_HOME", str(refreshed.settings.dagster_home))
    return refreshed


@pytest.fixture
def extremes(tmp_path: Path) -> Path:
    """A published file whose tables hold the largest, smallest and unknown values of each type."""
    path = tmp_path / "extremes.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute(
            """
            CREATE TABLE daily_costs (
                user_id VARCHAR, date DATE, amount_usd DECIMAL(38, 18), tokens BIGINT, batch BOOLEAN,
                parts DECIMAL(38, 18)[]
            );
            INSERT INTO daily_costs VALUES
                ('b', '2026-11-02', '-0.000000000000000001', 9007199254740993, false, []),
                ('a', '2026-11-03', NULL, NULL, NULL, NULL),
                ('a', '2026-11-01', '99999999999999999999.999999999999999999', 0, true, [0.1, NULL]);
            CREATE TABLE daily_user_metrics AS
            SELECT 'a' AS user_id, DATE '2026-11-01' + day::INTEGER AS as_of_date, day AS value
            FROM range(9, -1, -1) AS days(day);
            CREATE VIEW large AS
            SELECT DATE '2026-01-01' + (hash(n) % 300)::INTEGER AS date, hash(n)::VARCHAR AS text
            FROM range(4_000_000) AS numbers(n);
            """
        )
    return path
