"""Plans and their ticks; settings from the environment with documented defaults."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from dagster._vendored.croniter.croniter import croniter

from finora_pipeline.openai_admin.addresses import OPENAI_BASE_URL
from finora_pipeline.plans import PLANS, Plan, UnknownPlan, plan_named
from finora_pipeline.settings import BASE_URL_FILE, Settings

A_MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def ticks(plan: Plan, start: datetime, days: int) -> list[datetime]:
    """Return the ticks of the plan's schedule in these days."""
    end = start + timedelta(days=days)
    # Dagster's own cron parser, which decides the ticks.
    moments = croniter(plan.cron, start - timedelta(seconds=1))
    found: list[datetime] = []
    while (moment := moments.get_next(datetime)) < end:
        found.append(moment)
    return found


# Plans


def test_the_four_plans_have_their_documented_values():
    assert {name: (p.refresh_interval, p.history_days) for name, p in PLANS.items()} == {
        "trial": (timedelta(hours=24), 7),
        "growth": (timedelta(hours=24), 90),
        "scale": (timedelta(hours=1), 365),
        "enterprise": (timedelta(minutes=15), None),
    }
    assert all(plan.name == name for name, plan in PLANS.items())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_due_connection_has_a_tick_to_spare(plan):
    (gap,) = {later - earlier for earlier, later in pairwise(ticks(plan, A_MONDAY, 7))}
    # A connection not due at one tick is on time at the next, with a minute left.
    assert plan.lead >= gap + timedelta(minutes=1)
    # No user is fetched twice as often as promised, or more.
    assert plan.refresh_interval - plan.lead > plan.refresh_interval / 2


def test_the_daily_plans_do_not_tick_together():
    trial, growth = (set(ticks(PLANS[name], A_MONDAY, 1)) for name in ("trial", "growth"))
    assert trial
    assert growth
    assert not trial & growth


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trial", "every 24 h"),
        ("growth", "every 24 h"),
        ("scale", "every 1 h"),
        ("enterprise", "every 15 min"),
    ],
)
def test_the_cadence_in_words(name, words):
    assert PLANS[name].interval_text == words


def test_the_days_kept_count_today():
    today = date(2026, 11, 24)
    assert PLANS["trial"].first_day_kept(today) == date(2026, 11, 18)
    assert PLANS["growth"].first_day_kept(today) == date(2026, 8, 27)
    assert PLANS["scale"].first_day_kept(today) == date(2025, 11, 25)
    assert PLANS["enterprise"].first_day_kept(today) is None


def test_each_plan_keeps_more_than_those_before_it():
    for position, plan in enumerate(PLANS.values()):
        keeps_more = [plan.keeps_more_than(other) for other in PLANS.values()]
        assert keeps_more == [n < position for n in range(len(PLANS))]


def test_the_next_refresh_is_promised_from_the_last_one():
    assert PLANS["enterprise"].next_refresh(A_MONDAY) == A_MONDAY + timedelta(minutes=15)
    assert PLANS["trial"].next_refresh(A_MONDAY) == A_MONDAY + timedelta(days=1)


@pytest.mark.parametrize("name", ["scale", " Scale\n", "SCALE"])
def test_a_plan_is_found_by_its_name_in_any_case(name):
    assert plan_named(name) is PLANS["scale"]


@pytest.mark.parametrize("name", ["gold", "", "scale plan"])
def test_an_unknown_plan_error_lists_the_plans(name):
    with pytest.raises(UnknownPlan) as caught:
        plan_named(name)
    assert str(caught.value) == (f"Unknown plan “{name}”. Plans: trial, growth, scale, enterprise.")


# Settings


def test_without_settings_data_is_in_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment({})
    assert settings.home == tmp_path.resolve() / "data"
    assert settings.dagster_home == settings.home / "dagster"
    assert settings.openai_base_url == OPENAI_BASE_URL == "https://api.openai.com/v1"
    assert settings.accounts_url == f"sqlite:///{settings.home}/accounts.sqlite"
    assert settings.master_key_variable == "FINORA_MASTER_KEY"
    assert settings.master_key_file == settings.home / "master.key"
    assert settings.published_database == settings.home / "published" / "finora.duckdb"
    assert not settings.home.exists()


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = ("FINORA_HOME", "DAGSTER_HOME", "OPENAI_BASE_URL", "FINORA_ACCOUNTS_URL")
    assert Settings.from_environment(dict.fromkeys(names, "")) == Settings.from_environment({})


def test_every_setting_can_be_given():
    settings = Settings.from_environment(
        {
            "FINORA_HOME": "/srv/finora",
            "DAGSTER_HOME": "/srv/dagster",
            "OPENAI_BASE_URL": "http://127.0.0.1:8765/v1/",
            "FINORA_ACCOUNTS_URL": "postgresql+psycopg://finora@db/accounts",
        }
    )
    assert settings.home == Path("/srv/finora")
    assert settings.dagster_home == Path("/srv/dagster")
    assert settings.openai_base_url == "http://127.0.0.1:8765/v1"
    assert settings.accounts_url == "postgresql+psycopg://finora@db/accounts"


def test_folders_may_start_at_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.from_environment({"FINORA_HOME": "~/finora", "DAGSTER_HOME": "~/dagster"})
    assert settings.home == tmp_path.resolve() / "finora"
    assert settings.dagster_home == tmp_path.resolve() / "dagster"


def test_a_relative_folder_stays_when_the_process_changes_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment({"FINORA_HOME": "here"})
    monkeypatch.chdir("/")
    assert settings.home == tmp_path.resolve() / "here"


def test_the_real_environment_is_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("FINORA_HOME", str(tmp_path / "mine"))
    assert Settings.from_environment().home == tmp_path.resolve() / "mine"


def test_a_data_folder_may_name_its_openai_address(tmp_path):
    (tmp_path / BASE_URL_FILE).write_text("http://127.0.0.1:4321/v1/\n")
    home = {"FINORA_HOME": str(tmp_path)}
    assert Settings.from_environment(home).openai_base_url == "http://127.0.0.1:4321/v1"
    given = home | {"OPENAI_BASE_URL": "http://127.0.0.1:8765/v1"}
    assert Settings.from_environment(given).openai_base_url == "http://127.0.0.1:8765/v1"
