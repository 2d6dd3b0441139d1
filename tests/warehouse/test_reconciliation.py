"""Our costs against OpenAI's own totals."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import dagster as dg
import duckdb
import pytest

from finora_pipeline.assets.metrics import reconciliation_check
from finora_pipeline.openai_admin.endpoints import COST_TOTALS
from finora_pipeline.warehouse.metrics import refresh_metrics
from tests.warehouse.landing import DAY, cost_day, cost_row, land, load, page_of, rows


@pytest.mark.slow
def test_every_day_reconciles_with_openais_total(start_openai, install):
    installation = install(start_openai(days=20))
    installation.connect(plan="growth")
    result = installation.refresh()
    assert result.succeeded
    days = installation.sql(
        "SELECT severity, count(*), sum(residual_usd), count(api_total_usd) FROM reconciliation "
        "GROUP BY severity"
    )
    assert days == [("ok", 90, Decimal(0), 90)]
    # The simulator's prices are constant; usage covers all token charges except images.
    ((most,),) = installation.sql("SELECT max(price_residual_usd) FROM reconciliation")
    assert most < Decimal("1e-6")
    billed = installation.sql(
        "SELECT date FROM reconciliation WHERE billed_tokens IS NOT NULL AND token_residual <= 0"
    )
    assert billed == []
    states = installation.sql(
        "SELECT DISTINCT month_state FROM reconciliation WHERE date = ?", installation.today
    )
    assert states == [("open",)]


def test_a_differing_day_is_reported_with_its_difference(tmp_path):
    from finora_pipeline.warehouse.database import Warehouse

    warehouse = Warehouse(tmp_path)
    days = {DAY: "10.00", DAY - timedelta(days=1): "10.005", DAY - timedelta(days=2): "12.00"}
    for day, total in days.items():
        land(warehouse, page_of(cost_day([cost_row('"10.00"')], day)))
        whole = cost_row(f'"{total}"').replace('"line_item": "gpt-4o, input", "project_id": "proj_a", ', "")
        land(warehouse, page_of(cost_day([whole], day)), endpoint=COST_TOTALS)
    load(warehouse)
    load(warehouse, "cost_totals")
    computed = refresh_metrics(warehouse, DAY)
    found = rows(warehouse, "SELECT date, residual_usd, severity FROM reconciliation ORDER BY date DESC")
    assert found == [
        (DAY, Decimal(0), "ok"),
        (DAY - timedelta(days=1), Decimal("0.005"), "warning"),
        (DAY - timedelta(days=2), Decimal(2), "error"),
    ]
    assert computed.residuals == {"warning": (1, Decimal("0.005")), "error": (1, Decimal(2))}


def test_the_check_fails_by_the_worst_day():
    assert reconciliation_check({}).passed
    assert reconciliation_check({"info": (3, Decimal(9))}).passed
    warned = reconciliation_check({"warning": (1, Decimal("0.001"))})
    assert (warned.passed, warned.severity) == (False, dg.AssetCheckSeverity.WARN)
    failed = reconciliation_check({"error": (1, Decimal(2)), "warning": (1, Decimal("0.001"))})
    assert (failed.passed, failed.severity) == (False, dg.AssetCheckSeverity.ERROR)


def test_lines_without_an_amount_never_reconcile(tmp_path):
    from finora_pipeline.warehouse.database import Warehouse

    warehouse = Warehouse(tmp_path)
    nothing = page_of(cost_day([cost_row("null"), cost_row("null", "gpt-4o, output")]))
    land(warehouse, nothing)
    land(warehouse, page_of(cost_day([cost_row("null", None)])), endpoint=COST_TOTALS)
    load(warehouse)
    load(warehouse, "cost_totals")
    refresh_metrics(warehouse, DAY)
    found = rows(warehouse, "SELECT severity, lines_without_amount FROM reconciliation")
    assert found == [("error", 2)]


# At any moment one of them has another date than UTC.
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
@pytest.mark.slow
def test_a_day_is_final_by_utc_in_any_time_zone(zone: str, tmp_path):
    from finora_pipeline.warehouse.database import Warehouse

    warehouse = Warehouse(tmp_path)
    today = datetime.now(UTC).date()
    for ago in (2, 3):
        day = today - timedelta(days=ago)
        land(warehouse, page_of(cost_day([cost_row('"1.00"')], day)))
        land(warehouse, page_of(cost_day([cost_row('"2.00"', None)], day)), endpoint=COST_TOTALS)
    load(warehouse)
    load(warehouse, "cost_totals")
    refresh_metrics(warehouse, today)
    with duckdb.connect(":memory:") as reader:
        reader.execute(f"ATTACH '{warehouse.database}' AS finora (READ_ONLY)")
        reader.execute(f"SET TimeZone = '{zone}'")
        query = "SELECT severity FROM finora.reconciliation ORDER BY date"
        assert reader.execute(query).fetchall() == [("error",), ("info",)]
