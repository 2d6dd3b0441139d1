"""Large amounts and long names fit the layout on desktop and phone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.publish import publish
from tests.browser.conftest import PATIENCE
from tests.dashboard.served import Served, dashboard
from tests.warehouse.landing import cost_day, cost_row, land, load, page_of

# USD a day by line item. A month of the first takes eleven characters.
CHARGES = {
    "acme": {"gpt-4o-mini-search-preview-2025-03-11, input": "4112.345"},
    "globex": {
        "ft:gpt-4.1-mini-2025-04-14:globex-corporation-international-holdings:support:BxYz1234, input": "1",
        "gpt-4o-mini-realtime-preview-2024-12-17, input": "41123456.78",
        "x" * 200: "12.5",
    },
}
# Pixels: a tile's largest letters are 20 high on a line of 28.
ONE_LINE = 30
LONG_NAME = "finance.operations.and.controlling@international-holdings.example"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("narrow") / "home"
    today = datetime.now(UTC).date()
    warehouse = Warehouse(home)
    for user_id, charges in CHARGES.items():
        rows = [cost_row(f'"{amount}"', item) for item, amount in charges.items()]
        days = [cost_day(rows, today - timedelta(n)) for n in range(30, 0, -1)]
        land(warehouse, page_of(*days), user_id=user_id)
    load(warehouse)
    refresh_metrics(warehouse, today)
    publish(warehouse, list, today)
    with dashboard(Settings.from_environment({"FINORA_HOME": str(home)})) as served:
        for user_id in CHARGES:
            served.accounts.users.add(user_id, "growth")
        yield served


@pytest.fixture(params=[1280, 390, 320])
def page(
    request: pytest.FixtureRequest, chromium: Browser, served: Served, pictures: Path | None
) -> Iterator[Page]:
    page = chromium.new_page(base_url=served.url, viewport={"width": request.param, "height": 800})
    page.set_default_timeout(PATIENCE)
    page.goto(served.start_link)
    yield page
    if pictures:
        page.screenshot(path=pictures / f"narrow-{request.node.name}.png", full_page=True)
    page.close()


def is_as_wide_as_the_screen(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("user_id", CHARGES)
def test_amounts_fit_their_tile_and_tooltips_the_screen(user_id: str, page: Page) -> None:
    page.goto(f"/users/{user_id}/overview")
    sizes = page.locator(".tile .value").evaluate_all(
        "all => all.map(one => [one.textContent, one.scrollWidth, one.clientWidth, one.clientHeight])"
    )
    assert [size for size in sizes if size[1] > size[2]] == []
    if user_id == "acme":
        assert [size for size in sizes if size[3] > ONE_LINE] == []
    canvas = page.locator(".canvas").first
    box = canvas.bounding_box()
    assert box is not None
    for place in (0.02, 0.45, 0.98):
        canvas.hover(position={"x": box["width"] * place, "y": 60})
        tip = page.locator(".tip").first
        expect(tip).to_contain_text("gpt-4o-mini")
        assert tip.evaluate("one => one.scrollWidth <= one.clientWidth")
        around = tip.bounding_box()
        assert around is not None
        assert around["x"] >= 0
        assert around["x"] + around["width"] <= page.evaluate("innerWidth")
        assert is_as_wide_as_the_screen(page)


def test_long_ids_and_names_do_not_widen_the_page(page: Page, served: Served) -> None:
    page.goto("/users")
    page.get_by_label("New user").fill("y" * 90 + "!")
    page.get_by_role("button", name="Add").click()
    expect(page.locator(".error")).to_contain_text("cannot be a user id")
    assert is_as_wide_as_the_screen(page)

    served.sign_in.save(LONG_NAME, user_id="acme", password="correct horse battery")
    page.context.clear_cookies()
    page.goto("/users/acme/plan")
    page.get_by_label("Name").fill(LONG_NAME)
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text(LONG_NAME)).to_be_visible()
    assert is_as_wide_as_the_screen(page)
    served.sign_in.remove(LONG_NAME)
