"""What a run's pages became in the facts, for its result and its checks."""

from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal

import duckdb

from finora_pipeline.openai_admin.endpoints import COSTS, USAGE_KIND
from finora_pipeline.warehouse.periods import LATE_REVISION_DAYS
from finora_pipeline.warehouse.raw import Quarantined
from finora_pipeline.warehouse.tables import GRAIN

# Unparsed line items that a run reports, the most expensive first.
UNPARSED_SHOWN = 100
_OF_RUN = "WHERE raw_file IN (SELECT raw_file FROM pipeline.loaded_files WHERE run_id = $run_id)"


@dataclass(frozen=True, slots=True)
class UnparsedCharge:
    """A line item with unknown words: its sum in USD, and its number of UTC days and of users."""

    line_item: str
    amount_usd: Decimal
    days: int
    users: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run's pages are in the facts now.

    `unparsed_charges` are the most expensive line items with words unknown to the grammar, of which there
    are `unparsed_count`; both and `amount_usd` are those of costs. `repeated` counts duplicate rows by table
    (expected 0). `late_revisions` are the user-days that OpenAI restated `LATE_REVISION_DAYS` or more days
    later, with the sum of the changes in USD, not counting accrual. `quarantined` are the run's files that
    cannot be loaded.
    """

    files: int
    pages: int
    users: int
    cost_rows: int = 0
    usage_rows: int = 0
    unparsed_charges: list[UnparsedCharge] = field(default_factory=list)
    unparsed_count: int = 0
    amount_usd: Decimal = Decimal(0)
    repeated: dict[str, int] = field(default_factory=dict)
    late_revisions: list[tuple[str, date, Decimal]] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    @property
    def unparsed(self) -> list[str]:
        """The texts of `unparsed_charges`, sorted."""
        return sorted(charge.line_item for charge in self.unparsed_charges)


def loaded_by(connection: duckdb.DuckDBPyConnection, run_id: str, kinds: list[str]) -> Loaded:
    """What the pages of these kinds that a run fetched are in the facts, without quarantine."""
    files, pages, users = connection.execute(
        "SELECT count(*), coalesce(sum(pages), 0)::BIGINT, coalesce(sum(users), 0)::BIGINT "
        "FROM pipeline.loaded_files WHERE run_id = $run_id AND list_contains($kinds, kind)",
        {"run_id": run_id, "kinds": kinds},
    ).fetchall()[0]
    loaded = Loaded(files, pages, users)
    if USAGE_KIND in kinds:
        query = f"SELECT count(*) FROM daily_usage {_OF_RUN}"
        loaded = replace(loaded, usage_rows=connection.execute(query, {"run_id": run_id}).fetchall()[0][0])
        loaded.repeated["daily_usage"] = _duplicate_rows(connection, "daily_usage", run_id)
    if COSTS.kind in kinds:
        loaded = _with_costs(connection, run_id, loaded)
        loaded.repeated["daily_costs"] = _duplicate_rows(connection, "daily_costs", run_id)
    return loaded


def _with_costs(connection: duckdb.DuckDBPyConnection, run_id: str, loaded: Loaded) -> Loaded:
    rows, amount, unparsed_count = connection.execute(
        "SELECT count(*), coalesce(sum(amount_usd), 0)::DECIMAL(38, 18), "
        "count(DISTINCT line_item) FILTER (NOT is_parsed) "
        f"FROM daily_costs {_OF_RUN}",
        {"run_id": run_id},
    ).fetchall()[0]
    unparsed = connection.execute(
        "SELECT line_item, coalesce(sum(amount_usd), 0)::DECIMAL(38, 18) AS usd, count(DISTINCT date), "
        f"count(DISTINCT user_id) FROM daily_costs {_OF_RUN} AND NOT is_parsed AND line_item IS NOT NULL "
        f"GROUP BY line_item ORDER BY abs(usd) DESC, line_item LIMIT {UNPARSED_SHOWN}",
        {"run_id": run_id},
    ).fetchall()
    late = connection.execute(
        "SELECT user_id, date, sum(change_usd)::DECIMAL(38, 18) "
        "FROM restatements JOIN (SELECT user_id, provider, date, fetched_at AS observed_at "
        f"FROM pipeline.loaded_days {_OF_RUN} AND endpoint = '{COSTS.name}') "
        "USING (user_id, provider, date, observed_at) "
        "WHERE date <= observed_at::DATE - $late_days GROUP BY ALL ORDER BY ALL",
        {"run_id": run_id, "late_days": LATE_REVISION_DAYS},
    ).fetchall()
    return replace(
        loaded,
        cost_rows=rows,
        unparsed_charges=[UnparsedCharge(*charge) for charge in unparsed],
        unparsed_count=unparsed_count,
        amount_usd=amount,
        late_revisions=late,
    )


def _duplicate_rows(connection: duckdb.DuckDBPyConnection, table: str, run_id: str) -> int:
    # Hashes first, which are faster to group than texts; rows are compared where two hashes are equal.
    grain_hash = f"hash({GRAIN[table]})"
    suspicious = f"SELECT {grain_hash} FROM {table} {_OF_RUN} GROUP BY {grain_hash} HAVING count(*) > 1"
    query = (
        f"SELECT coalesce(sum(rows - 1), 0)::BIGINT FROM (SELECT count(*) AS rows FROM {table} {_OF_RUN} "
        f"AND {grain_hash} IN ({suspicious}) GROUP BY {GRAIN[table]} HAVING rows > 1)"
    )
    return connection.execute(query, {"run_id": run_id}).fetchall()[0][0]
