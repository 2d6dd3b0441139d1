"""OpenAI restates days: facts follow, whole days at a time."""

from datetime import timedelta
from decimal import Decimal

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


def test_a_chosen_range_is_clamped_to_what_the_plan_keeps(start_openai, install):
    installation = install(start_openai(days=40))
    installation.connect(plan="trial")
    result = installation.refresh(installation.history(30))
    (row,) = result.refreshes
    assert row["window_start"] == installation.history(7).start
