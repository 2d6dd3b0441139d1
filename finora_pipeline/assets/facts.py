"""Facts: landed pages as exact rows by day, project and line item or model."""

import time
from collections.abc import Iterator

import dagster as dg

from finora_pipeline.assets.metadata import (
    OWNERS,
    dollars,
    loaded_metadata,
    markdown_table,
    table_description,
    table_metadata,
)
from finora_pipeline.assets.partitions import DAYS
from finora_pipeline.assets.raw_pages import COST_PAGES, USAGE_PAGES
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.load_report import Loaded
from finora_pipeline.warehouse.periods import LATE_REVISION_DAYS

# Limits that keep the UI's page readable.
DAYS_SHOWN = 20
LINE_ITEMS_SHOWN = 20


def grain_check_spec(table: str) -> dg.AssetCheckSpec:
    """The check of a fact table's grain."""
    return dg.AssetCheckSpec(
        "grain_is_unique",
        asset=table,
        blocking=True,
        description="Rows are unique on the table's grain, so nothing is counted twice.",
    )


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            table,
            deps=[pages],
            kinds={"duckdb"},
            owners=OWNERS,
            description=table_description(table),
            metadata=table_metadata(table),
        )
        for table, pages in (("daily_costs", COST_PAGES), ("daily_usage", USAGE_PAGES))
    ],
    name="load_pages",
    group_name="facts",
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[
        grain_check_spec("daily_costs"),
        grain_check_spec("daily_usage"),
        dg.AssetCheckSpec(
            "revisions_within_reason",
            asset="daily_costs",
            description=f"OpenAI has changed no day at least {LATE_REVISION_DAYS} days old.",
        ),
        dg.AssetCheckSpec(
            "line_items_are_parsed",
            asset="daily_costs",
            description="The line item grammar knows every word of the loaded charges. Charges with unknown "
            "words keep their model and amount.",
        ),
    ],
)
def load_pages(
    context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[Warehouse]
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    started = time.monotonic()
    loaded = load_pending(warehouse, KINDS, context.run.run_id)
    seconds = time.monotonic() - started
    for table in ("daily_costs", "daily_usage"):
        metadata = loaded_metadata(loaded, seconds, with_money=table == "daily_costs")
        yield dg.MaterializeResult(asset_key=table, metadata=metadata)
        yield grain_check(table, loaded)
    yield revisions_check(loaded)
    yield line_items_check(loaded)


def grain_check(table: str, loaded: Loaded) -> dg.AssetCheckResult:
    """Fails if loaded rows duplicate the grain of others."""
    repeated = loaded.repeated[table]
    return dg.AssetCheckResult(
        check_name="grain_is_unique",
        asset_key=table,
        passed=not repeated,
        metadata={"duplicate rows": repeated},
    )


def revisions_check(loaded: Loaded) -> dg.AssetCheckResult:
    """Warns of final days that OpenAI changed, with the change in USD."""
    late = loaded.late_revisions
    rows = [(user_id, day, dollars(usd)) for user_id, day, usd in late[:DAYS_SHOWN]]
    return dg.AssetCheckResult(
        check_name="revisions_within_reason",
        asset_key="daily_costs",
        passed=not late,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "days changed": len(late),
            "first": markdown_table(("user", "day", "change"), rows),
        },
    )


def line_items_check(loaded: Loaded) -> dg.AssetCheckResult:
    """Warns of line items with unknown words, the most expensive first."""
    rows = [
        (charge.line_item, dollars(charge.amount_usd), charge.days, charge.users)
        for charge in loaded.unparsed_charges[:LINE_ITEMS_SHOWN]
    ]
    return dg.AssetCheckResult(
        check_name="line_items_are_parsed",
        asset_key="daily_costs",
        passed=not loaded.unparsed_count,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "unparsed line items": loaded.unparsed_count,
            "most expensive": markdown_table(("line item", "dollars", "days", "users"), rows),
        },
    )
