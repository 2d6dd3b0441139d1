"""OpenAI restates days: facts follow, whole days at a time."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from sqlalchemy import update

from finora_pipeline.accounts.schema import connections
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_admin.simulator.organization import PROVISIONAL_MODEL


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


def test_number_amounts_are_as_exact_as_texts(start_openai, install):
    installation = install(start_openai(days=6, amounts_as_numbers=True))
    installation.connect(plan="trial")
    installation.refresh()
    installation.assert_exact("user-0", 0, installation.history(7))


def test_a_better_plan_fetches_what_it_keeps(start_openai, install):
    installation = install(start_openai(days=60))
    installation.connect(plan="trial")
    installation.refresh()
    assert min(day for day, _, _ in installation.costs("user-0")) == installation.history(7).start
    installation.accounts.set_plan("user-0", "growth")
    installation.refresh()
    installation.assert_exact("user-0", 0, installation.history(90))


def test_an_unlimited_plan_reads_all_there_is(start_openai, install):
    installation = install(start_openai(days=400, services=False, keys_per_project=1, projects=1))
    installation.connect(plan="enterprise")
    result = installation.refresh()
    assert result.failed_users == []
    assert len({day for day, _, _ in installation.costs("user-0")}) == 400
    installation.assert_exact("user-0", 0, installation.history(400))


def test_an_organization_without_recent_costs_keeps_its_old_ones(start_openai, install):
    """Its last costs are more than two of OpenAI's longest pages ago."""
    last = datetime.now(UTC).date() - timedelta(days=395)
    installation = install(start_openai(days=400, until=last, services=False, keys_per_project=1))
    installation.connect(plan="enterprise")
    installation.refresh()
    history = installation.history(400)
    assert {day for day, _, _ in installation.costs("user-0")} == {
        history.start + timedelta(days=day) for day in range(5)
    }
    installation.assert_exact("user-0", 0, history)


def test_days_missed_by_a_long_pause_are_read_by_the_next_refresh(start_openai, install):
    openai = start_openai(days=30)
    installation = install(openai)
    installation.connect(plan="growth")
    installation.refresh()
    # As if nothing had been read for twelve days.
    pause_from = installation.today - timedelta(days=12)
    with installation.accounts._write.begin() as database:
        database.execute(update(connections).values(read_until=pause_from + timedelta(days=1)))
    (row,) = installation.refresh().refreshes
    # The days that were not final when they were read last belong to it.
    assert row["window_start"] == pause_from - timedelta(days=2)
    (row,) = installation.refresh().refreshes
    assert row["window_start"] == installation.today - timedelta(days=3)


def test_a_chosen_range_of_old_days_stays_as_chosen(start_openai, install):
    installation = install(start_openai(days=30))
    installation.connect(plan="growth")
    installation.refresh()
    window = Window(installation.today - timedelta(days=20), installation.today - timedelta(days=15))
    (row,) = installation.refresh(window).refreshes
    assert (row["window_start"], row["window_end"]) == (window.start, window.end)


def test_a_chosen_range_is_clamped_to_what_the_plan_keeps(start_openai, install):
    installation = install(start_openai(days=40))
    installation.connect(plan="trial")
    result = installation.refresh(installation.history(30))
    (row,) = result.refreshes
    assert row["window_start"] == installation.history(7).start
