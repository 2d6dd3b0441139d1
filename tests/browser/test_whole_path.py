"""The dashboard in a real browser: sample data, real figures, a rotated and a removed key."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import update

from finora_pipeline.accounts.database import connections, users
from finora_pipeline.accounts.model import Status
from finora_pipeline.cli import runs
from finora_pipeline.dashboard.figures import formats
from finora_pipeline.dashboard.views.users import FIRST_USER
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_simulator import KeyState
from tests.browser.conftest import PageChecker
from tests.conftest import Installation
from tests.dashboard.served import Served, dashboard

DAYS = 40


@pytest.fixture
def installation(start_openai, install) -> Installation:
    return install(start_openai(days=DAYS, services=True, projects=2))


@pytest.fixture
def served(installation: Installation) -> Iterator[Served]:
    with dashboard(installation.settings) as served:
        yield served


@pytest.fixture
def checker(chromium: Browser, served: Served, pictures: Path | None) -> Iterator[PageChecker]:
    checker = PageChecker(chromium, served, pictures)
    yield checker
    checker.close()


def save(page: Page, key: str) -> None:
    page.get_by_label("Admin API Key").fill(key)
    page.get_by_role("button", name="Save").click()


def in_thread(work: Callable[[], list[runs.RunResult]]) -> None:
    """Run Dagster in another thread: this thread's event loop is the browser's."""
    with ThreadPoolExecutor(1) as threads:
        results = threads.submit(work).result()
    assert all(result.succeeded for result in results), results


def exact(page: Page, tile: str) -> Decimal:
    """Return the exact figure behind a tile."""
    value = page.locator(".tile", has=page.get_by_role("heading", name=tile, exact=True)).locator(".value")
    title = value.get_attribute("title")
    assert title is not None
    return Decimal(title)


def test_from_sample_data_to_real_figures_and_removal(
    installation: Installation, served: Served, checker: PageChecker, pictures: Path | None
):
    openai, page = installation.openai, checker.page
    organization = openai.organizations[0]
    key = organization.admin_key
    page.goto("/")
    expect(page.get_by_role("heading", name="This is sample data")).to_be_visible()
    checker.check("1-no-connection")
    page.get_by_role("link", name="Connect OpenAI").click()
    expect(page.get_by_label("Provider", exact=True)).to_have_value("openai")

    save(page, "sk-proj-" + "a" * 40)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("This key doesn’t work.")
    expect(alert).to_contain_text("project key")
    expect(page.get_by_label("Admin API Key")).to_have_value("")
    if pictures:
        page.screenshot(path=pictures / "2-project-key.png", full_page=True)

    save(page, f"  {key}\n")
    expect(page.get_by_role("heading", name="OpenAI is connected")).to_be_visible()
    checker.check("3-connected", thoroughly=True)
    assert key not in page.content()
    page.get_by_role("link", name="Overview").first.click()
    expect(page.get_by_role("heading", name="First refresh under way")).to_be_visible()
    checker.check("4-first-refresh")

    # As the sensor requests it; the open page polls for the result.
    served.accounts.users.set_plan(FIRST_USER, "growth")
    in_thread(
        lambda: runs.load_history(installation.settings, [FIRST_USER], openai_admin=installation.openai_admin)
    )
    expect(page.get_by_role("heading", name="First refresh under way")).to_have_count(0)
    expect(page.get_by_text("sample data")).to_have_count(0)
    expect(page.get_by_text("Refreshed less than a minute ago")).to_be_visible()
    yesterday = installation.today - timedelta(days=1)
    truth = openai.truth(0, Window(installation.today - timedelta(days=30), installation.today))
    assert exact(page, "Total spend") == sum(truth.by_row.values())
    today = openai.truth(0, installation.history(1))
    shown = page.get_by_text("Today so far").locator("span")
    assert Decimal(shown.get_attribute("title") or "") == sum(today.by_row.values())
    checker.check("5-overview", thoroughly=True)

    page.get_by_role("link", name="90 days").click()
    # The plan keeps 90 days with today.
    first = installation.today - timedelta(days=89)
    whole = openai.truth(0, Window(first, installation.today))
    assert exact(page, "Total spend") == sum(whole.by_row.values())
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert sum(Decimal(line.rsplit(",", 1)[1]) for line in lines[1:]) == exact(page, "Total spend")

    chart = page.locator("svg.bars").first
    chart.focus()
    chart.press("ArrowLeft")
    expect(page.locator(".tip").first).to_contain_text(f"{yesterday:%a}, {formats.day(yesterday)}")
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 20)
    expect(page.locator(".tip").first).to_contain_text(f"{first:%a}, {formats.day(first)}")

    dearest = page.get_by_role("region", name="Cost by model").get_by_role("link").first
    model = dearest.inner_text()
    dearest.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(model)
    checker.check("6-model")
    page.get_by_role("link", name="Plan").click()
    checker.check("7-plan")

    page.get_by_role("link", name="Settings").click()
    page.get_by_role("link", name="Update").click()
    fresh = "sk-admin-" + "f" * 60
    save(page, fresh)
    expect(page.get_by_role("alert")).to_contain_text("The old key keeps working.")
    openai.simulator.add_key(organization, fresh)
    save(page, fresh)
    expect(page.get_by_role("heading", name="Key replaced")).to_be_visible()
    expect(page.get_by_text(re.compile("sk-admin-…ffff"))).to_be_visible()

    page.get_by_role("link", name="Remove OpenAI").click()
    checker.check("8-remove")
    page.get_by_role("button", name="Remove OpenAI").click()
    expect(page.get_by_role("heading", name="OpenAI is removed")).to_be_visible()
    checker.check("9-removed")
    page.get_by_role("link", name="Overview").first.click()
    expect(page.get_by_role("heading", name="OpenAI was removed")).to_be_visible()
    assert exact(page, "Total spend") == sum(truth.by_row.values())
    checker.check("10-history-stays")
    assert checker.complaints == []


def test_alerts_are_shown_on_the_page_with_the_figures(
    installation: Installation, served: Served, checker: PageChecker
):
    openai, page = installation.openai, checker.page
    served.connect("acme", openai.organizations[0].admin_key)
    in_thread(lambda: [installation.refresh()])
    openai.simulator.set_key_state(openai.organizations[0].admin_key, KeyState.REVOKED)
    in_thread(lambda: [installation.refresh()])
    page.goto("/users/acme/overview")
    expect(page.get_by_role("heading", name="Your OpenAI key stopped working")).to_be_visible()
    checker.check("needs-attention")
    page.get_by_role("link", name="Update the key").click()
    expect(page.get_by_label("Admin API Key")).to_be_visible()

    with served.accounts.database.write() as database:
        since = installation.openai.simulator.now - timedelta(days=3)
        late = dict.fromkeys(("connected_at", "changed_at", "last_refresh_at"), since)
        database.execute(update(connections).values({**late, "status": Status.ACTIVE}))
        database.execute(update(users).values(plan_since=since))
    page.goto("/users/acme/overview")
    expect(page.locator(".freshness")).to_contain_text("late")
    expect(page.get_by_role("heading", name="We couldn’t fetch from OpenAI")).to_be_visible()
    checker.check("failing-and-late")

    page.goto("/users")
    checker.check("users")
    served.sign_in.save("ada@acme.example", user_id="acme", password="correct horse battery")
    checker.forget()
    page.goto("/users/acme/overview?period=7d")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    checker.check("sign-in", thoroughly=True)
    page.get_by_label("Name").fill("ada@acme.example")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign in").click()
    # Sign-in leads to the requested page.
    expect(page.locator("nav.periods a[aria-current]")).to_have_text("7 days")
    page.goto("/users")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    page.goto("/")
    page.get_by_text("ada@acme.example").click()
    page.get_by_role("button", name="Sign out everywhere").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
