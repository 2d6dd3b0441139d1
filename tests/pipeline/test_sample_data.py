"""Sample rows: marked, never mixed with real ones, deleted with the first real row."""

from datetime import timedelta
from decimal import Decimal


def test_a_user_without_data_gets_sample_rows_until_real_ones_come(start_openai, install):
    # The second organization begins to spend tomorrow.
    openai = start_openai(organizations=2, days=5)
    openai.organizations[1].spec = openai.organizations[1].spec.__class__(
        1, since=openai.simulator.now.date() + timedelta(days=1)
    )
    installation = install(openai)
    installation.connect(plan="trial")
    installation.refresh()

    def kinds(table: str, user_id: str) -> set[tuple[bool]]:
        return set(installation.sql(f"SELECT DISTINCT is_sample FROM {table} WHERE user_id = ?", user_id))

    tables = ("daily_costs", "daily_usage", "daily_model_costs", "user_metrics")
    for table in tables:
        assert kinds(table, "user-0") == {(False,)}
        assert kinds(table, "user-1") == {(True,)}
    days = installation.sql("SELECT count(DISTINCT date) FROM daily_costs WHERE user_id = 'user-1'")
    assert days == [(30,)]
    total = installation.sql("SELECT sum(amount_usd) FROM daily_costs WHERE NOT is_sample")[0][0]
    assert total == openai.truth(0, installation.history(7)).total

    # A second refresh keeps the sample as it is.
    sample = installation.sql("SELECT date, amount_usd FROM daily_costs WHERE is_sample ORDER BY ALL")
    installation.refresh()
    assert installation.sql("SELECT date, amount_usd FROM daily_costs WHERE is_sample ORDER BY ALL") == sample

    openai.organizations[1].spec = openai.organizations[0].spec
    openai.simulator.frozen_now += timedelta(minutes=1)
    installation.refresh()
    for table in tables:
        assert kinds(table, "user-1") == {(False,)}
    assert installation.sql("SELECT count(*) FROM daily_costs WHERE is_sample") == [(0,)]
    assert min(installation.costs("user-1").values()) >= Decimal(0)
    # None of it ever counted as a restatement.
    for revised in ("cost_revisions", "usage_revisions"):
        assert installation.sql(f"SELECT count(*) FROM {revised} WHERE project_id = 'proj_sample'") == [(0,)]
