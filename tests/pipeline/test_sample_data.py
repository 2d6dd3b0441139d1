"""An organization without spend has known days and no rows: the warehouse invents none."""

from datetime import timedelta

import pyarrow.dataset as ds

from finora_pipeline.warehouse.tables import MONTHLY_TABLES

TABLES = (*MONTHLY_TABLES, "user_metrics")


def test_nothing_is_invented_for_an_organization_without_spend(start_openai, install):
    # The second organization begins to spend tomorrow.
    openai = start_openai(organizations=2, days=5)
    quiet = openai.organizations[1]
    quiet.spec = quiet.spec.__class__(1, since=openai.simulator.now.date() + timedelta(days=1))
    installation = install(openai)
    installation.accounts.users.add("never-connected", "trial")
    installation.connect(plan="trial")
    installation.refresh()

    history = installation.history(7)
    known = "SELECT count(*) FROM pipeline.loaded_days WHERE user_id = ? AND endpoint = 'costs'"
    assert installation.sql(known, "user-1") == [(history.days,)]
    for table in MONTHLY_TABLES:
        assert installation.sql(f"SELECT DISTINCT user_id FROM {table}") == [("user-0",)]
    deprecated = (
        "SELECT table_name FROM duckdb_columns() WHERE column_name = 'is_sample' AND schema_name = 'main'"
    )
    for (table,) in installation.sql(deprecated):
        assert installation.sql(f"SELECT count(*) FROM {table} WHERE is_sample") == [(0,)]
    for table in TABLES:
        assert installation.sql(f"SELECT count(*) FROM {table} WHERE user_id = 'never-connected'") == [(0,)]
    assert sum(installation.costs("user-1").values()) == 0
    assert installation.sql("SELECT sum(amount_usd) FROM daily_costs") == [(openai.truth(0, history).total,)]
    parquet = installation.settings.published_database.parent / "parquet"
    for table in MONTHLY_TABLES:
        users = ds.dataset(parquet / table, format="parquet").to_table(columns=["user_id"])["user_id"]
        assert users.unique().to_pylist() == ["user-0"]

    quiet.spec = openai.organizations[0].spec
    openai.simulator.frozen_now += timedelta(minutes=1)
    installation.refresh(history)
    installation.assert_exact("user-1", 1, history)
    assert sum(installation.costs("user-1").values()) > 0
