"""What OpenAI changed after a day was complete, apart from the accrual of a running day."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from finora_pipeline.openai_admin.provider import CLOSING_DAYS, FINAL_AFTER_DAYS
from finora_pipeline.warehouse.database import Warehouse, described_tables
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, load, page_of, rows

CHANGES = "SELECT line_item, old_amount_usd, new_amount_usd, change_usd FROM restatements ORDER BY ALL"
END = datetime(2026, 6, 15, tzinfo=UTC)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def fetched(warehouse: Warehouse, at: datetime, *lines: str, day: date = DAY) -> None:
    run_id = f"run-{at:%m-%d-%H}"
    land(warehouse, page_of(cost_day([*lines], day)), run_id=run_id, fetched_at=at)
    load(warehouse, run_id=run_id)


def test_the_growth_of_a_running_day_is_no_restatement(warehouse: Warehouse):
    fetched(warehouse, END - timedelta(hours=9), cost_row('"1.00"'))
    fetched(warehouse, END - timedelta(hours=2), cost_row('"2.00"'))
    # The first complete fetch still takes up what the day has booked since.
    fetched(warehouse, END + timedelta(hours=1), cost_row('"3.00"'))
    assert rows(warehouse, "SELECT count(*) FROM cost_revisions") == [(2,)]
    assert rows(warehouse, CHANGES) == []
    fetched(warehouse, END + timedelta(hours=2), cost_row('"3.50"'))
    assert rows(warehouse, CHANGES) == [("gpt-4o, input", Decimal(3), Decimal("3.5"), Decimal("0.5"))]


def test_changes_of_a_complete_day_add_up_to_the_change_of_its_sum(warehouse: Warehouse):
    before = [cost_row('"1.00"', "grown"), cost_row('"2.00"', "vanished"), cost_row("null", "unknown")]
    fetched(warehouse, END + timedelta(hours=1), *before)
    after = [cost_row('"1.25"', "grown"), cost_row('"-4.00"', "new"), cost_row('"0.50"', "unknown")]
    fetched(warehouse, END + timedelta(hours=2), *after)
    assert rows(warehouse, CHANGES) == [
        ("grown", Decimal(1), Decimal("1.25"), Decimal("0.25")),
        ("new", Decimal(0), Decimal(-4), Decimal(-4)),
        ("unknown", None, Decimal("0.5"), Decimal("0.5")),
        ("vanished", Decimal(2), Decimal(0), Decimal(-2)),
    ]
    assert rows(warehouse, "SELECT sum(change_usd) FROM restatements") == [(Decimal("-5.25"),)]
    assert rows(warehouse, "SELECT sum(amount_usd) FROM daily_costs") == [(Decimal("-2.25"),)]


@pytest.mark.parametrize(
    ("day", "observed_on", "stage"),
    [
        (DAY, DAY + timedelta(days=FINAL_AFTER_DAYS - 1), "settling"),
        (DAY, DAY + timedelta(days=FINAL_AFTER_DAYS), "late"),
        (DAY, date(2026, 6, 30), "late"),
        (DAY, date(2026, 7, CLOSING_DAYS), "late"),
        (DAY, date(2026, 7, CLOSING_DAYS + 1), "closed_month"),
        (DAY, date(2026, 8, 2), "closed_month"),
        (date(2026, 6, 30), date(2026, 7, 2), "settling"),
        (date(2025, 12, 31), date(2026, 1, CLOSING_DAYS), "late"),
        (date(2025, 12, 31), date(2026, 1, CLOSING_DAYS + 1), "closed_month"),
    ],
)
@pytest.mark.parametrize("clock", [(0, 0), (23, 59)])
def test_a_stage_is_by_the_day_and_the_utc_day_of_its_change(
    day: date, observed_on: date, stage: str, clock: tuple[int, int], warehouse: Warehouse
):
    complete = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    fetched(warehouse, complete, cost_row('"1.00"'), day=day)
    observed_at = datetime(observed_on.year, observed_on.month, observed_on.day, *clock, tzinfo=UTC)
    fetched(warehouse, observed_at, cost_row('"2.00"'), day=day)
    with warehouse.writing() as connection:
        # A reader's time zone changes nothing.
        for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
            connection.execute(f"SET TimeZone = '{zone}'")
            assert connection.execute("SELECT stage FROM restatements").fetchall() == [(stage,)]


def test_the_end_of_an_outage_is_no_late_restatement(warehouse: Warehouse):
    fetched(warehouse, END - timedelta(hours=9), cost_row('"1.00"'))
    late = END + timedelta(days=20)
    land(warehouse, page_of(cost_day([cost_row('"5.00"')])), run_id="after", fetched_at=late)
    assert load(warehouse, run_id="after").late_revisions == []
    land(warehouse, page_of(bucket([])), run_id="restated", fetched_at=late + timedelta(hours=1))
    assert load(warehouse, run_id="restated").late_revisions == [("acme", DAY, Decimal(-5))]


def test_the_view_and_its_columns_are_described():
    described = described_tables()["restatements"]
    assert described.comment
    assert [column.name for column in described.columns if not column.comment] == []
