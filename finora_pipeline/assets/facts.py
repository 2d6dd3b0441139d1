"""Facts: the landed pages as exact rows of a day, a project and a line item or model."""

import time

import dagster as dg

from finora_pipeline.assets.metadata import dollars, loaded_metadata, table_description, table_metadata
from finora_pipeline.assets.partitions import DAYS
from finora_pipeline.assets.raw_pages import COST_PAGES, USAGE_PAGES
from finora_pipeline.openai_admin.endpoints import BILLED_KIND, COSTS, DIRECTORY_KIND, USAGE_KIND
from finora_pipeline.resources.warehouse import WarehouseResource
from finora_pipeline.warehouse.load import SETTLED_AFTER, Loaded, load_pending

# A page of the UI must stay readable.
DAYS_SHOWN = 20


def grain_check_spec(table: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        "grain_is_unique",
        asset=table,
        blocking=True,
        description="No two of the rows that a run loads are of one grain: nothing is counted twice.",
    )


@dg.asset(
    deps=[COST_PAGES],
    group_name="facts",
    kinds={"duckdb"},
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    description=table_description("daily_costs"),
    metadata=table_metadata("daily_costs"),
    check_specs=[
        grain_check_spec("daily_costs"),
        dg.AssetCheckSpec(
            "revisions_within_reason",
            asset="daily_costs",
            description=f"OpenAI has changed no day that was {SETTLED_AFTER} days old or older.",
        ),
    ],
)
def daily_costs(context: dg.AssetExecutionContext, warehouse: WarehouseResource) -> dg.MaterializeResult:
    started = time.monotonic()
    loaded = load_pending(warehouse.warehouse, [COSTS.kind, BILLED_KIND], context.run.run_id)
    return dg.MaterializeResult(
        metadata=loaded_metadata(loaded, time.monotonic() - started, with_money=True),
        check_results=[grain_check("daily_costs", loaded), revisions_check(loaded)],
    )


@dg.asset(
    deps=[USAGE_PAGES],
    group_name="facts",
    kinds={"duckdb"},
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    description=table_description("daily_usage"),
    metadata=table_metadata("daily_usage"),
    check_specs=[grain_check_spec("daily_usage")],
)
def daily_usage(context: dg.AssetExecutionContext, warehouse: WarehouseResource) -> dg.MaterializeResult:
    started = time.monotonic()
    loaded = load_pending(warehouse.warehouse, [USAGE_KIND, DIRECTORY_KIND], context.run.run_id)
    return dg.MaterializeResult(
        metadata=loaded_metadata(loaded, time.monotonic() - started, with_money=False),
        check_results=[grain_check("daily_usage", loaded)],
    )


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
    lines = ["| user | day | change |", "|---|---|---|"]
    lines += [f"| {user_id} | {day} | {dollars(usd)} |" for user_id, day, usd in late[:DAYS_SHOWN]]
    return dg.AssetCheckResult(
        check_name="revisions_within_reason",
        asset_key="daily_costs",
        passed=not late,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "days changed": len(late),
            "first": dg.MarkdownMetadataValue("\n".join(lines) if late else "none"),
        },
    )
