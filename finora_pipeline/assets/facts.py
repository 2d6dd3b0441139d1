"""Facts: the landed pages as exact rows of a day, a project and a line item or model."""

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

# A page of the UI must stay readable.
DAYS_SHOWN = 20
LINE_ITEMS_SHOWN = 20


def grain_check_spec(table: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        "grain_is_unique",
        asset=table,
        blocking=True,
        description="No two of the rows that a run loads are of one grain: nothing is counted twice.",
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
            description=f"OpenAI has changed no day that was {LATE_REVISION_DAYS} days old or older.",
        ),
        dg.AssetCheckSpec(
            "line_items_are_parsed",
            asset="daily_costs",
            description="The grammar of line items knows every word of the charges that a run loads. Charges "
            "with other words keep their model and amount.",
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
        told = loaded_metadata(loaded, seconds, with_money=table == "daily_costs")
        yield dg.MaterializeResult(asset_key=table, metadata=told)
        yield grain_check(table, loaded)
    yield revisions_check(loaded)
    yield line_items_check(loaded)


def grain_check(table: str, loaded: Loaded) -> dg.AssetCheckResult:
    """Fails if rows that were loaded repeat the grain of others."""
    repeated = loaded.repeated[table]
    return dg.AssetCheckResult(
        check_name="grain_is_unique",
        asset_key=table,
        passed=not repeated,
        metadata={"repeated rows": repeated},
    )


def revisions_check(loaded: Loaded) -> dg.AssetCheckResult:
    """Warns of settled days that OpenAI changed, with by how much."""
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
    """Warns of line items with unknown words, with what they cost: the dearest first."""
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
            "dearest": markdown_table(("line item", "dollars", "days", "users"), rows),
        },
    )
