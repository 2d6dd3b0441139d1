"""Odd organizations, connected and refreshed by the real commands: figures and messages.

One file for each kind; server.py describes the format.
"""

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import duckdb
import pytest

from finora_pipeline.cli import runs
from tests.cases.conftest import KEY_ADVICE, Case, assert_usual
from tests.cases.server import case_text, day
from tests.dashboard.served import Node, dashboard

Play = Callable[..., Case]


def loaded(case: Case, plan: str = "growth") -> Case:
    """Connect and refresh the case without any error; return it."""
    connected = case.connect(plan)
    assert connected.exit_code == 0, connected.output
    case.organization().requests.clear()
    case.ok("refresh")
    status = case.status()
    assert (status["status"], status["status_reason"]) == ("active", None)
    assert not KEY_ADVICE.search(case.words())
    return case


def test_keys_of_an_archived_project_cannot_be_listed(play: Play):
    case = loaded(play("archived_project_400"))
    assert_usual(case)
    assert case.directory() == {"projects": 2, "members": 2, "api_keys": 1}
    assert case.sql("SELECT name FROM projects WHERE archived_at IS NOT NULL") == [("Old",)]
    said = case.words()
    assert "Old" in said
    assert "This project has been archived" in said
    assert "Old" in case.keys_page()
    of_the_list = r"/projects/proj_case0002/api_keys"
    asked = case.organization().asked(of_the_list)
    case.ok("refresh")
    assert case.organization().asked(of_the_list) == asked


def test_one_projects_key_list_always_fails(play: Play):
    case = loaded(play("one_project_500"))
    assert_usual(case)
    assert case.directory() == {"projects": 2, "members": 2, "api_keys": 1}
    assert "Old" in case.words()
    of_the_list = r"/projects/proj_case0002/api_keys"
    asked = case.organization().asked(of_the_list)
    assert asked < 10, "the money waits for an optional list that fails"
    case.ok("refresh")
    assert case.organization().asked(of_the_list) - asked <= 3, "each refresh repeats what always fails"
    assert_usual(case)


def test_one_usage_endpoint_is_closed_to_the_organization(play: Play):
    case = loaded(play("decisions_403"), plan="enterprise")
    assert_usual(case)
    assert case.directory() == {"projects": 2, "members": 2, "api_keys": 1}
    for said in (case.words(), case.keys_page()):
        assert "decisions" in said
        assert "Your organization does not have access to this feature" in said
        assert not KEY_ADVICE.search(said)
    status = case.status()
    refreshed, promised = (
        datetime.fromisoformat(status[name]) for name in ("last_refresh_at", "next_refresh_at")
    )
    assert promised - refreshed == timedelta(minutes=15)
    asked = case.organization().asked("/usage/decisions")
    case.ok("refresh")
    assert case.organization().asked("/usage/decisions") == asked, "it is asked once a day"


@pytest.mark.parametrize("before", [0, 1, 2, 3, 8, 20])
def test_one_page_of_a_protection_service_is_retried(play: Play, before: int):
    case = play("cloudflare_403_once")
    case.organization().faults[0].after = before
    loaded(case)
    assert case.organization().faults[0].matches > before
    assert_usual(case)
    assert case.directory() == {"projects": 2, "members": 2, "api_keys": 1}
    assert case.status()["last_failure"] is None
    assert "Just a moment" not in case.words()


def test_connect_from_an_ip_address_not_allowed_is_refused(play: Play):
    case = play("ip_not_authorized")
    refused = case.connect()
    assert refused.exit_code == 1
    said = " ".join(refused.output.split())
    assert "IP allowlist" in said
    assert not KEY_ADVICE.search(said)
    assert case.ok("status").startswith("No connections yet")


def test_an_ip_address_stops_being_allowed(play: Play):
    case = play("ip_not_authorized")
    (fault,) = case.organization().faults
    case.organization().faults.clear()
    loaded(case)
    assert case.bill() == 2
    case.organization().faults.append(fault)
    case.refresh_impatiently()
    said = case.words()
    assert "IP allowlist" in said
    assert not KEY_ADVICE.search(said)
    assert case.bill() == 2
    (connection,) = case.installation.accounts.connections.all()
    assert connection.may_be_fetched(datetime.now(UTC) + timedelta(hours=1))
    case.organization().faults.clear()
    case.ok("refresh", "--user", "case")
    assert (case.status()["status"], case.status()["last_failure"]) == ("active", None)


def test_two_kinds_of_cache_writes(play: Play):
    case = loaded(play("cache_writes_12hr"))
    assert case.bill() == Decimal("6.50")
    ((model, tokens, price),) = case.sql(
        "SELECT model, input_tokens + output_tokens AS tokens, cost_per_1k_tokens FROM daily_model_costs"
    )
    assert (model, tokens, Decimal(price)) == ("gpt-6-sol", 250_000, Decimal("0.026"))
    assert case.by_member() == {"Member One": Decimal("2.40"), "Member Two": Decimal("4.10")}
    assert case.by("api_key_id", "daily_key_costs") == {
        "key_case0001": Decimal("2.40"),
        "key_case0002": Decimal("4.10"),
    }


def test_charges_for_services_match_their_usage(play: Play):
    case = loaded(play("service_lines_use"))
    assert case.bill() == Decimal("2.10")
    charged = case.by_model()
    assert sorted(charged.values()) == [Decimal("0.50"), Decimal("0.60"), Decimal("1.00")]
    for name, usd in {"whisper": "0.60", "file search": "0.50", "web search": "1.00"}.items():
        (found,) = (thing for thing in charged if name in thing)
        assert charged[found] == Decimal(usd)
        shares = case.sql(
            "SELECT member_name, amount_usd FROM named_member_costs "
            f"WHERE model = '{found}' ORDER BY amount_usd DESC"
        )
        two_thirds_or_three_quarters = {"whisper": "0.4"}.get(name, str(Decimal(usd) * 3 / 4))
        assert [(who, Decimal(part)) for who, part in shares] == [
            ("Member One", Decimal(two_thirds_or_three_quarters)),
            ("Member Two", Decimal(usd) - Decimal(two_thirds_or_three_quarters)),
        ]
    assert case.by_member() == {"Member One": Decimal("1.525"), "Member Two": Decimal("0.575")}
    assert case.by("api_key_id", "daily_key_costs") == {
        "key_case0001": Decimal("1.525"),
        "key_case0002": Decimal("0.575"),
    }


def test_a_credit_that_exceeds_the_days_spend(play: Play):
    case = loaded(play("credit_exceeds_spend"))
    assert case.bill() == Decimal("-1.75")
    assert case.by("date", "daily_costs") == {day(-2): 1, day(-1): -3, day(0): Decimal("0.25")}
    assert case.by_model()["promotional credit"] == -5
    ((member, api_key),) = case.sql(
        "SELECT member_id, api_key_id FROM daily_member_costs JOIN daily_key_costs USING (date, model) "
        "WHERE model = 'promotional credit'"
    )
    assert (member, api_key) == (None, None)
    with dashboard(case.installation.settings) as pages:
        page = pages.page("/users/case/overview?period=7d")
    assert "Nothing was charged" not in page.text
    assert "No spend in this period" not in page.text
    before, credited = page.all("svg", class_="bars")[0].all("g", class_="bar")[-2:]
    zero = edges(before)[1]
    assert edges(credited)[1] > zero, "the day of −$3.00 is drawn below zero"
    assert edges(credited)[0] >= edges(before)[0], "it is not the tallest"


def edges(bar: Node) -> tuple[float, float]:
    """Return a bar's top and bottom, measured downwards from the top of the chart."""
    drawn = [r.attributes for r in bar.all("rect") if "room" not in (r.attributes.get("class") or "").split()]
    spans = [(float(one["y"] or 0), float(one["y"] or 0) + float(one["height"] or 0)) for one in drawn]
    return min(top for top, _ in spans), max(bottom for _, bottom in spans)


@pytest.mark.parametrize("spelled", ["10.0", '"10"', "1e1"])
def test_counts_written_as_floats_are_loaded(play: Play, spelled: str):
    sent = '"num_model_requests": 10.0'
    text = case_text("float_counts_integral").replace(sent, f'"num_model_requests": {spelled}')
    assert spelled in text
    case = loaded(play(case=text))
    assert_usual(case, requests=10)
    assert case.organization().asked("/usage/completions") == 3, "each piece of 90 days is asked for once"


def test_a_name_that_ends_in_half_an_emoji(play: Play):
    case = loaded(play("surrogate_project_name"))
    assert case.bill() == 2
    assert case.by_member() == {"Member One": 2}
    ((name,),) = case.sql("SELECT name FROM projects")
    assert name.removesuffix("\ufffd").strip() == "Alpha"
    assert "Alpha" in case.ok("sql", "SELECT name FROM projects")
    assert "Alpha" in case.ok("sql", "SELECT name FROM projects", "--csv")
    with dashboard(case.installation.settings) as pages:
        assert "Alpha" in pages.page("/users/case/overview").text
        assert pages.get("/users/case/overview.csv").status_code == 200
    parquet = case.home / "published" / "parquet" / "daily_costs" / "*" / "*.parquet"
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT sum(amount_usd) FROM read_parquet('{parquet}')").fetchall()
    assert found == [(2,)]


def test_a_limit_on_history(play: Play):
    case = loaded(play("history_limit_400"), plan="enterprise")
    assert case.bill() == 3
    assert case.by("date", "daily_costs") == {day(-1): 1, day(-40): 1, day(-300): 1}
    said = [date.fromisoformat(found) for found in re.findall(r"\d{4}-\d\d-\d\d", case.words())]
    today = datetime.now(UTC).date()
    oldest = [found for found in said if 300 <= (today - found).days <= 366]
    assert oldest, "the first day that OpenAI gives is shown"
    asked = len(case.organization().requests)
    case.ok("refresh")
    limit = (today - timedelta(days=366)).toordinal() - date(1970, 1, 1).toordinal()
    later = case.organization().requests[asked:]
    starts = [int(found[1]) for _, query in later if (found := re.search(r"start_time=(\d+)", query))]
    assert min(starts) >= limit * 86_400, "what OpenAI does not give is asked for again"
    assert case.bill() == 3


def test_a_history_no_longer_refused_is_loaded_by_a_new_fetch(play: Play):
    case = loaded(play("history_limit_400"), plan="enterprise")
    assert "refuses older days" in case.words()
    case.organization()._first_day = None
    installation = case.installation
    (again,) = runs.load_history(installation.settings, ["case"], openai_admin=installation.openai_admin)
    assert again.succeeded
    connection = installation.accounts.connections.get("case")
    assert connection is not None
    assert connection.given_from is None
    assert "refuses older days" not in case.words()


def test_usage_by_a_service_account(play: Play):
    case = loaded(play("service_account"))
    assert case.bill() == 2
    assert case.by_member() == {"CI runner": 2}
    assert case.by_key() == {"ci": 2}
    assert case.sql("SELECT owner_name FROM api_keys") == [("CI runner",)]


def test_buckets_that_end_before_they_start(play: Play):
    assert_usual(loaded(play("bucket_end_before_start")))


def test_usage_without_member_and_key(play: Play):
    case = loaded(play("usage_null_dims"))
    assert case.bill() == 2
    assert case.by_member() == {"Member One": Decimal("1.20"), None: Decimal("0.80")}
    assert case.by_key() == {"prod key": Decimal("1.20"), None: Decimal("0.80")}


def test_costs_without_a_project(play: Play):
    case = loaded(play("null_project"))
    assert case.bill() == 2
    assert case.by_member() == {"Member One": Decimal("0.75"), None: Decimal("1.25")}
    assert case.by_key() == {"prod key": Decimal("0.75"), None: Decimal("1.25")}


def test_names_with_formulas_or_markup_stay_text(play: Play):
    case = loaded(play("names_formula"))
    assert case.bill() == Decimal("1.25")
    with dashboard(case.installation.settings) as pages:
        page = pages.get("/users/case/overview").text
        sheet = pages.get("/users/case/overview.csv").text
    assert "<img src=x" not in page
    assert "@SUM(1+1)" in page
    of_names = (
        "SELECT projects.name, members.name, members.email FROM projects CROSS JOIN members "
        "ORDER BY projects.project_id, members.member_id"
    )
    for text in (sheet, case.ok("sql", of_names, "--csv")):
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert any("HYPERLINK" in cell for cell in cells)
        assert [cell for cell in cells if re.match(r"[=+@]|-\D", cell)] == []
