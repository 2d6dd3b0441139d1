"""Restatements: facts follow OpenAI, whole days at a time."""

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import dagster as dg
import pytest
from sqlalchemy import update

from finora_pipeline.accounts.database import connections
from finora_pipeline.ingest.landing import Landing
from finora_pipeline.ingest.windows import TRAILING_DAYS, trailing_window, window_of
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_simulator.organization import PROVISIONAL_MODEL
from finora_pipeline.warehouse.database import Warehouse


def test_restated_days_and_a_vanished_line_item(start_openai, install):
    openai = start_openai(days=8)
    installation = install(openai)
    installation.connect(plan="trial")
    installation.refresh()
    before = installation.costs("user-0")
    assert any(item.startswith(PROVISIONAL_MODEL) for _, _, item in before)

    # 30 hours later yesterday's provisional line has been renamed away and the amounts have grown.
    openai.simulator.frozen_now += timedelta(hours=30)
    installation.refresh()
    after = installation.costs("user-0")
    installation.assert_exact("user-0", 0, installation.history(7))
    vanished = set(before) - set(after)
    assert any(item.startswith(PROVISIONAL_MODEL) for _, _, item in vanished)
    assert sum(after.values(), Decimal(0)) > sum(before.values(), Decimal(0))


def test_costs_as_of_an_earlier_moment_are_returned(start_openai, install):
    openai = start_openai(days=8)
    installation = install(openai)
    installation.connect(plan="trial")
    before_all = datetime.now(UTC)
    views = []
    for hours in (0, 7, 0, 30):
        openai.simulator.frozen_now += timedelta(hours=hours)
        assert installation.refresh().failed_users == []
        views.append((datetime.now(UTC), installation.costs("user-0")))
    assert len({frozenset(costs.items()) for _, costs in views}) == 3

    query = "SELECT date, project_id, line_item, amount_usd FROM costs_as_of(?) WHERE user_id = 'user-0'"
    for moment, costs in views:
        rows = installation.sql(query, moment)
        assert {(day, project, item): amount for day, project, item, amount in rows} == costs
    assert installation.sql(query, before_all) == []

    # The vanished line item is among the revisions.
    kinds = installation.sql("SELECT DISTINCT was_there, is_there FROM cost_revisions ORDER BY ALL")
    assert kinds == [(True, False), (True, True)]
    changed = installation.sql(
        "SELECT count(*) > 0, count(*) FILTER (old_input_tokens IS NOT DISTINCT FROM new_input_tokens "
        "AND old_requests IS NOT DISTINCT FROM new_requests AND old_output_tokens IS NOT DISTINCT FROM "
        "new_output_tokens AND old_other IS NOT DISTINCT FROM new_other) FROM usage_revisions"
    )
    assert changed == [(True, 0)]


def test_restatements_are_what_changed_on_complete_days(start_openai, install):
    openai = start_openai(days=8)
    installation = install(openai)
    installation.connect(plan="trial")
    installation.refresh()
    before = installation.costs("user-0")
    openai.simulator.frozen_now += timedelta(hours=7)
    installation.refresh()
    after = installation.costs("user-0")
    changes = {
        key: after.get(key, Decimal(0)) - before.get(key, Decimal(0)) for key in before.keys() | after.keys()
    }
    # Today has not ended, so what it grew by is accrual.
    expected = {key: usd for key, usd in changes.items() if usd and key[0] < installation.today}
    assert expected
    assert len(expected) < len([usd for usd in changes.values() if usd])
    rows = installation.sql("SELECT date, project_id, line_item, change_usd, stage FROM restatements")
    assert {(day, project, item): usd for day, project, item, usd, _ in rows if usd} == expected
    assert {stage for *_, stage in rows} == {"settling"}


CHECKED = (
    "SELECT date, fetched_at, completed_at, checked_at FROM pipeline.loaded_days WHERE endpoint = 'costs' "
    "ORDER BY date"
)


def test_equal_pages_are_recorded_as_fetched(start_openai, install):
    installation = install(start_openai(days=8))
    installation.connect(plan="trial")
    # The second refresh fetches only the trailing days, the third one equal pages.
    installation.refresh()
    installation.refresh()
    trailing = installation.today - timedelta(days=TRAILING_DAYS)
    yesterday = installation.today - timedelta(days=1)
    with Warehouse(installation.settings.home).writing() as connection:
        connection.execute("UPDATE pipeline.loaded_days SET completed_at = NULL WHERE date = ?", [yesterday])
    before = installation.sql(CHECKED)
    at = datetime.now(UTC)
    installation.refresh()
    moments = dict(zip((day for day, *_ in before), installation.sql(CHECKED), strict=True))
    for day, fetched_at, completed_at, checked_at in before:
        _, fetched_after, completed_after, checked_after = moments[day]
        assert fetched_after == fetched_at
        assert checked_after > at if day >= trailing else checked_after == checked_at
        assert completed_after == (checked_after if day == yesterday else completed_at)
    assert moments[installation.today][2] is None


def test_equal_pages_fetched_with_a_replaced_key_are_not_recorded(start_openai, install):
    installation = install(start_openai(days=8))
    installation.connect(plan="trial")
    for _ in range(2):
        installation.refresh()

    class Replacing(Landing):
        async def finish(self) -> None:
            with installation.accounts.database.write() as database:
                database.execute(update(connections).values(key_version=connections.c.key_version + 1))
            await super().finish()

    before = installation.sql(CHECKED)
    fetched = installation.fetch("replaced", landing=Replacing)
    assert fetched.unchanged_pages > 0
    with Warehouse(installation.settings.home).writing() as connection:
        assert connection.execute(CHECKED).fetchall() == before


@pytest.mark.parametrize("day", [1, 7, 8])
def test_the_previous_month_is_fetched_daily_until_the_seventh(day: int, start_openai, install):
    installation = install(start_openai(days=2))
    installation.connect(plan="growth")
    installation.refresh()
    connection = installation.accounts.connections.get("user-0")
    today = date(2026, 11, day)
    yesterday = replace(
        connection,
        read_until=today,
        last_attempt_at=datetime.combine(today - timedelta(days=1), time(9), UTC),
    )
    expected = date(2026, 10, 1) if day <= 7 else today - timedelta(days=TRAILING_DAYS)
    window = window_of(yesterday, trailing_window(today), today)
    assert window is not None
    assert window.start == expected
    # A failed fetch, or one of past days alone, does not close the month.
    tried = replace(yesterday, last_attempt_at=datetime.combine(today, time(1), UTC))
    assert window_of(tried, trailing_window(today), today) == window
    already = replace(tried, read_until=today + timedelta(days=1))
    assert window_of(already, trailing_window(today), today) == trailing_window(today)


@pytest.mark.parametrize(
    ("last", "first"),
    [
        # The last complete fetch was on this day, too early to close the previous month.
        (date(2026, 10, 30), date(2026, 10, 1)),
        (date(2026, 11, 6), date(2026, 10, 1)),
        (date(2026, 9, 30), date(2026, 9, 1)),
        # It closed the previous month, and November continues.
        (date(2026, 11, 7), date(2026, 11, 5)),
        (date(2026, 11, 11), date(2026, 11, 9)),
    ],
)
def test_a_month_left_open_by_a_pause_is_fetched_by_the_next_refresh(
    last: date, first: date, start_openai, install
):
    installation = install(start_openai(days=2))
    installation.connect(plan="scale")
    installation.refresh()
    connection = installation.accounts.connections.get("user-0")
    today = date(2026, 11, 12)
    paused = replace(connection, read_until=last + timedelta(days=1))
    window = window_of(paused, trailing_window(today), today)
    assert window is not None
    assert window.start == min(first, today - timedelta(days=TRAILING_DAYS))


def test_days_that_did_not_change_are_not_computed_again(start_openai, install):
    installation = install(start_openai(days=8))
    installation.connect(plan="trial")
    installation.run()
    installation.run()
    assert installation.sql("SELECT count(*) FROM cost_revisions") == [(0,)]
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("daily_model_costs"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["recomputed user-days"].value == 0


def test_number_amounts_are_as_exact_as_texts(start_openai, install):
    installation = install(start_openai(days=6, amounts_as_numbers=True))
    installation.connect(plan="trial")
    installation.refresh()
    installation.assert_exact("user-0", 0, installation.history(7))


def test_a_better_plan_fetches_what_it_keeps(start_openai, install):
    installation = install(start_openai(days=60, services=False))
    installation.connect(plan="trial")
    installation.refresh()
    assert min(day for day, _, _ in installation.costs("user-0")) == installation.history(7).start
    installation.accounts.users.set_plan("user-0", "growth")
    installation.refresh()
    installation.assert_exact("user-0", 0, installation.history(90))


def test_an_unlimited_plan_fetches_the_whole_history(start_openai, install):
    installation = install(start_openai(days=400, services=False, keys_per_project=1, projects=1))
    installation.connect(plan="enterprise")
    result = installation.refresh()
    assert result.failed_users == []
    assert len({day for day, _, _ in installation.costs("user-0")}) == 400
    installation.assert_exact("user-0", 0, installation.history(400))


def test_an_organization_without_recent_costs_keeps_its_old_costs(start_openai, install):
    """Its last costs are older than two of OpenAI's longest pages."""
    last = datetime.now(UTC).date() - timedelta(days=395)
    installation = install(start_openai(days=400, until=last, services=False, keys_per_project=1))
    installation.connect(plan="enterprise")
    installation.refresh()
    history = installation.history(400)
    assert {day for day, _, _ in installation.costs("user-0")} == {
        history.start + timedelta(days=day) for day in range(5)
    }
    installation.assert_exact("user-0", 0, history)


def test_days_missed_in_a_long_pause_are_fetched_by_the_next_refresh(start_openai, install):
    openai = start_openai(days=30, services=False)
    installation = install(openai)
    installation.connect(plan="growth")
    installation.refresh()
    # As if nothing had been fetched for twelve days.
    pause_from = installation.today - timedelta(days=12)
    with installation.accounts.database.write() as database:
        database.execute(update(connections).values(read_until=pause_from + timedelta(days=1)))
    (row,) = installation.refresh().refreshes
    # It includes the days not final at their last fetch.
    assert row.window_start == pause_from - timedelta(days=2)
    (row,) = installation.refresh().refreshes
    assert row.window_start == installation.today - timedelta(days=3)


@pytest.mark.parametrize("plan", ["growth", "enterprise"])
def test_past_days_fetched_after_a_pause_leave_no_gap(plan: str, start_openai, install):
    """As for a tick before midnight whose run starts after it, or a backfill."""
    installation = install(start_openai(days=20, services=False, projects=1))
    installation.connect(plan=plan)
    installation.refresh()
    read_until = installation.today - timedelta(days=11)
    with installation.accounts.database.write() as database:
        database.execute(update(connections).values(read_until=read_until))
    installation.refresh(trailing_window(installation.today - timedelta(days=1)))
    assert installation.accounts.connections.get("user-0").read_until == read_until
    (row,) = installation.refresh().refreshes
    assert row.window_start == read_until - timedelta(days=TRAILING_DAYS)
    assert installation.accounts.connections.get("user-0").read_until == row.window_end


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        # Days not final yet are fetched while they are shown, beyond the plan's seven.
        (8, 10),
        # After a longer pause, the history starts again.
        (25, 13),
    ],
)
def test_after_a_pause_days_are_fetched_while_the_plan_shows_them(
    days: int, expected: int, start_openai, install
):
    installation = install(start_openai(days=30, services=False))
    installation.connect(plan="trial")
    installation.refresh()
    # Move the last refresh so many days back.
    read_until = installation.today - timedelta(days=days - 1)
    with installation.accounts.database.write() as database:
        database.execute(update(connections).values(read_until=read_until))
    rows = [installation.refresh().refreshes[0] for _ in range(2)]
    starts = [installation.today - timedelta(days=ago) for ago in (expected, TRAILING_DAYS)]
    assert [row.window_start for row in rows] == starts
    installation.assert_exact("user-0", 0, Window(starts[0], installation.today + timedelta(days=1)))


def test_a_chosen_range_of_old_days_stays_as_chosen(start_openai, install):
    installation = install(start_openai(days=30, services=False))
    installation.connect(plan="growth")
    installation.refresh()
    window = Window(installation.today - timedelta(days=20), installation.today - timedelta(days=15))
    (row,) = installation.refresh(window).refreshes
    assert (row.window_start, row.window_end) == (window.start, window.end)


def test_a_chosen_range_is_clamped_to_what_the_plan_keeps(start_openai, install):
    installation = install(start_openai(days=40, services=False))
    installation.connect(plan="trial")
    result = installation.refresh(installation.history(30))
    (row,) = result.refreshes
    assert row.window_start == installation.history(7).start
