"""Data folders of older versions, stored as fixtures, keep working after an upgrade."""

import csv
import json
import tarfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

from finora_pipeline.cli import main
from finora_pipeline.ingest.windows import TRAILING_DAYS
from finora_pipeline.openai_simulator import OrganizationSpec, Simulator, running
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.schema import SCHEMA_NUMBER

FOLDER = Path(__file__).parents[1] / "fixtures" / "installations"
# Both organizations have costs from this day on; the folders were made on the second.
SINCE, MADE_ON = date(2026, 11, 21), date(2026, 11, 28)
BY_DAY = "SELECT user_id, date, sum(amount_usd)::VARCHAR AS usd FROM daily_costs GROUP BY ALL ORDER BY ALL"


def run(environment: dict[str, str], *arguments: str, code: int = 0) -> str:
    result = CliRunner(env=environment).invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def by_day(environment: dict[str, str]) -> dict[str, dict[date, Decimal]]:
    """Return each user's published costs in USD by UTC day."""
    found: dict[str, dict[date, Decimal]] = {}
    for row in json.loads(run(environment, "sql", BY_DAY, "--json")):
        found.setdefault(row["user_id"], {})[date.fromisoformat(row["date"])] = Decimal(row["usd"])
    return found


@pytest.mark.parametrize(
    "version",
    [
        "bfe35cc",
        pytest.param("72b13b7", marks=pytest.mark.long),
        pytest.param("145a6a1", marks=pytest.mark.long),
    ],
)
def test_a_folder_of_an_older_version_keeps_working(version: str, tmp_path: Path):
    with tarfile.open(FOLDER / f"{version}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    home = tmp_path / version
    with (FOLDER / f"{version}.csv").open() as lines:
        before = {row["user_id"]: Decimal(row["usd"]) for row in csv.DictReader(lines)}
    # A clock that stands still: the last days grow by the minute while they are being booked.
    specs = [OrganizationSpec(number, since=SINCE) for number in range(2)]
    simulator = Simulator(specs, now=datetime.now(UTC))
    with running(simulator) as base_url:
        environment = {"FINORA_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
        # As the demo does: the simulator takes another port at each start.
        (home / "openai_base_url").write_text(base_url)

        status = json.loads(run(environment, "status", "--json"))
        assert [row["status"] for row in status] == ["active", "active"]
        assert [row["base_url"] for row in status] == ["http://127.0.0.1/v1"] * 2
        # Readers see the old version's snapshot until the next refresh.
        kept = by_day(environment)
        assert {user: sum(days.values()) for user, days in kept.items()} == before

        run(environment, "refresh")
        with Warehouse(home).writing() as connection:
            (number,) = connection.execute("SELECT number FROM pipeline.schema_version").fetchall()
        assert number == (SCHEMA_NUMBER,)
        read_from = datetime.now(UTC).date() - timedelta(days=TRAILING_DAYS)
        for number, (user_id, days) in enumerate(sorted(by_day(environment).items())):
            truth = simulator.organizations[number].truth(SINCE, MADE_ON, simulator.now).by_day
            assert {day: usd for day, usd in days.items() if day < MADE_ON} == {
                day: kept[user_id][day] if day < read_from else truth[day] for day in truth
            }
        assert "no user-days differ" in run(environment, "rebuild")
