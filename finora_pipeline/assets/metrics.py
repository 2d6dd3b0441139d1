"""Metrics: costs by model, member and API key, metrics by user, and their reconciliation."""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal

import dagster as dg

from finora_pipeline.assets.metadata import (
    OWNERS,
    dollars,
    markdown_table,
    table_description,
    table_metadata,
)
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics

FACTS = ("daily_costs", "daily_usage", "user_history")
COST_TABLES = ("daily_model_costs", "daily_attributed_costs", "daily_member_costs", "daily_key_costs")


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            table,
            deps=deps,
            description=table_description(table),
            metadata=table_metadata(table),
            kinds={"duckdb"},
            owners=OWNERS,
        )
        for table, deps in (
            *((table, FACTS) for table in (*COST_TABLES, "reconciliation")),
            ("user_metrics", COST_TABLES),
        )
    ],
    name="compute_metrics",
    group_name="metrics",
    check_specs=[
        dg.AssetCheckSpec(
            "parts_add_up_to_the_bill",
            asset="daily_model_costs",
            blocking=True,
            description="Rows by model, by member and by API key each add up to daily_costs on every "
            "recomputed day, and the parts of each charge to its amount, to the last digit.",
        ),
        dg.AssetCheckSpec(
            "facts_equal_openais_totals",
            asset="reconciliation",
            description="daily_costs add up to OpenAI's total on every final day.",
        ),
    ],
)
def compute_metrics(
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    started = time.monotonic()
    today = datetime.now(UTC).date()
    computed = refresh_metrics(warehouse, today)
    seconds = round(time.monotonic() - started, 3)
    for table in COST_TABLES:
        yield dg.MaterializeResult(
            asset_key=table, metadata={"recomputed user-days": computed.days, "seconds": seconds}
        )
    yield dg.MaterializeResult(
        asset_key="reconciliation",
        metadata={
            "days that differ": residual_table(computed.residuals),
            "days with different tokens billed and used (normal)": token_table(computed.token_residuals),
        },
    )
    yield dg.MaterializeResult(asset_key="user_metrics", metadata={"dagster/row_count": computed.metric_rows})
    yield reconciliation_check(computed.residuals)
    yield dg.AssetCheckResult(
        check_name="parts_add_up_to_the_bill",
        asset_key="daily_model_costs",
        passed=not computed.unequal,
        metadata={"days that do not add up": len(computed.unequal), "first": str(computed.unequal[:10])},
    )


def reconciliation_check(residuals: Mapping[str, tuple[int, Decimal]]) -> dg.AssetCheckResult:
    """Passes while only days that are not final differ; fails with the severity of any other difference."""
    is_error = "error" in residuals
    return dg.AssetCheckResult(
        check_name="facts_equal_openais_totals",
        asset_key="reconciliation",
        passed=not is_error and "warning" not in residuals,
        severity=dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN,
        metadata={"days that differ": residual_table(residuals)},
    )


def residual_table(residuals: Mapping[str, tuple[int, Decimal]]) -> dg.MarkdownMetadataValue:
    """The days that differ from OpenAI's totals, and by how many USD, by severity."""
    rows = [(severity, days, dollars(usd)) for severity, (days, usd) in sorted(residuals.items())]
    return markdown_table(("severity", "days", "residual"), rows)


def token_table(residuals: Mapping[str, tuple[int, Decimal]]) -> dg.MarkdownMetadataValue:
    """The days on which OpenAI billed a different number of tokens than it counted as used, by kind."""
    rows = [(kind, days, f"{tokens:,}") for kind, (days, tokens) in sorted(residuals.items())]
    return markdown_table(("kind", "days", "tokens"), rows)
