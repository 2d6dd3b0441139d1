"""Results of asset checks."""

import dagster as dg
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES


def last_evaluation(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> dg.AssetCheckEvaluation | None:
    """The last completed evaluation of a check, or None; planned and running ones have no result yet."""
    for record in instance.event_log_storage.get_asset_check_execution_history(
        key, limit=1, status=COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
    ):
        event = record.event.dagster_event if record.event else None
        return event.asset_check_evaluation_data if event else None
    return None
